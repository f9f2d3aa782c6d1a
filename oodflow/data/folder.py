"""Any folder of images: ``folder:PATH?resize=N&crop=N&channels=1&test=SHARE`` (S5).

On disk: images in one folder, without labels, or all in sub-folders of it, which are the classes;
labels count their sorted names. Where there are folders ``train`` and ``test`` (or ``val``), in
any capitals, each is such a folder, they are the folds, and what lies beside them is not used.
Otherwise ``test`` of the images (a fifth, if not stated) are the test fold, see :func:`_split`.
Within a fold the images are sorted by path.

A CSV file in place of a folder lists the images: a column ``path``, relative to the file, and if it
has them ``label`` and ``split`` (train or test).

The transformation is that of :func:`oodflow.data.decode.decode`: what the options ask for, then
bilinearly to 32×32. What :func:`oodflow.data.archives.walk_images` leaves out is left out here.
"""

import csv
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oodflow.data.account import Account
from oodflow.data.archives import Shelf, walk_images
from oodflow.data.decode import pieces
from oodflow.data.source import Fold, Raw, Request
from oodflow.errors import UserError

__all__ = ["fold_folders", "lengths", "listing", "read", "share_of", "stamp"]

FOLD_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
"""Folders that are folds, in lower case; val is the test fold where there is no test."""

LONGEST = 4096
"""Upper limit of the options resize and crop, in pixels."""


def read(request: Request) -> Raw:
    """The folds; raises UserError for wrong options and for a folder that cannot be understood."""
    options, path = request.facts.options, request.path
    (resize, crop), share = lengths(options), share_of("folder", options)
    if path.is_file() and path.suffix == ".csv":
        return _listed(request, share)
    names = tuple(sorted(name for name, _ in _images(path, request.account)))
    if not names:
        raise UserError(
            "; ".join([f"no image in {path}; give a folder with images", *request.account.lines()])
        )
    places = fold_folders(path)
    if places:
        if "test" in options:
            raise UserError(
                f"{path} has folders {places['train']} and {places['test']}, which "
                f"test={options['test']} cannot split; leave it out"
            )
        depth = 1
        folds = {
            fold: tuple(name for name in names if name.startswith(f"{place}/"))
            for fold, place in places.items()
        }
        if unused := len(names) - sum(map(len, folds.values())):
            request.account.left_out["beside the folders of the folds"] += unused
        classes = _classes(path / places["train"], folds["train"], depth)
        _compare(path, places, classes, _classes(path / places["test"], folds["test"], depth))
    else:
        depth = 0
        folds = _split(names, share)
        classes = _classes(path, names, depth)
    shelf = Shelf(path, names, lambda name: path / name)

    def fold(chosen: tuple[str, ...]) -> Fold:
        labels = _labels(chosen, classes, depth)
        return Fold(len(chosen), lambda: pieces(request, shelf, chosen, labels, resize, crop))

    return Raw({name: fold(chosen) for name, chosen in folds.items()}, classes)


def _listed(request: Request, share: float) -> Raw:
    """The folds of the images that a CSV file lists."""
    path, options = request.path, request.facts.options
    rows = _rows(path)
    names = tuple(row["path"] for row in rows)
    if "split" not in rows[0]:
        folds = _split(names, share)
    elif "test" in options:
        raise UserError(
            f"{path} has a column split, which test={options['test']} cannot do again; leave it out"
        )
    else:
        split = {fold: tuple(row["path"] for row in rows if row["split"] == fold)
                 for fold in ("train", "test")}  # fmt: skip
        folds = {fold: chosen for fold, chosen in split.items() if chosen}
    if "test" not in folds:
        raise UserError(f"{path} has no row of split test; mark the test images")
    label_of = {row["path"]: row["label"] for row in rows if "label" in row}
    classes = tuple(sorted({label_of[name] for name in folds.get("train", names) if label_of}))
    for name in folds["test"]:
        if label_of and label_of[name] not in classes:
            raise UserError(f"{path}: class {label_of[name]!r} has no images of split train")
    shelf = Shelf(path.parent, tuple(sorted(names)), lambda name: path.parent / name)

    def fold(chosen: tuple[str, ...]) -> Fold:
        labels = np.array([classes.index(label_of[name]) for name in chosen if label_of], np.int64)
        given = labels if label_of else None
        return Fold(len(chosen), lambda: pieces(request, shelf, chosen, given, *lengths(options)))

    return Raw({name: fold(chosen) for name, chosen in folds.items()}, classes)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that lists images; UserError names the line that cannot be right."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    if not rows or "path" not in rows[0]:
        raise UserError(f"{path} needs a first line path,label,split, and a line for each image")
    seen = set()
    for number, row in enumerate(rows, 2):
        if row.get("split", "test") not in ("train", "test"):
            raise UserError(f"{path}, line {number}: split is {row['split']!r}, not train or test")
        if row["path"] in seen or not (path.parent / row["path"]).is_file():
            what = "listed twice" if row["path"] in seen else "no file"
            raise UserError(f"{path}, line {number}: {row['path']!r} is {what}")
        seen.add(row["path"])
    return rows


def listing(path: Path) -> list[tuple[str, int, int]]:
    """Relative path, size and time of the last change (ns) of each image file, sorted.

    Raises UserError where there is no such folder.
    """
    found = []
    for name, entry in _images(path):
        status = entry.stat()
        found.append((name, status.st_size, status.st_mtime_ns))
    return sorted(found)


def _images(path: Path, account: Account | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a folder with images")
    return walk_images(path, account)


def fold_folders(path: Path) -> dict[str, str]:
    """The folders of the folds ``train`` and ``test``, {} where a folder has none.

    Raises UserError where two have the name of one fold, and where there is one alone.
    """
    found: dict[str, str] = {}
    others = 0
    for place in sorted(each.name for each in path.iterdir() if each.is_dir()):
        kind = FOLD_NAMES.get(place.lower(), "")
        if kind in found:
            raise UserError(
                f"{path} has folders {found[kind]} and {place}, which name the same fold; "
                "rename or remove one"
            )
        if kind:
            found[kind] = place
        else:
            others += not place.startswith(".")
    held_out = found.get("test", found.get("val", ""))
    if "train" in found and held_out:
        return {"train": found["train"], "test": held_out}
    if found and not others:
        alone = next(iter(found.values()))
        raise UserError(
            f"{path} has a folder {alone} and none for the other fold; folds are train and test "
            f"(or val). Add it, or give folder:{path}/{alone}"
        )
    return {}


def lengths(options: Mapping[str, str]) -> tuple[int, int]:
    """The options resize and crop of a folder in pixels, 0 where one is not stated.

    Raises UserError for what is no length, and for a crop that resizing leaves no room for.
    """
    resize, crop = _length(options, "resize"), _length(options, "crop")
    if 0 < resize < crop:
        raise UserError(f"folder option crop={crop} is more than resize={resize} leaves; lower it")
    return resize, crop


def _length(options: Mapping[str, str], key: str) -> int:
    """An option in pixels, 0 where it is not stated."""
    text = options.get(key)
    if text is None:
        return 0
    if not re.fullmatch("[1-9][0-9]{0,3}", text) or int(text) > LONGEST:
        raise UserError(f"folder option {key}={text} must be a whole number from 1 to {LONGEST}")
    return int(text)


def share_of(source: str, options: Mapping[str, str]) -> float:
    """The option ``test``: the share of the images that are the test fold, a fifth if not stated.

    Raises UserError for what is no share.
    """
    text = options.get("test", "0.2")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(
            f"{source} option test={text} must be a number above 0 and up to 1, "
            "the share of the images that are for testing"
        )
    return share


def _split(names: tuple[str, ...], share: float) -> dict[str, tuple[str, ...]]:
    """The folds of a folder without folds, for each image independent of all others.

    The first 8 bytes of the SHA-256 of its relative path, as a number from 0 to 1, are below
    ``share`` for an image of the test fold: when images are added, none of the training fold moves.
    Where none is below, the lowest one is the test fold. The train fold is there if any is left.

    >>> names = tuple(f"{i}.png" for i in range(100))
    >>> {fold: len(held) for fold, held in _split(names, 0.25).items()}
    {'train': 80, 'test': 20}
    >>> _split(("a",), 0.2)
    {'test': ('a',)}
    """
    place = {
        name: int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")
        for name in names
    }
    lowest = min(place.values())
    test = tuple(name for name in names if place[name] < share * 2**64 or place[name] == lowest)
    held_out = set(test)
    train = tuple(name for name in names if name not in held_out)
    return {"train": train, "test": test} if train else {"test": test}


def _class(name: str, depth: int) -> str:
    """The sub-folder of the fold's folder that an image lies in, "" where in none."""
    parts = name.split("/")
    return parts[depth] if len(parts) > depth + 1 else ""


def _classes(folder: Path, names: tuple[str, ...], depth: int) -> tuple[str, ...]:
    """The classes of the images in a fold's folder, () where it has no sub-folders."""
    if not names:
        raise UserError(
            f"no image in {folder}, which is taken for a fold; put images there or rename it "
            "(links to folders are not followed)"
        )
    found = sorted({_class(name, depth) for name in names})
    if found[0]:
        return tuple(found)
    if len(found) > 1:
        loose = next(name for name in names if not _class(name, depth)).split("/")[depth]
        raise UserError(
            f"{folder} has images beside the folder {found[1]}, such as {loose}; "
            "put all images into sub-folders, their classes, or none"
        )
    return ()


def _compare(
    path: Path, places: Mapping[str, str], train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    """Raise UserError where the test fold has classes that the training fold does not have."""
    if bool(train) != bool(test):
        raise UserError(
            f"only one of {path}/{places['train']} and {path}/{places['test']} has sub-folders for "
            "classes; give both the same ones, or none"
        )
    alone = [name for name in test if name not in train]
    if alone:
        raise UserError(
            f"{path}/{places['test']}/{alone[0]} is a class without images in "
            f"{path}/{places['train']}; add or remove it"
        )


def _labels(
    names: tuple[str, ...], classes: tuple[str, ...], depth: int
) -> NDArray[np.int64] | None:
    if not classes:
        return None
    label_of = {name: i for i, name in enumerate(classes)}
    return np.array([label_of[_class(name, depth)] for name in names], np.int64)


def stamp(path: Path) -> str:
    """SHA-256 of the listing: images that came, went or changed give another one."""
    if path.is_file() and path.suffix == ".csv":
        found = [path, *(path.parent / row["path"] for row in _rows(path))]
        listed = repr([(each.stat().st_size, each.stat().st_mtime_ns) for each in found])
        return hashlib.sha256(listed.encode()).hexdigest()[:16]
    listed, places = repr(listing(path)), fold_folders(path)
    if places and places != {"train": "train", "test": "test"}:
        # Folds that were classes before folders of these names counted as folds.
        listed += repr(places)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]
