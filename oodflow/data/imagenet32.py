"""Downsampled ImageNet 32×32, a stand-in for 80 Million Tiny Images (arXiv:1707.08819).

On disk: ``train_data_batch_1`` to ``train_data_batch_10`` and ``val_data``, in the folder or in
folders directly below it. Each is a pickled dict with ``data``, N×3072 unsigned bytes (1024 red,
1024 green, 1024 blue, each row by row), and ``labels``, N integers from 1 to 1000; a ``mean`` may
be there and is not used. Python 2 wrote the keys as bytes.

Pixels stay as they are, labels count from 0. The batches are the training fold, ``val_data`` the
test fold (S5).

A pickle can call any function. Here only those that build arrays of numbers are let through.
"""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodflow.data.source import Fold, Piece, Raw, Request
from oodflow.errors import UserError

__all__ = ["read"]

TRAIN = tuple(f"train_data_batch_{i}" for i in range(1, 11))
TEST = ("val_data",)
CLASSES = 1000
TOTALS = {"train": 1_281_167, "test": 50_000}
"""Images of the published files, for the progress only; the files may hold fewer."""
CHUNK = 4096
"""Images in a piece, 12 MB."""

ALLOWED = frozenset(
    (
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
)
"""What pickles of numeric arrays name, from protocol 2 to 5."""


def read(request: Request) -> Raw:
    """Both folds with labels from 0 to 999."""
    files = {name: _find(request.path, name) for name in TRAIN + TEST}
    absent = [name for name, path in files.items() if path is None]
    if absent:
        raise UserError(f"{', '.join(absent)} not in {request.path} or a folder in it")
    paths = {name: path for name, path in files.items() if path is not None}
    return Raw(
        {
            "train": _fold([paths[name] for name in TRAIN], TOTALS["train"]),
            "test": _fold([paths[name] for name in TEST], TOTALS["test"]),
        }
    )


def _find(folder: Path, name: str) -> Path | None:
    found = [path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()]
    # ImageNet 64×64 has files of the same names.
    if len(found) > 1:
        raise UserError(f"{name} is there twice, as {found[0]} and as {found[1]}; leave one")
    return found[0] if found else None


def _fold(paths: Sequence[Path], total: int) -> Fold:
    def pieces() -> Iterator[Piece]:
        for path in paths:
            yield from _pieces(path)

    return Fold(total, pieces)


def _pieces(path: Path) -> Iterator[Piece]:
    pixels, labels = _load(path)
    for start in range(0, len(pixels), CHUNK):
        chosen = slice(start, start + CHUNK)
        # A view in the caller's hands would keep this batch in memory while the next one is read.
        yield Piece(pixels[chosen].reshape(-1, 3, 32, 32).copy(), labels[chosen].copy())


def _load(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows N×3072 and labels N of one batch."""
    try:
        with path.open("rb") as stream:
            content = _Numbers(stream, encoding="bytes").load()
        batch = {_text(key): value for key, value in content.items()}
        rows, labels = batch["data"], np.asarray(batch["labels"])
    except KeyError as error:
        raise UserError(
            f"{path} has no {error.args[0]!r}; it is not a batch of ImageNet"
        ) from error
    # What broken bytes, and bytes made to break, end in is a dozen kinds of errors.
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is damaged or not a batch of downsampled ImageNet ({why})"
        ) from error
    problem = _problem(rows, labels)
    if problem:
        raise UserError(f"{path} {problem}; it is not a batch of ImageNet 32×32")
    return rows, labels.astype(np.int64) - 1


def _text(key: object) -> object:
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _problem(rows: Any, labels: NDArray) -> str:
    """What is wrong with the content of a batch, or ""."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        return f"holds {getattr(rows, 'dtype', type(rows).__name__)} instead of unsigned bytes"
    if rows.ndim != 2 or rows.shape[1] != 3072 or len(rows) == 0:
        return f"holds pixels of shape {rows.shape} instead of (N, 3072)"
    if labels.dtype.kind not in "iu" or labels.shape != rows.shape[:1]:
        return (
            f"holds labels of shape {labels.shape} and type {labels.dtype} for {len(rows)} images"
        )
    if labels.min() < 1 or labels.max() > CLASSES:
        return f"holds labels outside 1 to {CLASSES}"
    return ""


def _number_type(kind: Any, align: int = 0, copy: int = 0) -> np.dtype:
    # Older pickles have 0 and 1, which numpy takes with a warning.
    made: np.dtype = np.dtype(kind, bool(align), bool(copy))
    if made.kind not in "biuf":
        raise pickle.UnpicklingError(f"it holds an array of {made}")
    return made


class _Numbers(pickle.Unpickler):
    """Loads arrays of numbers and plain Python values; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 had its core under another name.
        current = module.replace("numpy.core.", "numpy._core.")
        if (current, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}, which is not run")
        if name == "dtype":
            return _number_type
        return super().find_class(current, name)
