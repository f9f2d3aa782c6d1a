"""Scoring of images by all processes of a training, each with its share."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from oodflow.evaluation.scoring import score_images
from oodflow.tracking.run_info import RunInfo
from oodflow.training.distributed import broadcast, gather, rank, world
from oodflow.workflow.session import Session

__all__ = ["Scoring", "score_together"]


@dataclass(frozen=True)
class Scoring:
    """What is to be scored: a fold of a dataset, by a run's model."""

    run: RunInfo
    dataset: str
    fold: str
    limit: int
    dequantised: bool = True


def score_together(
    session: Session, scoring: Scoring, on_progress: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """The score table of all images on the first process, an empty one on the others.

    The others are to call this with the :class:`Scoring` that they get by ``broadcast``.
    """
    if rank() == 0:
        broadcast(scoring)
    images = session.images(scoring.dataset, scoring.fold, scoring.limit)
    count = len(images.pixels)
    own = slice(count * rank() // world(), count * (rank() + 1) // world())
    table = pd.DataFrame()
    # Of fewer images than processes some have none.
    if own.start < own.stop or world() == 1:
        table = score_images(
            session.model(scoring.run).model,
            images.pixels[own],
            None if images.labels is None else images.labels[own],
            device=session.device,
            first=own.start,
            dequantised=scoring.dequantised,
            on_progress=on_progress and (lambda done: on_progress(min(done * world(), count))),
        )
    tables = [each for each in gather(table) if len(each)]
    if rank():
        return pd.DataFrame()
    return pd.concat(tables, ignore_index=True) if tables else table
