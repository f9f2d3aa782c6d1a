"""A run's journal: everything that the store has to receive, saved here before it is sent.

``run.json`` holds what the store receives when a run begins, so that the run can be created again
in another one. ``journal.jsonl`` holds the reports of the training, one JSON line each, appended
and synced when they are made. It is the only place that holds them: a checkpoint has at most the
sums for the next one. A report is appended before the checkpoint of the same update is written, so
that the journal is never behind. A training that continues from an older checkpoint makes the same
reports again; those in the journal stay as they are.

The journal does not record which reports have arrived. After a failure only the store knows that,
and it is asked (see :mod:`oodflow.tracking.delivery`).
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oodflow.errors import ResourceError, UserError
from oodflow.files import sync_folder
from oodflow.tracking import runs
from oodflow.tracking.runs import DatasetUse
from oodflow.tracking.store import Store
from oodflow.training.checkpoint import write_atomically

__all__ = [
    "JOURNAL_FILE",
    "RECORD_FILE",
    "Record",
    "Report",
    "append_report",
    "make_anew",
    "new_record",
    "read_record",
    "read_reports",
    "tell",
    "write_record",
]

RECORD_FILE = "run.json"
JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True)
class Record:
    """What the store receives when a run begins, and what its evaluation needs besides."""

    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    datasets: tuple[DatasetUse, ...]
    parent: str
    """Id of the run that it is nested in, or ""."""
    general_run: str
    """The general model of its evaluation: the id of its run, or ""."""
    general_spec: str
    """The hash of that run's experiment, by which another store finds an equal run."""
    commit: str
    started: int
    """In ms since 1970."""


@dataclass(frozen=True)
class Report:
    """The metrics of one report of a training, made at ``time`` in ms since 1970."""

    step: int
    """Updates done."""
    time: int
    metrics: Mapping[str, float]


def new_record(
    name: str,
    tags: Mapping[str, str],
    parameters: Mapping[str, str],
    datasets: tuple[DatasetUse, ...],
    *,
    parent: str = "",
    general_run: str = "",
    general_spec: str = "",
) -> Record:
    """The record of a run that begins now, with this version of the program."""
    now = int(time.time() * 1000)
    return Record(
        name, tags, parameters, datasets, parent, general_run, general_spec, runs.own_commit(), now
    )


def write_record(path: Path, record: Record) -> None:
    """Save a record; ResourceError where it cannot be written."""
    write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1).encode())


def read_record(path: Path) -> Record:
    """A record as it was written; UserError where the file is damaged."""
    try:
        values = json.loads(path.read_text())
        datasets = tuple(DatasetUse(**each) for each in values.pop("datasets"))
        return Record(**values, datasets=datasets)
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"damaged {path}: {error}; remove it, --resume writes it again") from error


def make_anew(store: Store, record: Record) -> str:
    """Create a recorded run in a store that does not know it; returns its new id.

    A parent that is not in this store is left out.
    """
    parent = record.parent if record.parent and runs.exists(store, record.parent) else ""
    return runs.start(
        store,
        record.name,
        record.tags,
        parent,
        commit=record.commit,
        started=record.started,
    )


def tell(store: Store, run_id: str, record: Record) -> None:
    """Log a run's parameters and datasets; those already logged stay as they are."""
    runs.log_parameters(store, run_id, record.parameters)
    runs.log_datasets(store, run_id, record.datasets)


def read_reports(path: Path) -> list[Report]:
    """The reports of a journal, in order; a last line that was cut short is ignored.

    Raises UserError where any other line is damaged.
    """
    if not path.exists():
        return []
    reports = []
    # After the last line end there is nothing, or what was being written during a crash.
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            reports.append(Report(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"damaged journal: line {number} of {path} is not a report; "
                f"remove {path.parent} to train the run from the beginning"
            ) from error
    return reports


def append_report(path: Path, step: int, metrics: Mapping[str, float]) -> Report:
    """Append the report of an update, made now, and sync it; a line cut short is removed first.

    Raises ResourceError where it cannot be written, with the reports before it kept.
    """
    now = int(time.time() * 1000)
    # Stores order by time, and the clock may be behind when a training is resumed.
    earliest = max((before.time + 1 for before in read_reports(path)), default=now)
    report = Report(step, max(now, earliest), metrics)
    try:
        with path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(json.dumps(dataclasses.asdict(report)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if not whole:
            sync_folder(path.parent)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    return report
