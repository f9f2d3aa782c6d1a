"""A file of images: ``array:FILE.npy`` or ``array:FILE.npz``, with the options of a folder.

Images are uint8 of shape N×H×W, N×H×W×C or N×C×H×W with 1 or 3 channels. An ``.npy`` file holds the
images alone. An ``.npz`` file holds ``images`` and, if there are any, ``labels``, or for each fold
``train``, ``train_labels``, ``test`` and ``test_labels``; other names in use are in :data:`KEYS`.
Without folds ``test`` of the images (a fifth, if not stated), in runs of neighbours, are the test
fold. Labels are whole numbers; the classes are those that occur, sorted.

What is done to an image is that of :func:`oodflow.data.decode.fitted`. Nothing is unpickled.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oodflow.data.decode import fitted
from oodflow.data.folder import lengths, share_of
from oodflow.data.image_files import UnreadableImage
from oodflow.data.source import Fold, Piece, Raw, Request, in_test_fold
from oodflow.errors import UserError

__all__ = ["array_images", "read", "stamp"]

CHUNK = 1024
"""Images in a piece."""

RUN = 64
"""Neighbours that are in one fold together, fewer where there are few images."""

KEYS: Mapping[str, tuple[str, str]] = {
    "images": ("", "images"),
    "labels": ("", "labels"),
    **{name.format(fold): (fold, "images") for fold in ("train", "test")
       for name in ("{}", "{}_images", "x_{}", "X_{}")},
    **{name.format(fold): (fold, "labels") for fold in ("train", "test")
       for name in ("{}_labels", "y_{}")},
}  # fmt: skip
"""Name in an ``.npz`` file → fold, "" where there are none, and what it is."""


def read(request: Request) -> Raw:
    """The folds; raises UserError for a file that does not hold images, and for wrong options."""
    path, options = request.path, request.facts.options
    found = _arrays(path)
    folds = {fold for fold, _ in found}
    parts = {
        fold: (array_images(path, found[fold, "images"]), found.get((fold, "labels")))
        for fold in folds
    }
    if "" in parts:
        images, labels = parts[""]
        share = share_of("array", options)
        run = max(min(RUN, len(images) // 10), 1)
        test = in_test_fold(len(images), share, run) if share < 1 else np.ones(len(images), bool)
        chosen = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
        parts = {fold: (images, labels) for fold in chosen if len(chosen[fold])}
    elif "test" in options:
        raise UserError(
            f"{path} has folds of its own, which test={options['test']} cannot split; leave it out"
        )
    else:
        chosen = {fold: np.arange(len(images)) for fold, (images, _) in parts.items()}
    if "test" not in parts:
        raise UserError(f"{path} has no test images; give it images, or train and test")
    checked = {fold: _labels(path, images, labels) for fold, (images, labels) in parts.items()}
    numbers = _numbers(path, checked, chosen)
    read_folds = {}
    for fold in sorted(parts, reverse=True):
        labels = _as_classes(checked[fold], numbers) if numbers else None
        read_folds[fold] = _fold(request, parts[fold][0], chosen[fold], labels)
    return Raw(read_folds, tuple(map(str, numbers)))


def _arrays(path: Path) -> dict[tuple[str, str], NDArray[Any]]:
    """The arrays of a file by fold and kind, those of ``.npz`` files in memory."""
    try:
        if path.suffix != ".npz":
            return {("", "images"): np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file.files if name in KEYS]
            found = {KEYS[name]: file[name] for name in names}
            others = ", ".join(file.files) or "nothing"
    # numpy and zipfile have no one error for a file that is cut, pickled or something else.
    except Exception as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        cut = ", it may be cut" if isinstance(error, (zipfile.BadZipFile, EOFError)) else ""
        raise UserError(
            f"{path} is not a whole file of numbers by numpy.save or numpy.savez ({why}{cut}); "
            "nothing in it is unpickled"
        ) from error
    folds = {fold for fold, _ in found}
    if len(names) > len(found) or "" in folds and len(folds) > 1:
        raise UserError(f"{path} holds {', '.join(names)}: name images once, or train and test")
    if not folds or any((fold, "images") not in found for fold in folds):
        raise UserError(
            f"{path} holds {others}; name its arrays images and labels, or train, train_labels, "
            "test and test_labels"
        )
    return found


def array_images(path: Path | str, array: NDArray[Any]) -> NDArray[np.uint8]:
    """The images as N×H×W or N×H×W×3, as a view; UserError for what holds no 8-bit images."""
    size = "×".join(map(str, array.shape))
    if array.dtype != np.uint8:
        bad = np.issubdtype(array.dtype, np.floating) and bool(np.isnan(array).any())
        raise UserError(
            f"{path} holds {array.dtype} of shape {size}{' with NaN' * bad} in place of uint8; "
            "save the images as numbers from 0 to 255, as array.round().astype('uint8') has them"
        )
    if array.ndim == 4:
        last, second = array.shape[3] in (1, 3), array.shape[1] in (1, 3)
        if last and second:
            raise UserError(
                f"{path} has shape {size}, which is N×H×W×C as well as N×C×H×W; save N×H×W, or "
                "images that are higher than 3 pixels"
            )
        if last or second:
            array = array if last else array.transpose(0, 2, 3, 1)
            array = array[..., 0] if array.shape[3] == 1 else array
    if array.ndim not in (3, 4) or array.ndim == 4 and array.shape[3] != 3 or 0 in array.shape:
        raise UserError(
            f"{path} has shape {size}; images are N×H×W, N×H×W×C or N×C×H×W with 1 or 3 channels"
        )
    return array


def _labels(path: Path, images: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[Any] | None:
    if labels is None:
        return None
    # A column of labels is common.
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        size = "×".join(map(str, labels.shape))
        raise UserError(
            f"{path}: labels are {labels.dtype} of shape {size}, not {len(images)} whole numbers"
        )
    return labels


def _numbers(
    path: Path, labels: Mapping[str, NDArray[Any] | None], chosen: Mapping[str, NDArray[Any]]
) -> tuple[int, ...]:
    """The labels that occur, sorted; () where there are none."""
    given = {fold: each for fold, each in labels.items() if each is not None}
    if not given:
        return ()
    if len(given) < len(labels):
        raise UserError(f"{path} has labels of one fold only; give both, or none")
    known = given.get("train", given["test"])
    numbers = np.unique(known)
    if missing := np.setdiff1d(given["test"], numbers).tolist():
        raise UserError(f"{path}: label {missing[0]} of the test images has no training images")
    return tuple(numbers.tolist())


def _as_classes(labels: NDArray[Any] | None, numbers: tuple[int, ...]) -> NDArray[np.int64]:
    return np.searchsorted(np.array(numbers), labels).astype(np.int64)  # type: ignore[arg-type]


def _fold(
    request: Request,
    images: NDArray[np.uint8],
    chosen: NDArray[Any],
    labels: NDArray[np.int64] | None,
) -> Fold:
    resize, crop = lengths(request.facts.options)
    channels = request.facts.channels
    if images.ndim == 3 and channels == 3:
        raise UserError(f"{request.path} holds grey images; write array:{request.path}?channels=1")

    def pieces() -> Iterator[Piece]:
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            kept, planes = [], []
            for i in part:
                try:
                    picture = Image.fromarray(np.ascontiguousarray(images[i]))
                    planes.append(fitted(picture, channels, resize, crop))
                    kept.append(i)
                except UnreadableImage as error:
                    request.on_broken(f"image {i} of {request.path}", str(error))
            if planes:
                yield Piece(np.stack(planes), None if labels is None else labels[kept])

    return Fold(len(chosen), pieces)


def stamp(path: Path) -> str:
    """Of size and time of the last change of the file; UserError where there is none."""
    if not path.is_file():
        what = "is a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give an .npy or .npz file with images")
    status = path.stat()
    said = f"{status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]
