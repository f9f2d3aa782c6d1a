"""``oodflow datasets``: the catalogue, and how to get, prepare and check a dataset."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Column, Table

from oodflow import console
from oodflow.data.catalog import CATALOG, FOLDS, OWN, Dataset, data_folder, lookup
from oodflow.data.images import download, lack, prepare, raw_path
from oodflow.data.prepared import Prepared, digest_of, preparing
from oodflow.data.resampling import compared, traces_of
from oodflow.errors import UserError
from oodflow.options import CheckOptions, DatasetListOptions, PrepareOptions
from oodflow.workflow.session import described

__all__ = ["check_command", "list_command", "prepare_command"]

CHUNK = 8192
"""Images read at once; the memory a check needs does not grow with the dataset."""

LESS = ("expected at", "classes", "channels")
"""Columns of the list that a narrow terminal does without."""

SHEET = (8, 12)
"""Rows and columns of a contact sheet."""
GAP = 2
"""Pixels between the images of a contact sheet."""


def list_command(options: DatasetListOptions) -> None:
    """The catalogue as a table, what is present in the data folder, and how to get the rest."""
    folder = data_folder(options.data_dir)
    lacks = {name: lack(name, folder) for name in CATALOG}
    if options.json:
        console.say_json([_values(each, lacks[each.name]) for each in CATALOG.values()])
        return
    rows, absent = [], []
    for facts in CATALOG.values():
        problem = lacks[facts.name]
        if problem and facts.source != "grey":
            absent.append((facts, problem))
        where = "(from the RGB form)" if facts.source == "grey" else facts.where or "(generated)"
        row = {
            "name": facts.name,
            "role": facts.role.replace("_", "-"),
            "channels": str(facts.channels),
            "classes": str(facts.classes or ""),
            "train": f"{facts.train_size:,}" if facts.train_size else "",
            "test": f"{facts.test_size:,}",
            "present": "no" if problem else "yes",
            "expected at": where,
        }
        rows.append(row)
    console.show_rows(rows, "expected at", LESS)
    console.say(f"data folder: {folder}")
    console.say("your own images: folder:PATH, array:FILE; see oodflow datasets prepare --help")
    if absent:
        console.say("how to get those not present:")
    for facts, problem in absent:
        # Files that are there and cannot be used are what to mend.
        there = raw_path(facts, folder).exists()
        console.say(f"  {facts.name}: {problem if there else facts.obtain}")


def _values(facts: Dataset, problem: str) -> dict[str, Any]:
    """A dataset of the catalogue as JSON has it; ``problem`` is why it is not present, or ""."""
    whole = dataclasses.asdict(facts)
    names = ("name", "role", "channels", "classes", "train_size", "test_size", "generals", "ood")
    more = {"present": not problem, "problem": problem, "expected_at": facts.where}
    return {name: whole[name] for name in names} | more | {"obtain": facts.obtain}


def prepare_command(options: PrepareOptions) -> None:
    """Read a dataset's raw files into the prepared form, in place of what is there."""
    name, source, exclude = options.dataset, options.source, options.exclude
    facts, folder = lookup(name), data_folder(options.data_dir)
    if source and (facts.source in (*OWN, "grey") or not facts.where):
        raise UserError(f"{name} is not made from files at another place; leave --from out")
    if exclude and facts.name != "tiny":
        raise UserError(f"--exclude is for tiny; {name} has no numbered records")
    if options.download:
        console.say(f"downloading {name} to {folder / facts.where} …")
        download(name, folder)
    with console.progress(f"preparing {name}", 0) as advance:
        prepare(
            name,
            folder,
            Path(source) if source else None,
            options.skip_broken,
            tuple(Path(each) for each in exclude),
            on_progress=lambda done, total: advance(done, total=total),
        )
    ready = described(name, folder)
    for fold, known in ready.folds.items():
        console.say(f"{name} {fold}: {known.count:,} images, digest {known.digest}")
    for fold in FOLDS:
        if getattr(facts, f"{fold}_size") and fold not in ready.folds:
            console.say(f"{name} {fold}: not among the files, so only the other fold is used")
    _say_notes(ready)
    if ready.skipped:
        console.say(f"{ready.skipped} images could not be read and were left out")
    console.say(f"kept in {ready.folder}")


def _say_notes(ready: Prepared) -> None:
    for note in ready.notes:
        console.say(f"{ready.facts.name}: {note}")


def check_command(options: CheckOptions) -> None:
    """Read a prepared dataset through: counts, shape, digest, statistics, and a contact sheet."""
    ready = described(options.dataset, data_folder(options.data_dir))
    digest = Column("digest", no_wrap=True)
    table = Table("fold", "images", "shape", "classes", digest, "mean", "std", "labels")
    for fold in ready.folds:
        table.add_row(*_checked(ready, fold))
    console.show(table)
    _say_notes(ready)
    _check_resizing(ready, data_folder(options.data_dir))
    file = Path(options.out) if options.out else Path(f"{ready.facts.slug}-contact-sheet.png")
    try:
        contact_sheet(ready).save(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {file} ({error}); choose another with --out") from error
    console.say(f"contact sheet: {file}")


def _check_resizing(ready: Prepared, folder: Path) -> None:
    """Say how the images were resized, and warn where sets used with them were not so."""
    facts = ready.facts
    if traces := traces_of(ready.arrays("test" if "test" in ready.folds else "train")[0]):
        console.say(f"resizing: {facts.slug} {traces}")
    with_it = [e.name for e in CATALOG.values() if facts.name in (*e.generals, *e.ood)]
    if line := compared(facts.name, (*facts.generals, *facts.ood, *with_it), folder):
        console.say(f"warning: {line}")


def _checked(ready: Prepared, fold: str) -> tuple[str, ...]:
    """A row of the check: UserError where the pixels are not those that were prepared."""
    known = ready.folds[fold]
    pixels, labels = ready.arrays(fold)
    sums, squares = np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1])
    with console.progress(f"checking {ready.facts.name} {fold}", known.count) as advance:

        def blocks():
            nonlocal sums, squares
            for start in range(0, len(pixels), CHUNK):
                block = np.array(pixels[start : start + CHUNK])
                # Levels are small whole numbers: their sums and squares are exact in float64.
                levels = block.astype(np.float64)
                sums += levels.sum((0, 2, 3))
                squares += (levels**2).sum((0, 2, 3))
                advance(start + len(block))
                yield block.tobytes()

        digest = digest_of(
            pixels.shape, blocks(), None if labels is None else iter([labels.tobytes()])
        )
    if digest != known.digest:
        raise UserError(
            f"{ready.folder / f'{fold}.npy'} has digest {digest}, prepared was {known.digest}; "
            f"make it again: {preparing(ready.facts.name)}"
        )
    count = pixels[:, 0].size
    mean, std = sums / count, np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0))
    used = "" if labels is None else f"{labels.min()} to {labels.max()}"
    return (
        fold,
        f"{known.count:,}",
        "×".join(map(str, pixels.shape[1:])),
        str(ready.facts.classes or ""),
        digest,
        " ".join(f"{value:.1f}" for value in mean),
        " ".join(f"{value:.1f}" for value in std),
        used,
    )


def contact_sheet(ready: Prepared) -> Image.Image:
    """Images from all over the first fold, evenly spaced, in rows."""
    pixels, _ = ready.arrays(next(iter(ready.folds)))
    rows, columns = SHEET
    chosen = np.linspace(0, len(pixels) - 1, min(rows * columns, len(pixels))).astype(int)
    side = pixels.shape[-1] + GAP
    sheet = Image.new("RGB", (columns * side + GAP, rows * side + GAP), "white")
    for place, index in enumerate(chosen):
        image = np.broadcast_to(pixels[index], (3, *pixels.shape[2:])).transpose(1, 2, 0)
        row, column = divmod(place, columns)
        sheet.paste(
            Image.fromarray(np.ascontiguousarray(image)), (GAP + column * side, GAP + row * side)
        )
    return sheet
