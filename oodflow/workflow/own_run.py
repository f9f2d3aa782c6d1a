"""The run of a command: the one that ``mlflow run`` made for it, and how it ends on an error."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from oodflow.tracking import runs
from oodflow.tracking.store import Store, failing_fast

__all__ = ["claimed_run", "ended_on_error"]


def claimed_run() -> str:
    """The run that ``mlflow run`` made for this command, or ""."""
    return os.environ.get("MLFLOW_RUN_ID", "")


@contextmanager
def ended_on_error(store: Store, run_id: str) -> Iterator[None]:
    """Mark the run KILLED on an interruption and FAILED on an error, then pass it on."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        # The store may be what failed. Then the run stays RUNNING in it, and the error is seen.
        with failing_fast(), suppress(Exception):
            runs.end(store, run_id, status)
        raise
