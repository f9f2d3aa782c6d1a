"""``oodflow score``: log-likelihoods of image files under a run's model, one row per image."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from oodflow import console
from oodflow.data.image_files import UnreadableImage, find_images, read_image
from oodflow.errors import UserError
from oodflow.evaluation.scoring import score_images
from oodflow.models.device import available_device
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import ScoreOptions
from oodflow.tracking.database import local_artifact
from oodflow.tracking.run_info import tracking_uri
from oodflow.training.checkpoint import MODEL_FILE, load_model

__all__ = ["command", "score_files"]

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
        model, _, _ = load_model(file)
    files = find_images([Path(path) for path in options.paths])
    table, unreadable = score_files(model.to(place).eval(), files, options.resize, place)
    if len(table):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            WRITERS[target.suffix](table, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        console.say(f"{len(table)} images scored: {target}")
    for name, problem in unreadable.items():
        console.error(f"{name} cannot be read: {problem}")
    return 1 if unreadable else 0


def score_files(
    model: LikelihoodModel, files: Sequence[Path], resize: bool, device: torch.device
) -> tuple[pd.DataFrame, dict[Path, str]]:
    """One row per image: file, log_prob (nats), scale1 …, last_scale, bpd; and what was unreadable.

    With ``resize`` images of another size than the model's are resized, else they are unreadable.
    """
    shape = model.image_shape
    names, pixels, unreadable = [], [], {}
    with console.progress("reading", len(files)) as advance:
        for done, file in enumerate(files, start=1):
            try:
                pixels.append(read_image(file, shape, resize))
                names.append(str(file))
            except UnreadableImage as error:
                unreadable[file] = str(error)
            advance(done)
    if not pixels:
        return pd.DataFrame(), unreadable
    with console.progress("scoring", len(pixels)) as advance:
        scored = score_images(model, torch.stack(pixels), None, device=device, on_progress=advance)
    scales = [f"scale{i + 1}" for i in range(model.scales)]
    table = scored[["log_prob", *(name for name in scales if name in scored)]].copy()
    table.insert(0, "file", names)
    if model.scales > 1:
        table["last_scale"] = table[scales[-1]]
    table["bpd"] = -table["log_prob"] / (math.prod(shape) * math.log(2))
    return table, unreadable


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
    if "weights" not in run.tags:
        raise UserError(f"run {run.run_id} ({run.name}) holds no model; choose a training run")
    with runs.artifact(store, run.run_id, path) as file:
        yield file
