"""Score tables of runs' test folds, for what is computed from several of them at once."""

import pandas as pd

from oodflow.errors import UserError
from oodflow.evaluation.tables import read_table
from oodflow.tracking import runs
from oodflow.tracking.store import Store

__all__ = ["Scored", "check_same_images", "read_scores"]

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
