"""MRI of brain tumours (BraTS), one dataset for each modality: t1, t1ce, t2 and flair (S5.2).

On disk, either of

- NIfTI volumes named ``*_t1.nii.gz`` or ``*_t1.nii`` (and so on) anywhere below the folder;
- slices as image files anywhere below a folder named ``t1`` (and so on), any format of Pillow.

A volume gives axial slices (third axis; rows along the first, columns along the second): those in
which at least a quarter of the pixels are non-zero, and every fifth of these. With p the 99.5th
percentile of the volume's positive voxels, a voxel v becomes round(255·min(v/p, 1)), a negative
one 0. Image files are all taken, as 8-bit grey.

Each slice gives one crop of 32×32. In the test fold it is central. In the training fold it lies
at a seeded random place inside the bounding box of the non-zero pixels (extended to 32 where it
is smaller); the authors' code crops anew in each step, here the crop is fixed when the dataset is
prepared. The grey crop is repeated to the channels of the dataset.

Folds: the first part of a path that is ``train`` or ``test``, or contains ``training`` or
``validation`` (test), decides, whatever its case. Where no part does, and where the paths name
only one of the two folds, a fifth of the patients is the test fold, by rank of the SHA-256 of
the path. A patient is a folder with volumes; where all volumes lie in one folder, and for image
files, it is the file. The modality is left out of the path, so that a patient is in the same
fold for each modality.
"""

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from oodflow.data.archives import is_image
from oodflow.data.source import SPLIT_SEED, Fold, Piece, Raw, Request, lowest_hashes
from oodflow.errors import UserError

__all__ = ["read"]

SIDE = 32
EVERY = 5
"""Neighbouring slices are much alike."""
FILES_AT_ONCE = 256


@dataclass(frozen=True)
class _Source:
    """A volume or an image file."""

    path: Path
    relative: PurePosixPath
    patient: str
    """The same for each modality of one patient."""


class _Broken(Exception):
    """Why a file cannot be used."""


@contextmanager
def _decoding() -> Iterator[None]:
    """The many kinds of errors that decoders raise for broken bytes become _Broken."""
    try:
        yield
    except Exception as error:
        raise _Broken(" ".join(str(error).split()) or type(error).__name__) from error


def read(request: Request) -> Raw:
    """Both folds of the modality that the name of the dataset ends in, without labels.

    A single patient makes a test fold alone.
    """
    modality = request.facts.name.removeprefix("brats-")
    if sources := _volumes(request.path, modality):
        count, crops, at_once = _slice_count, _volume_crops, 1
    elif sources := _images(request.path, modality):
        count, crops, at_once = _one, _image_crops, FILES_AT_ONCE
    else:
        raise UserError(
            f"no file *_{modality}.nii.gz or *_{modality}.nii and no image in a folder "
            f"{modality!r} below {request.path}"
        )
    counted = [(source, _guarded(request, source, count)) for source in sources]
    usable = {source: number for source, number in counted if number is not None}
    if not usable:
        raise UserError(
            f"none of the {len(sources)} files of {modality} below {request.path} is whole"
        )
    # Among all, so that a file that is left out moves no other one.
    test = _test_fold(sources)
    folds = {}
    for name, held_out in (("train", False), ("test", True)):
        if chosen := [source for source in usable if (source in test) == held_out]:
            total = sum(usable[source] for source in chosen)
            folds[name] = _fold(request, chosen, total, crops, held_out, at_once)
    return Raw(folds)


def _files(folder: Path) -> list[PurePosixPath]:
    """All files below a folder but hidden ones, as paths from it, sorted."""
    return sorted(
        PurePosixPath(Path(place, name).relative_to(folder).as_posix())
        for place, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    )


def _volumes(folder: Path, modality: str) -> list[_Source]:
    endings = (f"_{modality}.nii.gz", f"_{modality}.nii")
    # By the name without its ending: a volume may lie there packed and unpacked.
    found = {
        each.as_posix()[: -len(ending)]: each
        for each in _files(folder)
        for ending in endings
        if each.name.lower().endswith(ending)
    }
    apart = len({each.parent for each in found.values()}) > 1
    return [
        _Source(folder / each, each, each.parent.as_posix() if apart else stem)
        for stem, each in found.items()
    ]


def _images(folder: Path, modality: str) -> list[_Source]:
    return [
        _Source(folder / each, each, "/".join(part for part in each.parts if part != modality))
        for each in _files(folder)
        if modality in each.parts[:-1] and is_image(each.name)
    ]


def _test_fold(sources: Sequence[_Source]) -> set[_Source]:
    """The sources of the test fold."""
    named = {source: _named_fold(source.relative) for source in sources}
    decide = {"train", "test"} <= set(named.values())
    rest = [source for source in sources if not (decide and named[source])]
    held_out = lowest_hashes((source.patient for source in rest), 0.2)
    ranked = {source for source in rest if source.patient in held_out}
    return ranked | {source for source in sources if decide and named[source] == "test"}


def _named_fold(relative: PurePosixPath) -> str:
    """``train``, ``test`` or "" where the path does not say.

    >>> _named_fold(PurePosixPath("BraTS_Validation/x/x_t1.nii"))
    'test'
    """
    for part in relative.parts:
        word = part.lower()
        if word == "train" or "training" in word:
            return "train"
        if word == "test" or "validation" in word:
            return "test"
    return ""


def _fold(
    request: Request,
    sources: Sequence[_Source],
    total: int,
    crops: Callable[[_Source, bool], NDArray[np.uint8]],
    central: bool,
    at_once: int,
) -> Fold:
    def pieces() -> Iterator[Piece]:
        for start in range(0, len(sources), at_once):
            part = sources[start : start + at_once]
            made = [_guarded(request, source, lambda each: crops(each, central)) for source in part]
            if whole := [each for each in made if each is not None and len(each)]:
                grey = np.concatenate(whole)[:, None]
                yield Piece(np.repeat(grey, request.facts.channels, axis=1))

    return Fold(total, pieces)


def _guarded(request: Request, source: _Source, make: Callable):
    """What ``make`` makes of a source; None where it is broken and left out."""
    try:
        return make(source)
    except _Broken as error:
        request.on_broken(str(source.path), str(error))
        return None


def _one(source: _Source) -> int:
    return 1


def _slice_count(source: _Source) -> int:
    """The number of slices that a volume gives at most, by its header."""
    from nibabel import Nifti1Image

    with _decoding():
        shape = Nifti1Image.from_filename(source.path).shape
    if len(shape) != 3 or min(shape[:2]) < SIDE:
        raise _Broken(f"its size is {shape} instead of at least {SIDE}×{SIDE} in three dimensions")
    return -(-shape[2] // EVERY)


def _volume_crops(source: _Source, central: bool) -> NDArray[np.uint8]:
    """The crops of a volume, N×32×32."""
    volume = _voxels(source.path)
    filled = volume != 0
    chosen = np.flatnonzero(4 * filled.sum((0, 1)) >= filled[..., 0].size)[::EVERY]
    positive = volume[volume > 0]
    if positive.size == 0:
        raise _Broken("it has no positive voxel")
    levels = np.rint(255 * np.clip(volume[..., chosen] / np.percentile(positive, 99.5), 0, 1))
    random = _generator(source)
    return np.array(
        [
            _crop(levels[..., i].astype(np.uint8), filled[..., at], central, random)
            for i, at in enumerate(chosen)
        ],
        np.uint8,
    ).reshape(-1, SIDE, SIDE)


def _voxels(path: Path) -> NDArray:
    """All voxels of a volume."""
    from nibabel import Nifti1Image

    with _decoding():
        # To the end at once, since gzip checks its sum only there.
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        volume = np.asarray(Nifti1Image.from_bytes(content).dataobj)
    if volume.dtype.kind not in "iuf":
        raise _Broken(f"its voxels are {volume.dtype} instead of numbers")
    return np.nan_to_num(volume) if volume.dtype.kind == "f" else volume


def _image_crops(source: _Source, central: bool) -> NDArray[np.uint8]:
    """The crop of an image file, 1×32×32."""
    from PIL import Image

    with _decoding(), Image.open(source.path) as opened:
        grey = np.array(opened.convert("L"))
    if min(grey.shape) < SIDE:
        raise _Broken(f"its size is {grey.shape} instead of at least {SIDE}×{SIDE}")
    return _crop(grey, grey != 0, central, _generator(source))[None]


def _generator(source: _Source) -> np.random.Generator:
    """Random numbers of one file, whatever other files are there or are left out."""
    text = f"{SPLIT_SEED} {source.relative}".encode("utf-8", "surrogateescape")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest(), "big"))


def _crop(
    levels: NDArray[np.uint8],
    filled: NDArray[np.bool_],
    central: bool,
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    starts = []
    for axis, size in enumerate(filled.shape):
        low, high = 0, size
        if not central:
            low, high = _extended(np.flatnonzero(filled.any(1 - axis)), size)
        starts.append(
            (low + high - SIDE) // 2 if central else random.integers(low, high - SIDE + 1)
        )
    top, left = starts
    return levels[top : top + SIDE, left : left + SIDE]


def _extended(filled: NDArray[np.intp], size: int) -> tuple[int, int]:
    """First and last + 1 of the filled places, at least 32 apart and inside; all where none is.

    >>> _extended(np.array([30, 39]), 40), _extended(np.array([3, 70]), 99)
    ((8, 40), (3, 71))
    """
    low, high = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, size)
    if high - low < SIDE:
        low = min(max((low + high - SIDE) // 2, 0), size - SIDE)
        high = low + SIDE
    return low, high
