"""Score tables behind a report's numbers, and bootstrap replicates of AUROCs from them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from oodflow.errors import UserError
from oodflow.evaluation.bootstrap import bootstrap_auroc, resample_counts
from oodflow.evaluation.score_table import read_table
from oodflow.evaluation.scores import SCORES, clip_non_finite, compute_scores
from oodflow.tracking import runs
from oodflow.tracking.registry import Registry
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store

__all__ = ["Scored", "check_same_images", "read_scores", "replicates_of"]

Scored = tuple[pd.DataFrame, str]
"""A score table and the digest of its images."""


def read_scores(store: Store, run_id: str, dataset: str) -> Scored:
    """A dataset's score table under a run's model; UserError where it is lost or damaged."""
    with runs.artifact(store, run_id, f"scores/{dataset}-test.parquet") as local:
        found, facts = read_table(local)
    return found, facts["images"]


def check_same_images(dataset: str, *tables: Scored) -> None:
    """Raise UserError where tables of a dataset are of different images."""
    if len({images for _, images in tables}) > 1:
        raise UserError(f"score tables of {dataset} are of different images")


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
        # A score that needs more than general models has no intervals.
        others = {
            need: table(run.tags[f"{need}_run"], dataset)
            for need in SCORES[score].needs
            if f"{need}_run" in run.tags
        }
        check_same_images(dataset, own, *others.values())
        found, images = own
        tables = {need: contrast for need, (contrast, _) in others.items()}
        return compute_scores(found, names=[score], **tables)[score], images

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
