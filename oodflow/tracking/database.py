"""Runs read straight from an SQLite store, for commands that would mostly wait for mlflow's import.

Importing mlflow and opening its store takes longer than listing runs or scoring a folder. Nothing
is ever written here, and whatever is not as expected is left to :mod:`oodflow.tracking.runs`: a
store of another kind, a database of another form, a run that is not there.
"""

import math
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

from oodflow.tracking.run_info import COMMIT, PARENT, PREFIX, RunInfo, sqlite_file

__all__ = ["find_locally", "local_artifact"]

RUNS = """
select run_uuid, name, status, start_time, end_time, experiment_id from runs
where lifecycle_stage = 'active' and run_uuid in
  (select run_uuid from tags where key = ?)
  and experiment_id in (select experiment_id from experiments where lifecycle_stage = 'active')
order by start_time desc, run_uuid
"""

COLUMNS = {
    "tags": "select run_uuid, key, value from tags",
    "params": "select run_uuid, key, value from params",
    # A metric that is not a number has 0 as its value.
    "latest_metrics": "select run_uuid, key, iif(is_nan, null, value) from latest_metrics",
}


def find_locally(uri: str, tags: Mapping[str, str]) -> list[RunInfo] | None:
    """What :func:`oodflow.tracking.runs.find` gives; None where it has to be asked."""
    database = _open(uri)
    if database is None:
        return None
    with closing(database):
        try:
            return _find(database, tags)
        except sqlite3.Error:
            return None


def _find(database: sqlite3.Connection, tags: Mapping[str, str]) -> list[RunInfo]:
    rows = database.execute(RUNS, (f"{PREFIX}kind",)).fetchall()
    of = {table: _by_run(database, columns) for table, columns in COLUMNS.items()}
    found = []
    for run_id, name, status, start, end, experiment in rows:
        own = of["tags"].get(run_id, {})
        ours = {k.removeprefix(PREFIX): v for k, v in own.items() if k.startswith(PREFIX)}
        if not tags.items() <= ours.items():
            continue
        found.append(
            RunInfo(
                run_id=run_id,
                name=name or "",
                status=status,
                started=start / 1000,
                seconds=((end or time.time() * 1000) - start) / 1000,
                parent=own.get(PARENT, ""),
                tags=ours,
                metrics={
                    key: math.nan if value is None else value
                    for key, value in of["latest_metrics"].get(run_id, {}).items()
                },
                params=of["params"].get(run_id, {}),
                commit=own.get(COMMIT, ""),
                experiment_id=str(experiment),
            )
        )
    return found


def _by_run(database: sqlite3.Connection, query: str) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for run_id, key, value in database.execute(query):
        found.setdefault(run_id, {})[key] = value
    return found


def local_artifact(uri: str, run_id: str, path: str) -> Path | None:
    """An artifact's file, where it is on this machine; None where mlflow has to find it."""
    database = _open(uri)
    if database is None:
        return None
    with closing(database):
        try:
            row = database.execute(
                "select artifact_uri from runs where run_uuid = ? and lifecycle_stage = 'active'",
                (run_id,),
            ).fetchone()
        except sqlite3.Error:
            return None
    if row is None:
        return None
    address = urlparse(row[0])
    if address.scheme not in ("", "file") or address.netloc:
        return None
    # As mlflow does it, whether it is an address or a path.
    file = Path(unquote(address.path if address.scheme else row[0]), path)
    return file if file.is_file() else None


def _open(uri: str) -> sqlite3.Connection | None:
    file = sqlite_file(uri)
    if file is None or "?" in uri or not file.is_file():
        return None
    try:
        return sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True)
    except sqlite3.Error:
        return None
