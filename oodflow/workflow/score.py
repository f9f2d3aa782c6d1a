"""``oodflow score``: log-likelihoods of image files under a run's model, one row per image."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from oodflow import console
from oodflow.data.account import Account
from oodflow.data.archives import find_images
from oodflow.data.catalog import is_own
from oodflow.data.image_files import printable
from oodflow.detection.inputs import InputImage
from oodflow.detection.preprocessing import Preprocessing, remembered
from oodflow.detection.stream import side_by_side
from oodflow.errors import UserError
from oodflow.evaluation.scoring import score_images
from oodflow.models.device import available_device
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import ScoreOptions
from oodflow.tracking.database import local_artifact
from oodflow.tracking.run_info import tracking_uri
from oodflow.training.checkpoint import MODEL_FILE, load_model

__all__ = ["command", "score_files", "score_pixels"]

WRITERS: Mapping[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}


def command(options: ScoreOptions) -> int:
    """Score, write, and list what could not be read; returns the exit code."""
    target = Path(options.out)
    if target.suffix not in WRITERS:
        raise UserError(f"--out {target} must end in {' or '.join(WRITERS)}")
    place = available_device(options.device)
    with _checkpoint(options.run) as file:
        model, experiment, _ = load_model(file)
    account = Account()
    files = list(find_images([Path(path) for path in options.paths], account))
    # A folder has images of any size, so it is known what becomes of them.
    resize = options.resize or is_own(experiment.data.dataset)
    model = model.to(place).eval()
    table, unreadable = score_files(model, remembered(experiment), files, resize, place, account)
    if len(table):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            WRITERS[target.suffix](table, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        console.say(f"{len(table)} images scored: {target}")
    for line in account.lines():
        console.say(line)
    for name, problem in unreadable.items():
        console.error(f"{name} cannot be read: {problem}")
    return 1 if unreadable else 0


def score_files(
    model: LikelihoodModel,
    preprocessing: Preprocessing,
    files: Sequence[Path],
    resize: bool,
    device: torch.device,
    account: Account,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row per image: file, log_prob (nats), scale1 …, last_scale, bpd; and what was unreadable.

    The images are prepared as those of the training were. One of a size that the training's never
    had is resized with ``resize``; without, UserError names it.
    """
    shape = model.image_shape
    names: list[str] = []
    tables: list[pd.DataFrame] = []
    unreadable: dict[str, str] = {}

    def score(inputs: Sequence[InputImage], on_batch: Callable[[int], None]) -> pd.DataFrame:
        pixels = [each.pixels for each in inputs if each.pixels is not None]
        return _table(model, np.stack(pixels), device, on_batch) if pixels else pd.DataFrame()

    with console.progress("scoring", len(files)) as advance:
        for part, inputs, table in side_by_side(files, preprocessing, device, score):
            for file, each in zip(part, inputs, strict=True):
                for kind in each.remarks:
                    account.remark(kind, printable(file))
                if each.pixels is None:
                    unreadable[printable(file)] = each.error
                elif not resize and not preprocessing.covers(each.size):
                    raise UserError(
                        f"{printable(file)} is {each.size[0]}×{each.size[1]}, the model scores "
                        f"{shape[2]}×{shape[1]}; use --resize"
                    )
                else:
                    names.append(printable(file))
            tables.append(table)
            advance(len(names) + len(unreadable))
    table = pd.concat(tables, ignore_index=True)
    if len(table):
        table.insert(0, "file", names)
    return table, unreadable


def score_pixels(
    model: LikelihoodModel, pixels: NDArray[np.uint8], device: torch.device
) -> pd.DataFrame:
    """One row per image of uint8 N×C×H×W: log_prob (nats), scale1 …, last_scale, bpd."""
    with console.progress("scoring", len(pixels)) as advance:
        return _table(model, pixels, device, advance)


def _table(
    model: LikelihoodModel,
    pixels: NDArray[np.uint8],
    device: torch.device,
    on_progress: Callable[[int], None],
) -> pd.DataFrame:
    # torch takes no memory that it could not write to.
    images = torch.from_numpy(np.require(pixels, None, ["C", "W"]))
    scored = score_images(model, images, None, device=device, on_progress=on_progress)
    scales = [f"scale{i + 1}" for i in range(model.scales)]
    table = scored[["log_prob", *(name for name in scales if name in scored)]].copy()
    if model.scales > 1:
        table["last_scale"] = table[scales[-1]]
    table["bpd"] = -table["log_prob"] / (math.prod(model.image_shape) * math.log(2))
    return table


@contextmanager
def _checkpoint(reference: str) -> Iterator[Path]:
    """The weights of a run, straight from its folder where that is on this machine."""
    path = f"checkpoints/{MODEL_FILE}"
    local = local_artifact(tracking_uri(), reference, path)
    if local:
        yield local
        return
    # Imported where they are needed: mlflow takes longer than scoring a thousand images.
    from oodflow.tracking import runs
    from oodflow.tracking.store import open_store

    store = open_store()
    run = runs.resolve(store, reference)
    if not run.has_model:
        raise run.without_model()
    with runs.artifact(store, run.run_id, path) as file:
        yield file
