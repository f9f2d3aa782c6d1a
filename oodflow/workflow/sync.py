"""``oodflow runs sync``: delivers kept runs to the store that was away, or to another one."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from oodflow import console
from oodflow.data.catalog import lookup
from oodflow.errors import UserError
from oodflow.files import STATE_FOLDER
from oodflow.options import SyncOptions
from oodflow.tracking import runs
from oodflow.tracking.delivery import log_curves, log_reports
from oodflow.tracking.journal import (
    JOURNAL_FILE,
    RECORD_FILE,
    Record,
    make_anew,
    read_record,
    read_reports,
    tell,
)
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store
from oodflow.training.checkpoint import load_model
from oodflow.workflow.run_state import WEIGHTS, deliver_weights, keeping, locked
from oodflow.workflow.seeds import conclude
from oodflow.workflow.session import Session, open_session
from oodflow.workflow.training_plan import TrainingPlan

__all__ = ["command", "sync"]


def command(options: SyncOptions) -> int:
    """Deliver one run, or all that are kept here; the exit code is 1 if one was not delivered."""
    run_ids = _kept_runs()
    chosen = _named(run_ids, options.run) if options.run else ""
    session = open_session(options)
    if chosen:
        console.say(sync(session, chosen))
        return 0
    if not run_ids:
        console.say(f"nothing to deliver: no run is kept in {STATE_FOLDER.absolute()}")
    code = 0
    for run_id in run_ids:
        try:
            console.say(sync(session, run_id))
        except UserError as error:
            console.error(" ".join(str(error).split()))
            code = 1
    return code


def _kept_runs() -> list[str]:
    """Ids of the runs that have something kept in the working folder, the oldest first."""
    files = STATE_FOLDER.glob(f"*/{RECORD_FILE}")
    return [file.parent.name for file in sorted(files, key=lambda file: file.stat().st_mtime)]


def _named(run_ids: Sequence[str], reference: str) -> str:
    """The one kept run with an id that begins so, or with that name; UserError without one."""

    def name(run_id: str) -> str:
        return read_record(STATE_FOLDER / run_id / RECORD_FILE).name

    found = [each for each in run_ids if each.startswith(reference)]
    found = found or [each for each in run_ids if name(each) == reference]
    if len(found) == 1:
        return found[0]
    which = f"{len(found)} runs are" if found else "nothing is"
    raise UserError(
        f"{which} kept of run {reference!r} in {STATE_FOLDER.absolute()}; "
        "`oodflow runs sync` delivers all that is"
    )


def sync(session: Session, run_id: str) -> str:
    """Deliver one run, finish it where its training has ended, and return a line about it.

    In a store that does not know the run, it is created with a new id, which the kept files take
    over. Raises UserError where another process holds the run, ResourceError where the store fails.
    """
    store = session.store
    with locked(STATE_FOLDER / run_id) as folder:
        record = read_record(folder / RECORD_FILE)
        with keeping(store, folder):
            known = runs.exists(store, run_id)
            if known and runs.get(store, run_id).registered:
                shutil.rmtree(folder)
                return f"{record.name}: run {run_id} is there already"
            new_id = run_id if known else make_anew(store, record)
        # After an interruption from here on, the folder's name leads to the new run.
        folder = folder.rename(STATE_FOLDER / new_id)
        with runs.ended_on_error(store, new_id), keeping(store, folder):
            return f"{record.name}: {_deliver(session, new_id, record, folder)}"


def _deliver(session: Session, run_id: str, record: Record, folder: Path) -> str:
    """Bring a run's reports and weights to its store, and finish it if that can be done here."""
    store = session.store
    failed = runs.get(store, run_id).status == "FAILED"
    runs.reopen(store, run_id)
    tell(store, run_id, record)
    reports = read_reports(folder / JOURNAL_FILE)
    log_reports(store, run_id, reports, unclear=True)
    if reports:
        log_curves(store, run_id, reports)
    done = f"run {run_id} has its {len(reports)} reports"
    if not (folder / WEIGHTS).exists():
        runs.end(store, run_id, "FAILED" if failed else "KILLED")
        what = "it failed" if failed else "its training is not over"
        return f"{done}; {what}: the same command with --resume continues, or says why it cannot"
    deliver_weights(store, run_id, folder)
    dataset = lookup(record.tags["dataset"])
    if not session.present(dataset.name):
        runs.end(store, run_id, "KILLED")
        return (
            f"{done} and its weights; it is not evaluated, since {dataset.name} is not there: "
            f"{dataset.obtain}, then oodflow runs sync {run_id}"
        )
    conclude(session, _plan(store, record, folder), run_id)
    shutil.rmtree(folder)
    return f"{done} and its weights, is evaluated and registered"


def _plan(store: Store, record: Record, folder: Path) -> TrainingPlan:
    """As much of the run's plan as its evaluation needs."""
    _, experiment, _ = load_model(folder / WEIGHTS)
    tags = record.tags
    general = _general(store, record)
    return TrainingPlan(tags["kind"], experiment, tags["role"], tags["init"], general=general)


def _general(store: Store, record: Record) -> RunInfo | None:
    """The general model of a run's evaluation: the very run, else the newest like it here."""
    if not record.general_run:
        return None
    tags = {"spec": record.general_spec, "registered": "true"}
    found = runs.find(store, tags, status="FINISHED")
    if not found:
        raise UserError(
            f"{record.name}: its general model, run {record.general_run}, is not at {store.uri}, "
            f"nor is one of the same experiment ({record.general_spec}); train it there first"
        )
    return next((run for run in found if run.run_id == record.general_run), found[0])
