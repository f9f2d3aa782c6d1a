"""The catalogue of datasets: name → facts that are known without loading an image.

Imports neither torch nor numpy, so that the command line can read it to print its help.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from oodflow.errors import unknown_name

__all__ = ["CATALOG", "FOLDS", "Dataset", "data_folder", "lookup"]

FOLDS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """Facts about one dataset; images are 32×32 once loaded (S5)."""

    name: str
    role: str
    """``in_distribution``, ``general`` or ``outlier``: what it is for when nothing else is said."""
    channels: int
    classes: int
    """Number of classes; 0 means that the images have no labels."""
    train_size: int
    test_size: int
    translate: int
    """Training images are shifted by up to so many pixels in x and in y (S4.1)."""
    flip: bool
    """Whether half of the training images are mirrored (S4.1)."""
    general: str
    """The general set that matches it, or "" where the catalogue has none."""
    ood: tuple[str, ...]
    """Outlier datasets it is tested against by default, when it is the in-distribution."""
    where: str
    """Path of its files below the data folder; "" for datasets that are generated."""
    obtain: str
    """One sentence: how to get it."""


def _sketch(
    name: str,
    role: str,
    classes: int,
    flip: bool,
    ood: tuple[str, ...] = (),
) -> Dataset:
    return Dataset(
        name=name,
        role=role,
        channels=3,
        classes=classes,
        train_size=20_000,
        test_size=1_000,
        translate=3,
        flip=flip,
        general="" if role == "general" else "sketch-general",
        ood=ood,
        where="",
        obtain="It is generated when it is first used; nothing is downloaded.",
    )


def _published(
    name: str,
    channels: int,
    classes: int,
    sizes: tuple[int, int],
    flip: bool,
    ood: tuple[str, ...],
    where: str,
) -> Dataset:
    return Dataset(
        name=name,
        role="in_distribution",
        channels=channels,
        classes=classes,
        train_size=sizes[0],
        test_size=sizes[1],
        translate=3,
        flip=flip,
        general="",
        ood=ood,
        where=where,
        obtain=f"Run `oodflow datasets prepare {name} --download`, or copy its files there.",
    )


_ENTRIES = (
    # Mirrored letters and digits would be other signs, mirrored shapes are shapes.
    _sketch(
        "sketch-shapes",
        "in_distribution",
        10,
        True,
        ("sketch-digits", "sketch-letters", "sketch-scenes"),
    ),
    _sketch(
        "sketch-letters",
        "in_distribution",
        10,
        False,
        ("sketch-digits", "sketch-shapes", "sketch-scenes"),
    ),
    _sketch(
        "sketch-digits",
        "in_distribution",
        10,
        False,
        ("sketch-shapes", "sketch-letters", "sketch-scenes"),
    ),
    _sketch("sketch-scenes", "outlier", 0, True),
    _sketch("sketch-general", "general", 0, True),
    _published(
        "cifar10", 3, 10, (50_000, 10_000), True, ("svhn", "cifar100"), "cifar-10-batches-py"
    ),
    _published("cifar100", 3, 100, (50_000, 10_000), True, ("svhn", "cifar10"), "cifar-100-python"),
    _published("svhn", 3, 10, (73_257, 26_032), False, ("cifar10", "cifar100"), "svhn"),
    _published("mnist", 1, 10, (60_000, 10_000), False, ("fashion-mnist",), "MNIST/raw"),
    _published("fashion-mnist", 1, 10, (60_000, 10_000), False, ("mnist",), "FashionMNIST/raw"),
)

CATALOG: Mapping[str, Dataset] = MappingProxyType({each.name: each for each in _ENTRIES})
"""Every dataset by its name."""


def lookup(name: str) -> Dataset:
    """The facts about a dataset; raises UserError with the known names for an unknown one.

    >>> lookup("cifar10").ood
    ('svhn', 'cifar100')
    """
    if name not in CATALOG:
        raise unknown_name("dataset", name, CATALOG)
    return CATALOG[name]


def data_folder(given: str) -> Path:
    """The folder that holds the datasets.

    The given one; for ``auto`` the one in OODFLOW_DATA, else ``oodflow`` in the user's cache
    folder (XDG_CACHE_HOME, else ``~/.cache``). It need not exist.
    """
    if given != "auto":
        return Path(given).expanduser()
    if named := os.environ.get("OODFLOW_DATA"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "oodflow"
