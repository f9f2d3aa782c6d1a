"""One training run from experiment to weights; resumable at any moment, even without the store.

Between its start and its end a training needs no store: reports go to the journal of the run, and
from there to the store whenever it answers. The weights are saved beside the journal before they
are delivered (see :mod:`oodflow.workflow.run_state`).
"""

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from oodflow import console
from oodflow.data.batches import Batches
from oodflow.data.catalog import lookup, slug_of
from oodflow.data.images import Images
from oodflow.errors import FailedTraining, UserError
from oodflow.evaluation.validation import NON_FINITE, Validation
from oodflow.experiment import Experiment
from oodflow.files import STATE_FOLDER
from oodflow.models.device import busy
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import TrainingOptions
from oodflow.tracking import runs
from oodflow.tracking.delivery import delivering, log_curves, monitored
from oodflow.tracking.journal import (
    JOURNAL_FILE,
    RECORD_FILE,
    Report,
    append_report,
    tell,
    write_record,
)
from oodflow.training.checkpoint import save_model, save_training
from oodflow.training.distributed import broadcast, world
from oodflow.training.interruption import Checkpoints
from oodflow.training.loop import Trainer, TrainingReport, initialise, new_model
from oodflow.training.verdict import counts, why_failed
from oodflow.workflow.run_state import (
    WEIGHTS,
    deliver_weights,
    keeping,
    locked,
    resume_point,
    run_with_state,
)
from oodflow.workflow.session import Session, check_same_shape, open_session
from oodflow.workflow.sharing import Scoring, score_together
from oodflow.workflow.training_plan import TrainingPlan, made_with, record_of, run_tags

__all__ = [
    "batches_of",
    "keep_weights",
    "new_trainer",
    "report_metrics",
    "train_along",
    "train_run",
]


SECONDS_BETWEEN_LINES = 30.0
"""Seconds between two lines of a training in a log file, at least."""

UNTRANSLATED = ("tarflow",)
"""Models whose public training mirrors images but does not shift them (arXiv:2412.06329)."""


def train_run(
    session: Session,
    plan: TrainingPlan,
    *,
    resume: bool,
    parent: str = "",
    conclude: Callable[[str], None],
) -> str:
    """Train, keep the weights as artifacts, conclude, and return the run's id.

    ``conclude(run_id)`` evaluates and ends the run while no other process can touch it.
    With ``resume`` a finished run of the same experiment is returned as it is, and an interrupted
    one is continued. An error marks the run FAILED, an interruption KILLED.
    """
    store, tags = session.store, run_tags(plan) | made_with(session.device)
    previous = runs.find(store, {"spec": tags["spec"], "kind": plan.kind}) if resume else []
    finished = next((run for run in previous if run.registered), None)
    if finished:
        console.say(f"{plan.name}: already there, run {finished.run_id}")
        return finished.run_id
    data = _Data.load(session, plan)
    if previous:
        run_id = previous[0].run_id
    else:
        if resume and (other := run_with_state(tags["spec"])):
            console.say(
                f"{plan.name}: starting from the beginning, since run {other} is not here; "
                f"`oodflow runs sync {other}` brings it here"
            )
        project_run = "" if parent else session.project_run
        run_id = runs.start(store, plan.name, tags, parent, project_run)
    # The lock comes first: the status of a run that another process makes is not touched.
    with (
        locked(STATE_FOLDER / run_id) as folder,
        runs.ended_on_error(store, run_id),
        keeping(store, folder),
    ):
        if not (previous and runs.get(store, run_id).registered):
            if previous:
                runs.reopen(store, run_id)
            record = record_of(session, plan, parent)
            if not (folder / RECORD_FILE).exists():
                write_record(folder / RECORD_FILE, record)
            tell(store, run_id, record)
            _train(session, plan, data, run_id, folder, resumed=bool(previous))
            # The training's device memory is free for the evaluation now.
            del data
            deliver_weights(store, run_id, folder)
            conclude(run_id)
        shutil.rmtree(folder)
    return run_id


@dataclass(frozen=True)
class _Data:
    inliers: Batches
    outliers: Batches | None
    validation: Validation

    @staticmethod
    def load(session: Session, plan: TrainingPlan) -> "_Data":
        experiment = plan.experiment
        general = session.model(plan.general).model if plan.general else None
        facts = lookup(experiment.data.dataset)
        oods = {
            slug_of(ood): session.images(ood, "test")
            for ood in session.outliers(facts.name)
            if plan.role == "in_distribution"
        }
        if general and general.image_shape[0] != facts.channels:
            raise UserError(
                f"the general model of run {plan.general and plan.general.run_id} scores images of "
                f"{general.image_shape[0]} channels, {facts.name} has {facts.channels}"
            )
        inliers, outliers = _batches(session, experiment)
        images = session.images(facts.name, "test")
        precision = experiment.optimisation.precision
        validation = Validation(images, oods, general, session.device, precision)
        return _Data(inliers, outliers, validation)


def _batches(session: Session, experiment: Experiment) -> tuple[Batches, Batches | None]:
    """Training batches of the experiment's dataset, and of outliers where its loss has them."""

    def batches(dataset: str) -> Batches:
        images = session.images(dataset, "train", experiment.data.limit)
        return batches_of(session, experiment, images)

    loss = experiment.loss
    outliers = batches(loss.outlier_dataset) if loss.outlier_loss != "none" else None
    return batches(experiment.data.dataset), outliers


def batches_of(session: Session, experiment: Experiment, images: Images) -> Batches:
    """Training batches of some images, augmented as the catalogue says of their dataset."""
    check_same_shape(images.name, experiment.model.channels, "the model")
    size = experiment.optimisation.batch_size
    if size < world():
        raise UserError(f"{world()} processes cannot share a batch of {size}; raise batch_size")
    if session.parts < 1 or session.parts > 1 and size % (session.parts * world()):
        each = f" for each of {world()} processes" if world() > 1 else ""
        raise UserError(
            f"a batch of {size} does not divide into {session.parts} equal parts{each}; "
            "choose accumulate so that it does"
        )
    facts = lookup(images.name)
    return Batches(
        images,
        experiment.optimisation.batch_size,
        experiment.seed,
        0 if experiment.model.name in UNTRANSLATED else facts.translate,
        facts.flip,
        session.device,
    )


def _train(
    session: Session, plan: TrainingPlan, data: _Data, run_id: str, folder: Path, resumed: bool
) -> None:
    """Train to the end, reports to the journal and its store, weights beside it."""
    experiment, steps = plan.experiment, plan.experiment.optimisation.steps
    state, reports, damage = resume_point(folder, experiment)
    broadcast((plan, state))
    trainer = new_trainer(session, plan, data.inliers, data.outliers)
    model = trainer.model
    if damage:
        console.say(f"{plan.name}: {damage}; going back to the previous checkpoint")
    if state:
        trainer.restore(state)
        console.say(f"{plan.name}: continues at update {state.step} of {steps}")
    elif resumed:
        console.say(
            f"{plan.name}: run {run_id} has no checkpoint here; starting from the beginning"
        )
    else:
        console.say(f"{plan.name}: run {run_id}, {steps} updates")
    _say_where_busy(session)
    if not state and not plan.init:
        initialise(model, data.inliers)
    checkpoints = Checkpoints(lambda: save_training(folder, trainer.state(), experiment))
    every, log = experiment.optimisation.report_every, _log_lines(plan, steps)
    with (
        _numerical(plan, run_id),
        monitored(session.store, run_id),
        delivering(session.store, run_id, reports, resumed) as deliver,
    ):
        with console.progress(plan.name, steps, trainer.step) as advance, checkpoints:

            def on_step(step: int, bpd: Callable[[], float]) -> None:
                epoch = 1 + (step - 1) // data.inliers.steps_per_pass
                advance(step, lambda: f"epoch {epoch}  {bpd():.3f} bpd")
                # With a report comes a checkpoint anyway.
                if step % every and step < steps:
                    checkpoints.between_updates()

            for report in trainer.run(on_step):
                # After a kill between report and checkpoint the journal has this one already.
                if report.step > (reports[-1].step if reports else 0):
                    metrics = report_metrics(report) | data.validation(model)
                    reports.append(append_report(folder / JOURNAL_FILE, report.step, metrics))
                    deliver(reports[-1])
                    log(reports[-1])
                checkpoints.save()
        logged = [report.metrics for report in reports]
        why = why_failed(model, logged, steps, int(logged[-1].get(NON_FINITE, 0)))
        if not why:
            save_model(folder / WEIGHTS, model, experiment)
            _say_result(plan, logged, steps)
    # Here, since by now the store has the reports that show it.
    log_curves(session.store, run_id, reports)
    if why:
        raise _failed(plan, run_id, why)


def _log_lines(plan: TrainingPlan, steps: int) -> Callable[[Report], None]:
    """``log(report)`` is a line now and then where no bar is drawn, such as in a log file."""
    said = time.monotonic()

    def log(report: Report) -> None:
        nonlocal said
        if console.drawn() or time.monotonic() < said + SECONDS_BETWEEN_LINES:
            return
        said = time.monotonic()
        bpd = report.metrics.get("train/bpd")
        of = "" if bpd is None else f", {bpd:.3f} bpd"
        console.say(f"{plan.name}: update {report.step} of {steps}{of}")

    return log


def _say_where_busy(session: Session) -> None:
    """Threads that wait for a core in each other's way make an update many times slower."""
    threads = torch.get_num_threads()
    if threads > 1 and (line := busy(session.device, threads)):
        console.say(
            f"{line}: {threads} threads may take longer than one; OMP_NUM_THREADS=1 before the "
            "command makes it one"
        )


@contextmanager
def _numerical(plan: TrainingPlan, run_id: str) -> Iterator[None]:
    """A matrix that cannot be inverted any more is a training that failed, not a bug."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise _failed(plan, run_id, " ".join(str(error).split())) from error


def _failed(plan: TrainingPlan, run_id: str, why: str) -> FailedTraining:
    return FailedTraining(
        f"{plan.name}: the training failed: {why}; run {run_id} is not registered; "
        "train with a lower lr, or a longer warmup"
    )


def train_along(options: TrainingOptions) -> None:
    """The part of all processes but the first: they share its trainings and scorings.

    The first process sends what is trained, and from which update on, or what is scored, until
    nothing is left. It alone handles runs, saved state and the results of scoring.
    """
    session: Session | None = None
    for work in iter(lambda: broadcast(None), None):
        # Not before: by now the first process has made the store and prepared the datasets.
        session = session or open_session(options)
        if isinstance(work, Scoring):
            score_together(session, work)
            continue
        plan, state = work
        trainer = new_trainer(session, plan, *_batches(session, plan.experiment))
        if state:
            # The first process holds the sums of all.
            trainer.restore(dataclasses.replace(state, totals={}))
        for _ in trainer.run():
            pass


def new_trainer(
    session: Session, plan: TrainingPlan, inliers: Batches, outliers: Batches | None
) -> Trainer:
    """The plan's model with the weights of its start, where it has one, ready to be trained."""
    model = new_model(plan.experiment, session.device)
    contrast = session.model(plan.contrast).model if plan.contrast else None
    if plan.init:
        _start_from(model, session.model(plan.init).model)
    return Trainer(plan.experiment, model, inliers, outliers, contrast, session.form, session.parts)


def _start_from(model: LikelihoodModel, init: LikelihoodModel) -> None:
    """Copy the weights; densities of the classes that the start has not stay N(0, I)."""
    missing, unexpected = model.load_state_dict(init.state_dict(), strict=False)
    if unexpected or any(not name.startswith("per_class.") for name in missing):
        raise UserError(f"the start does not fit the model: {[*missing, *unexpected][0]}")


def report_metrics(report: TrainingReport) -> dict[str, float]:
    """``train/bpd``, ``train/outlier_loss``, … of a report."""
    values = dataclasses.asdict(report)
    del values["step"]
    # A classifier has no BPD, and a report in which every batch was skipped has none either.
    return {f"train/{name}": float(v) for name, v in values.items() if math.isfinite(v)}


def _say_result(plan: TrainingPlan, reports: Sequence[Mapping[str, float]], updates: int) -> None:
    last = reports[-1]
    unstable = "".join(f", {count} {what}" for what, count in counts(reports).items() if count)
    loss = (
        f"{last['train/bpd']:.3f} bpd in training, {last['valid/bpd']:.3f} in validation"
        if "train/bpd" in last and "valid/bpd" in last
        else f"loss {last['train/outlier_loss']:.3f}"
    )
    console.say(f"{plan.name}: {updates} updates, {loss}{unstable}")


def keep_weights(
    session: Session, run_id: str, model: LikelihoodModel, experiment: Experiment
) -> None:
    """Put the model's weights under the run's ``checkpoints/``, their digest into its tags."""
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        save_model(Path(folder) / WEIGHTS, model, experiment)
        deliver_weights(session.store, run_id, Path(folder))
