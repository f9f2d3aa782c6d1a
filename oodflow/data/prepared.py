"""Prepared datasets: each fold once as an array of uint8 N×C×32×32, opened as a memory map.

A dataset is in ``prepared/<slug>/`` below the data folder: ``<fold>.npy``, ``<fold>-labels.npy``,
``<fold>-files.json`` where each image is a file, and ``facts.json``. It is written to a folder
beside it and moved when it is complete, so that a preparation killed at any point leaves nothing
that could be mistaken for data. Everything but the files' names is streamed: the memory needed does
not grow with the dataset.
"""

import dataclasses
import hashlib
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from oodflow.data.catalog import CATALOG, Dataset
from oodflow.data.source import Fold, Piece, Raw
from oodflow.errors import UserError
from oodflow.files import exclusively

__all__ = ["FoldFacts", "Prepared", "digest_of", "find", "keep", "preparing"]

SIDE = 32
BLOCK = 1 << 22
"""Bytes read at once for a digest."""


@dataclass(frozen=True)
class FoldFacts:
    """Size, identity and kind of a prepared fold."""

    count: int
    digest: str
    labelled: bool


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready."""

    facts: Dataset
    """The catalogue's facts with the true number of classes and the true sizes."""
    folder: Path
    folds: Mapping[str, FoldFacts]
    skipped: int
    """Images that could not be read and were left out on request."""
    notes: tuple[str, ...] = ()
    """Lines about files that were left out for other reasons, and about odd ones."""

    def fold(self, fold: str) -> FoldFacts:
        """What is known of a fold; UserError where the dataset has none of that name."""
        if fold in self.folds:
            return self.folds[fold]
        # The catalogue's fact: an absent fold of published files can be had.
        if getattr(CATALOG.get(self.facts.name), f"{fold}_size", 0):
            raise UserError(
                f"{self.facts.name} was prepared without its {fold} fold; get the files of both "
                f"and prepare it again: {preparing(self.facts.name)} --from PATH"
            )
        raise UserError(f"{self.facts.name} has no {fold} fold: it serves as outliers only")

    def arrays(self, fold: str) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Pixels N×C×32×32 and labels N of a fold, mapped into memory, not read.

        Raises UserError where the files are not what ``facts.json`` says.
        """
        known = self.fold(fold)
        pixels = self._map(f"{fold}.npy", (known.count, self.facts.channels, SIDE, SIDE), np.uint8)
        labels = (
            self._map(f"{fold}-labels.npy", (known.count,), np.int64) if known.labelled else None
        )
        return pixels, labels

    def files(self, fold: str) -> list[str] | None:
        """The names of a fold's image files in their order; None where it was not made of files."""
        file = self.folder / f"{fold}-files.json"
        try:
            names = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except PermissionError:
            raise
        except (OSError, ValueError) as error:
            raise self._damaged(file) from error
        if not isinstance(names, list) or len(names) != self.folds[fold].count:
            raise self._damaged(file)
        return names

    def _map(self, name: str, shape: tuple[int, ...], kind: type) -> NDArray:
        file = self.folder / name
        try:
            # Copy on write: torch wants writable memory, and nobody may change the file.
            array = np.load(file, mmap_mode="c", allow_pickle=False)
        # numpy has no one error for a file that is cut or is something else.
        except PermissionError:
            raise
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise self._damaged(file) from error
        if array.shape != shape or array.dtype != kind:
            raise self._damaged(file)
        return array

    def _damaged(self, file: Path) -> UserError:
        return UserError(f"{file} is damaged; make it again: {preparing(self.facts.name)}")


def preparing(name: str) -> str:
    """The command that prepares a dataset, as a shell takes it."""
    return f"oodflow datasets prepare {shlex.quote(name)}"


def digest_of(
    shape: tuple[int, ...], pixels: Iterator[bytes], labels: Iterator[bytes] | None
) -> str:
    """SHA-256 over shape, pixels and labels, the first 16 hexadecimal digits.

    >>> digest_of((1, 3, 32, 32), iter([bytes(3072)]), None)
    'a74042a8cdeb6384'
    """
    # The header tells apart equal bytes of other shapes, and absent labels from an absent image.
    header = json.dumps({"shape": list(shape), "labels": labels is not None})
    running = hashlib.sha256(header.encode())
    for content in (pixels, labels or iter(())):
        for block in content:
            running.update(block)
    return running.hexdigest()[:16]


def find(facts: Dataset, data_dir: Path, stamp: str) -> Prepared | None:
    """The dataset if it is prepared from raw files of this stamp, else None."""
    folder = data_dir / "prepared" / facts.slug
    file = folder / "facts.json"
    try:
        said = json.loads(file.read_text())
        folds = {name: FoldFacts(**each) for name, each in said["folds"].items()}
        classes, skipped, made_from = int(said["classes"]), int(said["skipped"]), said["stamp"]
        notes = tuple(map(str, said.get("notes", ())))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged; make it again: {preparing(facts.name)}") from error
    if made_from != stamp:
        return None
    sizes = {fold: folds[fold].count if fold in folds else 0 for fold in ("train", "test")}
    true = dataclasses.replace(
        facts, classes=classes, train_size=sizes["train"], test_size=sizes["test"]
    )
    return Prepared(true, folder, folds, skipped, notes)


def keep(
    facts: Dataset,
    data_dir: Path,
    stamp: str,
    read: Callable[[], Raw],
    skipped: Callable[[], int],
    needed: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    notes: Callable[[], Iterable[str]] = tuple,
) -> None:
    """Write what a source reads in the prepared form, in place of what is there.

    ``skipped`` and ``notes`` tell at the end what was left out. ``needed`` tells, once no other
    process prepares the dataset, whether there is anything to do. ``on_progress`` gets the number
    of images done and the total.
    Raises UserError where the images have the wrong shape and where nothing can be written.
    """
    target = data_dir / "prepared" / facts.slug
    with _alone(target):
        if not needed():
            return
        unfinished = target.with_name(f".{target.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
            raw = read()
            folds = _write(facts, raw, unfinished, on_progress)
            said = {
                "name": facts.name,
                "folds": {name: dataclasses.asdict(each) for name, each in folds.items()},
                "classes": len(raw.classes) or facts.classes,
                "class_names": raw.classes,
                "skipped": skipped(),
                "notes": list(notes()),
                "stamp": stamp,
            }
            (unfinished / "facts.json").write_text(json.dumps(said, indent=1) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(unfinished, target)
        except OSError as error:
            raise UserError(
                f"{facts.name} cannot be prepared in {target} ({error}); where there is no room, "
                "choose another data folder with data_dir or OODFLOW_DATA"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one process prepares a dataset at a time."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusively(target.with_name(f".{target.name}.lock")))
        except OSError as error:
            raise UserError(
                f"the data folder {target.parent} cannot be written ({error.strerror}); choose "
                "another with data_dir or OODFLOW_DATA"
            ) from error
        yield


def _write(
    facts: Dataset, raw: Raw, folder: Path, on_progress: Callable[[int, int], None]
) -> dict[str, FoldFacts]:
    """All folds of a dataset, into an empty folder."""
    total, done = sum(fold.total for fold in raw.folds.values()), 0
    folds = {}
    for name, fold in raw.folds.items():

        def advance(count: int, before: int = done) -> None:
            on_progress(before + count, total)

        folds[name] = _write_fold(facts, folder, name, fold, advance)
        done += fold.total
    return folds


def _write_fold(
    facts: Dataset, folder: Path, name: str, fold: Fold, advance: Callable[[int], None]
) -> FoldFacts:
    shape = (facts.channels, SIDE, SIDE)
    files = folder / f"{name}.npy", folder / f"{name}-labels.npy"
    count, labels = 0, []
    names: list[str] = []
    with files[0].open("wb") as stream:
        # numpy leaves room in the header, so that the true count fits in afterwards.
        _header(stream, (0, *shape), "|u1")
        for piece in fold.pieces():
            _check(facts, piece, shape)
            stream.write(np.ascontiguousarray(piece.pixels).data)
            count += len(piece.pixels)
            if piece.labels is not None:
                labels.append(piece.labels.astype("<i8"))
            names += piece.files or ()
            advance(count)
        if not count:
            raise UserError(f"the {name} fold of {facts.name} has no image")
        stream.seek(0)
        _header(stream, (count, *shape), "|u1")
    if labels:
        joined = np.concatenate(labels)
        if len(joined) != count:
            raise UserError(f"{facts.name} {name} holds {count} images but {len(joined)} labels")
        np.save(files[1], joined, allow_pickle=False)
    if names:
        (folder / f"{name}-files.json").write_text(json.dumps(names))
    digest = digest_of(
        (count, *shape), _content(files[0], count * math.prod(shape)),
        _content(files[1], count * 8) if labels else None,
    )  # fmt: skip
    return FoldFacts(count, digest, bool(labels))


def _header(stream, shape: tuple[int, ...], descr: str) -> None:
    write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})


def _check(facts: Dataset, piece: Piece, shape: tuple[int, int, int]) -> None:
    if piece.pixels.dtype != np.uint8 or piece.pixels.shape[1:] != shape:
        raise UserError(
            f"{facts.name} holds {piece.pixels.dtype} of shape {piece.pixels.shape[1:]} instead of "
            f"8-bit images of {shape}"
        )


def _content(file: Path, size: int) -> Iterator[bytes]:
    """The last ``size`` bytes of a file in blocks; by reading, since a map would fill memory."""
    with file.open("rb") as stream:
        stream.seek(-size, os.SEEK_END)
        while block := stream.read(BLOCK):
            yield block
