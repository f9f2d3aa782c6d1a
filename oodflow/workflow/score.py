"""``oodflow score``: log-likelihoods of image files under a run's model, one row an image."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from oodflow import console
from oodflow.data.image_files import UnreadableImage, find_images, read_image
from oodflow.errors import UserError
from oodflow.evaluation.scoring import score_images
from oodflow.options import PlaceOptions
from oodflow.tracking import runs
from oodflow.workflow.session import open_session

__all__ = ["command"]

WRITERS: Mapping[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}


def command(run: str, paths: Sequence[str], out: str, resize: bool, device: str) -> int:
    """Score, write, and list what could not be read; returns the exit code."""
    target = Path(out)
    if target.suffix not in WRITERS:
        raise UserError(f"--out {out} must end in {' or '.join(WRITERS)}")
    session = open_session(PlaceOptions(device=device))
    loaded = session.model(runs.resolve(session.store, run))
    shape = loaded.model.image_shape
    names, pixels, unreadable = [], [], {}
    files = find_images([Path(path) for path in paths])
    with console.progress("reading", len(files)) as advance:
        for done, file in enumerate(files, start=1):
            try:
                pixels.append(read_image(file, shape, resize))
                names.append(str(file))
            except UnreadableImage as error:
                unreadable[file] = str(error)
            advance(done)
    if pixels:
        with console.progress("scoring", len(pixels)) as advance:
            table = score_images(
                loaded.model,
                torch.stack(pixels),
                None,
                device=session.device,
                on_progress=advance,
            )
        scales = [f"scale{i + 1}" for i in range(loaded.model.scales)]
        result = table[["log_prob", *(name for name in scales if name in table)]].copy()
        result.insert(0, "file", names)
        if loaded.model.scales > 1:
            result["last_scale"] = result[scales[-1]]
        result["bpd"] = -result["log_prob"] / (math.prod(shape) * math.log(2))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            WRITERS[target.suffix](result, target)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}") from error
        console.say(f"{len(result)} images scored: {out}")
    for file, problem in unreadable.items():
        console.error(f"{file} cannot be read: {problem}")
    return 1 if unreadable else 0
