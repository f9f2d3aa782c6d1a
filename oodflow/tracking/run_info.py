"""A run as plain values, and where the store is; nothing here needs mlflow."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote, unquote

from oodflow.errors import UserError

__all__ = ["COMMIT", "PARENT", "PREFIX", "SHOWN", "RunInfo", "sqlite_file", "tracking_uri"]

PREFIX = "oodflow."
COMMIT = "mlflow.source.git.commit"
"""MLflow's own tag, which its page of a run shows."""
PARENT = "mlflow.parentRunId"
SHOWN = 8
"""Digits of a run's id in tables."""


@dataclass(frozen=True)
class RunInfo:
    """A run as plain values; ``tags`` are ours, without their prefix.

    ``metrics`` are in bits per dimension (``bpd/…``) or fractions (``auroc/…``), ``started`` is in
    seconds since 1970.

    >>> tags = {"kind": "train", "registered": "true"}
    >>> RunInfo("a1", "a run", "FINISHED", 0.0, 12.5, "", tags, {"bpd/mnist": 1.4}, {}).registered
    True
    """

    run_id: str
    name: str
    status: str
    started: float
    seconds: float
    parent: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    commit: str = ""
    """The project's git commit that the run was made with; "" outside a repository."""
    experiment_id: str = ""
    images: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """``dataset-fold`` of a run's inputs → digest and number of images, where mlflow told them."""

    @property
    def registered(self) -> bool:
        """Whether reports may use it: finished, evaluated, with a version in the registry."""
        return self.status == "FINISHED" and self.tags.get("registered") == "true"

    @property
    def has_model(self) -> bool:
        """Whether it holds weights: those of older versions have no tag of them."""
        trained = self.tags.get("kind") in ("train", "finetune") and self.status == "FINISHED"
        return trained or "weights" in self.tags

    def without_model(self) -> UserError:
        """The error where a model is asked for and the run has none."""
        return UserError(f"run {self.run_id} ({self.name}) holds no model; choose a training run")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else SQLite ``mlflow.db`` in the working folder."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    file = str(Path.cwd() / "mlflow.db")
    # mlflow does not decode the address where it makes the folder: with its slashes, a name would
    # become a second folder.
    plain = _decoded(file) == file and "?" not in file
    return f"sqlite:///{file if plain else quote(file, safe='')}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of an SQLite address, None of any other address.

    >>> sqlite_file("sqlite:////tmp/My%2520Project/mlflow.db?timeout=5").name
    'mlflow.db'
    """
    if not uri.startswith("sqlite:///"):
        return None
    return Path(_decoded(uri.removeprefix("sqlite:///").partition("?")[0]))


def _decoded(name: str) -> str:
    """The name of a database as SQLAlchemy reads it; before version 2.1 it decoded nothing."""
    number = version("SQLAlchemy").split(".")
    return unquote(name) if (int(number[0]), int(number[1])) >= (2, 1) else name
