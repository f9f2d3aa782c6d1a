"""The state of an unfinished run on this machine: neither a crash nor a lost store loses the run.

``.oodflow/<run id>/`` in the working folder, held by one process at a time (``lock``), has

- ``run.json`` and ``journal.jsonl``: all that the store receives (oodflow.tracking.journal);
- ``training.safetensors`` and the one before it (oodflow.training.checkpoint);
- ``checkpoints/model.safetensors``: the weights, once the training is over.

The folder is removed when the run is evaluated and registered.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from oodflow.detection.package import requirements
from oodflow.errors import ResourceError, UserError
from oodflow.experiment import Experiment
from oodflow.files import STATE_FOLDER, exclusively
from oodflow.tracking import runs
from oodflow.tracking.journal import (
    JOURNAL_FILE,
    RECORD_FILE,
    Report,
    read_record,
    read_reports,
)
from oodflow.tracking.servable import make_loadable
from oodflow.tracking.store import Store, answering
from oodflow.training.checkpoint import MODEL_FILE, TrainingState, load_model, newest_training

__all__ = ["WEIGHTS", "deliver_weights", "keeping", "locked", "resume_point", "run_with_state"]

WEIGHTS = Path("checkpoints", MODEL_FILE)


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The run's state folder, locked by this process; the system frees it when the process dies."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusively(folder / "lock", wait=False))
        except BlockingIOError as error:
            raise UserError(f"run {folder.name} is being made by another process") from error
        except OSError as error:
            raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error
        yield folder


@contextmanager
def keeping(store: Store, folder: Path) -> Iterator[None]:
    """Add to the error of a full disk or a lost store what is kept, and how to continue."""
    try:
        with answering(store):
            yield
    except ResourceError as error:
        if (folder / WEIGHTS).exists():
            said = (
                f"weights and journal are kept in {folder}, and delivered later by: "
                f"oodflow runs sync {folder.name}"
            )
        else:
            said = (
                f"the last good checkpoint and the journal are kept in {folder}; "
                "once that is mended, the same command with --resume continues"
            )
        raise ResourceError(f"{error}; {said}") from error


def resume_point(
    folder: Path, experiment: Experiment
) -> tuple[TrainingState | None, list[Report], str]:
    """Where a training continues: its newest undamaged state, its reports, a newer one's fault.

    The state is None before the first checkpoint. Raises UserError where all states are damaged.
    """
    reports = read_reports(folder / JOURNAL_FILE)
    state, damage = newest_training(folder, experiment)
    if state:
        every, steps = experiment.optimisation.report_every, experiment.optimisation.steps
        due = state.step if state.step == steps else state.step - state.step % every
        if due and due not in {report.step for report in reports}:
            raise UserError(
                f"{folder / JOURNAL_FILE} lacks the report of update {due}, the last one before "
                f"the checkpoint; remove {folder} to train the run from the beginning"
            )
    return state, reports, damage


def deliver_weights(store: Store, run_id: str, folder: Path) -> None:
    """Put the weights in a folder under the run's ``checkpoints/``, their digest into its tags.

    The artifact folder is a model that mlflow itself loads and serves.
    """
    *_, digest = load_model(folder / WEIGHTS)
    checkpoints = (folder / WEIGHTS).parent
    make_loadable(checkpoints, "oodflow.detection.served_density", requirements())
    runs.log_artifacts(store, run_id, checkpoints, "checkpoints")
    runs.set_tags(store, run_id, {"weights": digest})


def run_with_state(spec: str) -> str:
    """A run of the experiment with this hash that has its state here, or ""."""
    for file in sorted(STATE_FOLDER.glob(f"*/{RECORD_FILE}")):
        if read_record(file).tags["spec"] == spec:
            return file.parent.name
    return ""
