"""A working folder that was copied or moved: its artifacts are beside its database.

MLflow keeps the whole path of every artifact folder. In a copy, runs would go on to write into the
original, and with the original their models would be lost.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oodflow import console

__all__ = ["relocate"]

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Table and column of the places that MLflow remembers."""

RUNS = "select e.artifact_location, r.run_uuid from runs r join experiments e using(experiment_id)"


def relocate(database: sqlite3.Connection, folder: Path) -> None:
    """Let places in a copied or moved folder lead to what lies beside its database, ``folder``.

    It is one if the artifacts of a run are there and the database names another place. What is
    only in the other place stays there. A database of another form is left alone.
    """
    with suppress(sqlite3.Error):
        roots = {
            root
            for location, run_id in database.execute(RUNS)
            if (root := _root(location)) and _is_copied(root, Path(location).name, run_id, folder)
        }
        for root in sorted(roots):
            with database:
                for table, column in COLUMNS:
                    _move(database, table, column, root, folder)
            console.say(
                f"this working folder was copied or moved from {_path(root).parent}: "
                f"its artifacts are those in {folder / 'mlruns'} now"
            )


def _root(location: str) -> str:
    """``…/mlruns`` of a place on this machine, as it is written; else ""."""
    root, _, _ = location.rpartition("/")
    local = urlsplit(root).scheme in ("", "file")
    return root if local and root.endswith("/mlruns") else ""


def _path(address: str) -> Path:
    """A place as mlflow takes it, whether it is an address or a path."""
    return Path(unquote(urlsplit(address).path if address.startswith("file:") else address))


def _is_copied(root: str, experiment: str, run_id: str, folder: Path) -> bool:
    old, new = _path(root), folder / "mlruns"
    if old == new or not (new / experiment / run_id).is_dir():
        return False
    return not (old.is_dir() and old.samefile(new))


def _move(database: sqlite3.Connection, table: str, column: str, root: str, folder: Path) -> None:
    new = folder / "mlruns"
    written = new.as_uri() if root.startswith("file:") or "%" in str(new) else str(new)
    rows = database.execute(
        f"select rowid, {column} from {table} where substr({column}, 1, ?) = ?",
        (len(root) + 1, f"{root}/"),
    ).fetchall()
    for row, place in rows:
        rest = place[len(root) :]
        # An experiment without artifacts is to have them here from now on.
        if table == "experiments" or Path(f"{new}{unquote(rest)}").exists():
            database.execute(
                f"update {table} set {column} = ? where rowid = ?", (f"{written}{rest}", row)
            )
