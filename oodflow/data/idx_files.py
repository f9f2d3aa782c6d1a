"""MNIST and Fashion-MNIST from the idx files of their makers, as these and mirrors give them (S5).

On disk: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same for ``t10k``, each
gzipped or not, with a dot or a hyphen before ``idx``; in one folder, anywhere below it as
torchvision lays them out, or in a tar or zip archive. The two files of one fold make that fold
alone. The 28×28 images are enlarged bilinearly to 32×32.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oodflow.data.archives import unpacked, walk
from oodflow.data.source import Fold, Raw, Request
from oodflow.data.torchvision_sets import enlarged, problem_of
from oodflow.errors import UserError

__all__ = ["read"]

PREFIXES = {"train": "train", "test": "t10k"}
RANKS = {"images": 3, "labels": 1}
NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?", re.IGNORECASE)
TREES = {"MNIST", "FashionMNIST"}
"""Torchvision's folders of the two datasets, whose files have the same names."""


def read(request: Request) -> Raw:
    """The folds whose two files are there; all are read at once, since they are small.

    Raises UserError where a file is absent, and where one is damaged.
    """
    with unpacked(request.path) as folder:
        files = _find(folder, request.facts.where.partition("/")[0])
        folds = {}
        for fold in PREFIXES:
            if chosen := _pair(request, files, fold):
                folds[fold] = _fold(request, folder, fold, chosen)
    if not folds:
        raise UserError(
            f"{request.path} holds no idx file of {request.facts.name}; expected are "
            f"{' and '.join(_name(fold, kind) for fold in PREFIXES for kind in RANKS)}, "
            "each gzipped or not"
        )
    return Raw(folds)


def _name(fold: str, kind: str) -> str:
    return f"{PREFIXES[fold]}-{kind}-idx{RANKS[kind]}-ubyte"


def _find(folder: Path, tree: str) -> Mapping[tuple[str, str], str]:
    """(prefix, kind) → relative name of the file: in the dataset's own tree where there is one.

    Of several files the one nearest to the folder is taken, and one that is not compressed.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name, _ in walk(folder):
        others = (TREES - {tree}) & set(name.split("/"))
        if (match := NAME.fullmatch(name.rpartition("/")[2])) and not others:
            found.setdefault((match[1].lower(), match[2].lower()), []).append(name)

    def rank(name: str) -> tuple[bool, int, bool, str]:
        return tree not in name.split("/"), name.count("/"), name.lower().endswith(".gz"), name

    return {key: min(names, key=rank) for key, names in found.items()}


def _pair(
    request: Request, files: Mapping[tuple[str, str], str], fold: str
) -> Mapping[str, str] | None:
    """Kind → file of a fold, or None where the fold is absent as a whole."""
    there = {kind: files[PREFIXES[fold], kind] for kind in RANKS if (PREFIXES[fold], kind) in files}
    if absent := [_name(fold, kind) for kind in RANKS if kind not in there and there]:
        raise UserError(
            f"{request.path} holds {' '.join(there.values())} but no {absent[0]} (gzipped or not); "
            f"put it there. {request.facts.obtain}"
        )
    return there or None


def _fold(request: Request, folder: Path, fold: str, files: Mapping[str, str]) -> Fold:
    facts, arrays = request.facts, {}
    for kind, name in files.items():
        try:
            arrays[kind] = _array((folder / name).read_bytes(), RANKS[kind])
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise UserError(
                f"{facts.name} at {request.path} is incomplete or damaged ({name}: {error}). "
                f"Remove it and get it again. {facts.obtain}"
            ) from error
    pixels = arrays["images"].unsqueeze(1)
    labels = arrays["labels"].long()
    if problem := problem_of(pixels, labels, facts.channels, facts.classes):
        raise UserError(f"{facts.name} {fold} at {request.path} {problem}. {facts.obtain}")
    return Fold(len(pixels), partial(enlarged, pixels, labels))


def _array(content: bytes, rank: int) -> Tensor:
    """The bytes of an idx file: two zeros, 8 for unsigned bytes, the rank, the sizes, the values.

    The sizes are big-endian numbers of 32 bits. Raises ValueError for another file.

    >>> _array(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), 1).tolist()
    [7, 9]
    """
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if not content.startswith(bytes([0, 0, 8, rank])):
        raise ValueError(f"it is not an idx file of bytes with {rank} axes")
    sizes = struct.unpack_from(f">{rank}I", content, 4)
    start = 4 + 4 * rank
    if len(content) != start + math.prod(sizes):
        raise ValueError(f"it has {len(content)} bytes instead of {start + math.prod(sizes)}")
    values: NDArray[np.uint8] = np.frombuffer(bytearray(content), np.uint8, offset=start)
    return torch.from_numpy(values.reshape(sizes))
