"""Bootstrap replicates for frames of AUROCs, from the score tables behind their numbers."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from oodflow.errors import UserError
from oodflow.evaluation.bootstrap import bootstrap_auroc, resample_counts
from oodflow.evaluation.scores import clip_non_finite, compute_scores
from oodflow.reports.registry import CONTRASTS, Registry
from oodflow.reports.scored import check_same_images, read_scores
from oodflow.tracking.runs import RunInfo
from oodflow.tracking.store import Store

__all__ = ["replicates_of"]


def replicates_of(
    store: Store, registry: Registry, count: int, on_progress: Callable[[int], None]
) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A function that adds the column ``replicates`` to a frame of AUROCs, ``count`` each.

    A number whose score tables are not there or are of other images has None. ``on_progress`` gets
    how many numbers are done.
    """
    done = 0
    by_id = {run.run_id: run for run in (*registry.training, *registry.evaluations)}

    table = lru_cache(maxsize=64)(partial(read_scores, store))
    counts = lru_cache(maxsize=16)(resample_counts)

    def scores(run: RunInfo, score: str, dataset: str) -> tuple[np.ndarray, str]:
        if score == "general":
            found, images = table(run.tags["general_run"], dataset)
            return clip_non_finite(found["log_prob"].to_numpy()), images
        own = table(run.tags.get("evaluated", run.run_id), dataset)
        contrast = None
        if score in CONTRASTS:
            general = table(run.tags[CONTRASTS[score]], dataset)
            check_same_images(dataset, own, general)
            contrast, _ = general
        found, images = own
        # The ratio is the same arithmetic whichever general model it is to.
        return compute_scores(found, contrast)["diff" if contrast is not None else score], images

    def values(run_id: str, metric: str) -> np.ndarray | None:
        run = by_id[run_id]
        ood, score = metric.removeprefix("auroc/").rsplit("/", 1)
        # A lost or damaged score table costs the interval, not the report.
        with suppress(UserError, KeyError):
            inliers, own_images = scores(run, score, run.tags["dataset"])
            outliers, other_images = scores(run, score, ood)
            return bootstrap_auroc(
                inliers,
                outliers,
                counts(own_images, len(inliers), count),
                counts(other_images, len(outliers), count),
            )
        return None

    def all_values(frame: pd.DataFrame) -> Iterator[np.ndarray | None]:
        nonlocal done
        for run_id, metric in zip(frame["run_id"], frame["metric"], strict=True):
            yield values(run_id, metric) if metric.startswith("auroc/") else None
            done += 1
            on_progress(done)

    return lambda frame: frame.assign(
        replicates=pd.Series(list(all_values(frame)), index=frame.index, dtype=object)
    )
