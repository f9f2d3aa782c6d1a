"""A run as plain values, and where the store is; nothing here needs mlflow."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COMMIT", "PARENT", "PREFIX", "RunInfo", "tracking_uri"]

PREFIX = "oodflow."
COMMIT = "mlflow.source.git.commit"
"""MLflow's own tag, which its page of a run shows."""
PARENT = "mlflow.parentRunId"


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

    @property
    def registered(self) -> bool:
        """Whether reports may use it: finished, evaluated, with a version in the registry."""
        return self.status == "FINISHED" and self.tags.get("registered") == "true"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else SQLite ``mlflow.db`` in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
