"""The MLflow store: where runs are kept, opened quietly and checked before any work is done."""

import contextlib
import logging
import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

from oodflow.errors import ResourceError, UserError, without_secrets
from oodflow.files import exclusively
from oodflow.tracking.causes import cause, cure_of
from oodflow.tracking.relocation import relocate
from oodflow.tracking.run_info import sqlite_file, tracking_uri
from oodflow.tracking.views import WORKFLOW, View, missing_views

# Read when mlflow is imported; the environment may turn its usage telemetry on.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from requests import RequestException
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

# mlflow raises its errors as well; its logs would only add tracebacks.
logging.getLogger("mlflow").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("urllib3").setLevel(logging.ERROR)

__all__ = [
    "EXPERIMENT",
    "Store",
    "answering",
    "experiment_of",
    "failing_fast",
    "is_missing",
    "open_store",
]

FAIL_FAST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Instead of mlflow's 7 retries with growing pauses of 4 minutes, and its 120 seconds."""

EXPERIMENT = "oodflow"
"""Name of the MLflow experiment that holds every run."""


@dataclass(frozen=True)
class Store:
    """An open store: its client, its address, and the id of the experiment."""

    client: MlflowClient
    uri: str
    experiment_id: str

    def how_to_see(self, run_id: str, view: View | None = None) -> str:
        """How to see a run in the MLflow UI, or those beside it in a view.

        The command, and on a line of its own the address.
        """
        # Not always the experiment of the store: `mlflow run` has its own default.
        experiment = self.client.get_run(run_id).info.experiment_id
        page = self.page(experiment, run_id)
        if view and experiment == self.experiment_id:
            page = self._address(f"{experiment}/{view.link}")
        command = self.ui_command
        return f"{command}\n{page}"

    @property
    def ui_command(self) -> str:
        """The command that starts the MLflow UI on this store; "" where a server runs already."""
        if self.uri.startswith("http"):
            return ""
        secret = without_secrets(self.uri) != self.uri
        return "mlflow ui --backend-store-uri " + (
            '"$MLFLOW_TRACKING_URI"' if secret else shlex.quote(self.uri)
        )

    def page(self, experiment_id: str, run_id: str) -> str:
        """Address of a run in the MLflow UI."""
        return self._address(f"{experiment_id}/runs/{run_id}?{WORKFLOW}")

    def _address(self, page: str) -> str:
        base = "http://127.0.0.1:5000" if self.ui_command else without_secrets(self.uri).rstrip("/")
        return f"{base}/#/experiments/{page}"


def open_store(uri: str = "") -> Store:
    """Open the tracking store; creates it and the experiment where they do not exist yet.

    ``uri`` is :func:`tracking_uri` unless it is given.

    Raises UserError at once where no store answers at the address, with what the server, the
    database, its driver or the disk says.
    """
    uri = uri or tracking_uri()
    try:
        with failing_fast(), _alone(uri):
            _connect_once(uri)
            client = MlflowClient(uri)
            found = experiment_of(client)
            # Who may only read has no views made; that is no reason to stop.
            with suppress(MlflowException):
                for tag, value in missing_views(found.tags, int(time.time() * 1000)):
                    client.set_experiment_tag(found.experiment_id, tag, value)
    except UserError:
        raise
    except Exception as error:
        given = "MLFLOW_TRACKING_URI=" if os.environ.get("MLFLOW_TRACKING_URI") == uri else ""
        default = "start it, or unset the variable to use ./mlflow.db" if given else "mend that"
        raise UserError(
            f"no MLflow store opens at {given}{uri} ({cause(error, uri)}); "
            f"{cure_of(error) or default}"
        ) from error
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {found.name!r} at {uri} is deleted; restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return Store(client, uri, found.experiment_id)


def experiment_of(client: MlflowClient) -> Experiment:
    """The MLflow experiment of new runs, which is made where there is none.

    As for MLflow itself, MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID says which; else it is
    :data:`EXPERIMENT`. Raises UserError for an id that there is not.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    number = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
    if number and not name:
        try:
            return client.get_experiment(number)
        except MlflowException as error:
            if not is_missing(error):
                raise
            raise UserError(
                f"MLFLOW_EXPERIMENT_ID={number} names no experiment of this store; unset it"
            ) from error
    name = name or EXPERIMENT
    if found := client.get_experiment_by_name(name):
        return found
    try:
        return client.get_experiment(client.create_experiment(name, _artifact_place(client, name)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Another process was faster.
    return experiment_of(client)


def _artifact_place(client: MlflowClient, name: str) -> str | None:
    """Where mlflow would keep artifacts elsewhere than it says: it decodes a plain path.

    None leaves it to mlflow.
    """
    place = Path.cwd() / "mlruns"
    if client.tracking_uri.startswith("http") or unquote(str(place)) == str(place):
        return None
    return (place / quote(name, safe="")).as_uri()


@contextmanager
def failing_fast() -> Iterator[None]:
    """Requests to a server fail within seconds: mlflow would repeat them for minutes.

    The bounds are environment variables that mlflow reads at each request, of whichever thread.
    """
    before = {name: os.environ.get(name) for name in FAIL_FAST}
    os.environ.update(FAIL_FAST)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def answering(store: Store) -> Iterator[None]:
    """Turn errors of mlflow into a ResourceError of one line: the store is gone, locked or full."""
    try:
        yield
    except (MlflowException, RequestException) as error:
        line = f"the MLflow store at {store.uri} fails ({cause(error, store.uri)})"
        raise ResourceError("; ".join(filter(None, (line, cure_of(error))))) from error


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes from an SQLite store while mlflow makes its tables, if it has to.

    The database is opened once before: mlflow would keep trying for minutes.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    # That of the folder needs no further file, and touches none of SQLite's own locks.
    with exclusively(file.parent):
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("pragma schema_version")
            relocate(database, file.absolute().parent)
        yield


def _connect_once(uri: str) -> None:
    """Connect to a database once: mlflow would keep trying for minutes, whatever it says."""
    kind = urlparse(uri).scheme.partition("+")[0]
    if kind not in DATABASE_ENGINES or kind == "sqlite":
        return
    patience = {"connect_timeout": 10} if kind in ("postgresql", "mysql") else {}
    engine = create_engine(uri, poolclass=NullPool, connect_args=patience)
    engine.connect().close()


def is_missing(error: MlflowException) -> bool:
    """Whether an error of mlflow says that something does not exist."""
    return error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
