"""Images by the name of their dataset: prepared at the first use, opened as tensors afterwards."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from oodflow.data import grey
from oodflow.data.account import Account
from oodflow.data.catalog import FOLDS, OWN, Dataset, lookup, plugin_of
from oodflow.data.prepared import Prepared, find, keep
from oodflow.data.source import Request, refuse_broken
from oodflow.errors import UserError

__all__ = [
    "Images",
    "describe",
    "download",
    "images_of",
    "lack",
    "load",
    "prepare",
    "present",
    "raw_path",
    "ready",
    "sampled",
]

SOURCES: Mapping[str, str] = {
    "sketch": "oodflow.data.sketch",
    "torchvision": "oodflow.data.torchvision_sets",
    "idx": "oodflow.data.idx_files",
    "rows": "oodflow.data.pixel_rows",
    "lsun": "oodflow.data.lsun",
    "celeba": "oodflow.data.celeba",
    "tinyimagenet": "oodflow.data.tinyimagenet",
    "brats": "oodflow.data.brats",
    "tiny": "oodflow.data.tiny",
    "arrays": "oodflow.data.arrays",
    "imagenet32": "oodflow.data.imagenet32",
    "folder": "oodflow.data.folder",
    "array": "oodflow.data.array_files",
    "collage": "oodflow.data.collage",
}
"""Module behind each source; imported when it is needed, since some bring large libraries."""

CHANGING = ("sketch", *OWN, "collage")
"""Sources whose ``stamp(path)`` shows whether the prepared form is still valid.

The files of the others do not change.
"""

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one fold of a dataset."""

    name: str
    fold: str
    pixels: Tensor
    """uint8 N×C×32×32; a memory map that is read where it is used."""
    labels: Tensor | None
    """int64 N, or None where the dataset has no labels."""
    digest: str
    """Identity of the content: see :func:`oodflow.data.prepared.digest_of`."""
    files: list[str] | None = None
    """Each image's file, relative to the folder; None where images are no files."""


def raw_path(facts: Dataset, data_dir: Path) -> Path:
    """Where a dataset's raw files are, or else are expected; the data folder for generated ones."""
    expected = data_dir / facts.where
    others = (place for each in facts.elsewhere for place in _places(each, data_dir))
    return next((each for each in (expected, *others) if _whole(facts, each)), expected)


def _whole(facts: Dataset, path: Path) -> bool:
    return path.exists() and not _missing(facts, path)


def _missing(facts: Dataset, path: Path) -> list[str]:
    """What a dataset needs below the place of its raw files and is not there."""
    return [need for need in facts.needs if not (path / need).exists()]


def _places(named: str, data_dir: Path) -> list[Path]:
    """The paths that an ``elsewhere`` of the catalogue may mean."""
    kind, _, inner = named.rpartition(":")
    if kind == "share":
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        return [Path(folder, inner) for folder in shared.split(":") if folder]
    if kind == "python":
        # Found, not imported.
        package = find_spec(inner.partition("/")[0])
        roots = (package and package.submodule_search_locations) or ()
        return [Path(root).parent / inner for root in roots]
    return [data_dir / inner]


def describe(name: str, data_dir: Path, on_progress: Progress = _silent) -> Prepared:
    """The dataset's true sizes, classes and digests; it is prepared where it is not yet.

    Raises UserError for an unknown dataset, and raw files that are absent or damaged.
    """
    facts = lookup(name)
    found = find(facts, data_dir, _stamp(facts, data_dir))
    if found is None:
        prepare(name, data_dir, on_progress=on_progress, again=False)
        found = find(facts, data_dir, _stamp(facts, data_dir))
    if found is None:
        raise UserError(f"{name} changed while it was read; try again")
    return found


def ready(name: str, data_dir: Path) -> Prepared | None:
    """The dataset where it is prepared already and its name still known, else None."""
    try:
        facts = lookup(name)
        return find(facts, data_dir, _stamp(facts, data_dir))
    except UserError:
        return None


def load(
    name: str, fold: str, data_dir: Path, limit: int = 0, on_progress: Progress = _silent
) -> Images:
    """The images of one fold, the first ``limit`` of them unless it is 0.

    Raises UserError for an unknown dataset or fold, a negative limit, and files that are absent
    or damaged.
    """
    lookup(name)
    _check(name, fold, limit)
    return images_of(describe(name, data_dir, on_progress), fold, limit)


def _check(name: str, fold: str, limit: int) -> None:
    if fold not in FOLDS:
        raise UserError(f"unknown fold {fold!r} of {name}; available: {', '.join(FOLDS)}")
    if limit < 0:
        raise UserError(f"limit is {limit}; it must be 0 (all images) or a number of images")


def images_of(ready: Prepared, fold: str, limit: int = 0) -> Images:
    """The images of one fold of a prepared dataset, as :func:`load` gives them."""
    name = ready.facts.name
    _check(name, fold, limit)
    known = ready.fold(fold)
    pixels, labels = ready.arrays(fold)
    digest, files = known.digest, ready.files(fold)
    if 0 < limit < known.count:
        # The first images are known by the whole and their number, without reading them.
        digest = sha256(f"{digest}/{limit}".encode()).hexdigest()[:16]
        pixels, labels = pixels[:limit], None if labels is None else labels[:limit]
        files = files and files[:limit]
    return Images(
        name,
        fold,
        torch.from_numpy(pixels),
        None if labels is None else torch.from_numpy(labels),
        digest,
        files,
    )


def sampled(images: Images, count: int, seed: int) -> Images:
    """A random subset of so many images, in their order; all where there are no more."""
    positions = subset_of(images.name, len(images.pixels), count, seed)
    return Images(
        images.name,
        images.fold,
        images.pixels[positions],
        None if images.labels is None else images.labels[positions],
        sha256(f"{images.digest}/{len(positions)}/{seed}".encode()).hexdigest()[:16],
        images.files and [images.files[place] for place in positions.tolist()],
    )


def subset_of(name: str, total: int, count: int, seed: int) -> Tensor:
    """Ascending positions of a random subset of a dataset's images."""
    state = int(sha256(f"{seed}/{name}".encode()).hexdigest()[:15], 16)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(state))
    return order[:count].sort().values


def prepare(
    name: str,
    data_dir: Path,
    path: Path | None = None,
    skip_broken: bool = False,
    exclude: tuple[Path, ...] = (),
    again: bool = True,
    on_progress: Progress = _silent,
) -> None:
    """Read a dataset's raw files into the prepared form, in place of what is there.

    Without ``again`` a prepared form that still holds is left alone. ``path`` is where the raw
    files are, when not where they are expected. Images that cannot be read end it
    with a UserError, or with ``skip_broken`` are left out and counted.
    """
    facts = lookup(name)
    skipped: list[str] = []

    def needed() -> bool:
        return again or find(facts, data_dir, _stamp(facts, data_dir)) is None

    def leave_out(which: str, why: str) -> None:
        skipped.append(which)

    if facts.source == "grey":
        base = describe(facts.name.removesuffix("-grey"), data_dir, on_progress)
        keep(
            facts,
            data_dir,
            grey.stamp(base),
            lambda: grey.read(base),
            lambda: base.skipped,
            needed,
            on_progress,
            lambda: base.notes,
        )
        return
    path = _found(facts, path or raw_path(facts, data_dir))
    read = facts.read or import_module(SOURCES[facts.source]).read
    on_broken, account = leave_out if skip_broken else refuse_broken, Account()
    try:
        keep(
            facts,
            data_dir,
            # The stamp comes first, so that a change during reading is noticed.
            _stamp(facts, data_dir),
            lambda: read(Request(facts, path, on_broken, exclude, account)),
            lambda: len(skipped),
            needed,
            on_progress,
            account.lines,
        )
    except Exception as error:
        if isinstance(error, UserError) or not facts.read:
            raise
        raise UserError(
            f"plug-in {plugin_of(name)} cannot read its dataset {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _stamp(facts: Dataset, data_dir: Path) -> str:
    if facts.source == "grey":
        base = lookup(facts.name.removesuffix("-grey"))
        found = find(base, data_dir, _stamp(base, data_dir))
        return grey.stamp(found) if found else "the RGB dataset is not prepared"
    if facts.read:
        # Another version of the package may read other images.
        return plugin_of(facts.name)
    if facts.source not in CHANGING:
        return ""
    return import_module(SOURCES[facts.source]).stamp(raw_path(facts, data_dir))


def present(name: str, data_dir: Path) -> bool:
    """Whether a dataset is prepared, or its raw files (or the generator) are there to do it."""
    return not lack(name, data_dir)


def lack(name: str, data_dir: Path) -> str:
    """Why a dataset is not present, in one line, or "".

    Raw files are looked at as far as our sources do so before they read the images.
    """
    facts = lookup(name)
    if facts.source == "grey":
        return lack(facts.name.removesuffix("-grey"), data_dir)
    if not facts.where:
        return ""
    try:
        if find(facts, data_dir, _stamp(facts, data_dir)) is None:
            path = _found(facts, raw_path(facts, data_dir))
            # What another package's reader costs and raises is not known; ``needs`` says enough.
            if not facts.read and not facts.needs:
                import_module(SOURCES[facts.source]).read(Request(facts, path))
    except UserError as error:
        return str(error)
    return ""


def _found(facts: Dataset, path: Path) -> Path:
    """The absolute path of raw files; UserError where there is nothing."""
    path = path.expanduser().absolute()
    if facts.where and not path.exists():
        raise UserError(f"{facts.name} is not at {path}. {facts.obtain}")
    if missing := _missing(facts, path):
        raise UserError(f"{facts.name}: {path} has no {' and no '.join(missing)}. {facts.obtain}")
    return path


def download(name: str, data_dir: Path) -> None:
    """Put a dataset's raw files where :func:`prepare` looks for them.

    Raises UserError where that fails, and for a dataset that its makers do not let be downloaded.
    """
    facts = lookup(name)
    if facts.downloadable:
        from oodflow.data import torchvision_sets

        torchvision_sets.download(name, data_dir)
    elif facts.where:
        raise UserError(f"{name} cannot be downloaded by this command. {facts.obtain}")
