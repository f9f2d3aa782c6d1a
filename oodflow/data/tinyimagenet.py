"""TinyImageNet: 200 classes, its test fold serves as outliers (S5).

On disk: ``tiny-imagenet-200.zip`` or the folder ``tiny-imagenet-200`` extracted from it, named
itself or lying in the folder. Inside are ``wnids.txt`` (the classes, one a line),
``train/<wnid>/images/*.JPEG`` and ``test/images/*.JPEG``, 64×64 pixels; ``val`` is not used.
Training labels count the sorted wnids, test images have none. The images are resized bilinearly
to 32×32, in the order of their paths.
"""

from pathlib import Path

import numpy as np

from oodflow.data.archives import Shelf, is_image, open_shelf
from oodflow.data.decode import pieces
from oodflow.data.image_files import UnreadableImage
from oodflow.data.source import Fold, Raw, Request
from oodflow.errors import UserError

__all__ = ["read"]

NAME = "tiny-imagenet-200"
CLASSES = "wnids.txt"
MEND = f"get {NAME}.zip again from its makers"


def read(request: Request) -> Raw:
    """Both folds; raises UserError where files are absent or the archive is damaged."""
    shelf = open_shelf(_place(request.path))
    listed = f"{NAME}/{CLASSES}" if f"{NAME}/{CLASSES}" in shelf.names else CLASSES
    if listed not in shelf.names:
        raise UserError(f"{shelf.path} has no {CLASSES}; {MEND}")
    classes = _classes(shelf, listed)
    label_of = {wnid: i for i, wnid in enumerate(classes)}
    top = listed.removesuffix(CLASSES)
    train, labels, test = [], [], []
    for name in filter(is_image, shelf.names):
        match name.removeprefix(top).split("/"):
            case ["train", wnid, "images", _]:
                if wnid not in label_of:
                    raise UserError(f"{shelf.path}/{name} is of no class in {CLASSES}; {MEND}")
                train.append(name)
                labels.append(label_of[wnid])
            case ["test", "images", _]:
                test.append(name)
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        raise UserError(f"no image in {shelf.path}/{top}train/{classes[empty[0]]}/images; {MEND}")
    if not test:
        raise UserError(f"no image in {shelf.path}/{top}test/images; {MEND}")
    of_train, of_test, numbers = tuple(train), tuple(test), np.array(labels, np.int64)
    return Raw(
        {
            "train": Fold(len(train), lambda: pieces(request, shelf, of_train, numbers)),
            "test": Fold(len(test), lambda: pieces(request, shelf, of_test)),
        },
        classes,
    )


def _place(path: Path) -> Path:
    """The extracted folder or the archive: what was named, or what lies in it."""
    for inner in (path / NAME, path / f"{NAME}.zip"):
        if inner.exists() and not (path / CLASSES).exists():
            return inner
    return path


def _classes(shelf: Shelf, name: str) -> tuple[str, ...]:
    """The wnids, sorted; raises UserError where there are none or the file is damaged."""
    try:
        source = shelf.fetch(name)
        text = (source.read_bytes() if isinstance(source, Path) else source.read()).decode("ascii")
    except (OSError, UnicodeDecodeError, UnreadableImage) as error:
        raise UserError(f"{shelf.path}/{name} cannot be read ({error}); {MEND}") from error
    if not text.split():
        raise UserError(f"{shelf.path}/{name} lists no class; {MEND}")
    return tuple(sorted(set(text.split())))
