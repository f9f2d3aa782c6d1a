"""One training run from experiment to registered, evaluated checkpoint; resumable at any moment.

State under way lives in ``.oodflow/<run id>/`` in the working folder. A checkpoint is written
before its metrics are logged and holds them, so that a resumed run logs what is missing, once.
"""

import dataclasses
import fcntl
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from oodflow import console
from oodflow.data.batches import Batches
from oodflow.data.catalog import lookup, slug_of
from oodflow.data.images import Images
from oodflow.errors import UserError
from oodflow.evaluation.validation import Validation
from oodflow.experiment import Experiment, parameters, spec_hash
from oodflow.models.likelihood import LikelihoodModel
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.tracking.store import Store
from oodflow.training.checkpoint import (
    MODEL_FILE,
    STATE_FILE,
    TrainingState,
    load_training,
    save_model,
    save_training,
)
from oodflow.training.loop import Report, Trainer, initialise, new_model
from oodflow.workflow.session import Session, check_same_shape, dataset_use

__all__ = [
    "STATE_FOLDER",
    "Plan",
    "batches_of",
    "ended_on_error",
    "keep_weights",
    "model_name",
    "new_trainer",
    "report_metrics",
    "run_tags",
    "train_run",
]

STATE_FOLDER = Path(".oodflow")


@dataclass(frozen=True)
class Plan:
    """An experiment and the runs it builds on."""

    kind: str
    """``train`` or ``finetune``."""
    experiment: Experiment
    role: str
    start: str
    """Where the weights come from: scratch, general or own."""
    init: RunInfo | None = None
    contrast: RunInfo | None = None
    general: RunInfo | None = None
    """General model for the ``diff`` score of validation and evaluation."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Tags that say where parameters come from, such as a study."""

    @property
    def name(self) -> str:
        """The run's name: model, dataset, start, loss, seed."""
        loss = self.experiment.loss
        dataset = slug_of(self.experiment.data.dataset)
        words = [self.experiment.model.name, dataset, f"from {self.start}"]
        if self.experiment.model.classes:
            words.append("supervised")
        if loss.outlier_loss != "none":
            words.append(f"{loss.outlier_loss} against {slug_of(loss.outlier_dataset)}")
        return " · ".join([*words, f"seed {self.experiment.seed}"])


def run_tags(plan: Plan) -> dict[str, str]:
    """The contract's tags of a training run."""
    experiment = plan.experiment
    tags = {
        "kind": plan.kind,
        "model": experiment.model.name,
        "dataset": experiment.data.dataset,
        "role": plan.role,
        "setting": "supervised" if experiment.model.classes else "unsupervised",
        "outlier_loss": experiment.loss.outlier_loss,
        "outlier_dataset": experiment.loss.outlier_dataset,
        "init": plan.start,
        "seed": str(experiment.seed),
        "spec": spec_hash(experiment),
        "registered": "false",
    }
    for name, run in (("init_run", plan.init), ("contrast_run", plan.contrast)):
        if run:
            tags[name] = run.run_id
    return tags | dict(plan.origins)


def model_name(plan: Plan) -> str:
    """Name in the model registry; its versions are the seeds and repetitions."""
    words = ["oodflow", plan.experiment.model.name, slug_of(plan.experiment.data.dataset)]
    if plan.experiment.model.classes:
        words.append("supervised")
    if plan.experiment.loss.outlier_loss != "none":
        words.append(plan.experiment.loss.outlier_loss)
    return "-".join(words)


def train_run(session: Session, plan: Plan, *, resume: bool, parent: str = "") -> str:
    """Train, keep the weights as artifacts, and return the run's id; it is not ended yet.

    With ``resume`` a finished run of the same experiment is returned as it is, and an interrupted
    one is continued. An error marks the run FAILED, an interruption KILLED.
    """
    store, tags = session.store, run_tags(plan)
    previous = runs.find(store, {"spec": tags["spec"], "kind": plan.kind}) if resume else []
    finished = next((run for run in previous if run.registered), None)
    if finished:
        console.say(f"{plan.name}: already there, run {finished.run_id}")
        return finished.run_id
    data = _Data.load(session, plan)
    if previous:
        run_id = previous[0].run_id
    else:
        claimed = bool(session.claimed) and not parent
        run_id = runs.start(store, plan.name, tags, parent, session.claimed if claimed else "")
    # The lock comes first: whose run is in other hands must not touch its status.
    with locked(STATE_FOLDER / run_id) as folder, ended_on_error(store, run_id):
        if previous:
            runs.reopen(store, run_id)
        runs.log_parameters(store, run_id, parameters(plan.experiment))
        runs.log_datasets(store, run_id, _datasets(session, plan))
        _train(session, plan, data, run_id, folder, resumed=bool(previous))
    return run_id


def _datasets(session: Session, plan: Plan) -> list[runs.DatasetUse]:
    """The training folds, for the run's inputs in MLflow."""
    uses = {
        "training": plan.experiment.data.dataset,
        "outliers": plan.experiment.loss.outlier_dataset,
    }
    return [dataset_use(session, name, "train", use) for use, name in uses.items() if name]


@contextmanager
def ended_on_error(store: Store, run_id: str) -> Iterator[None]:
    """Mark the run KILLED on an interruption and FAILED on an error, then pass it on."""
    try:
        yield
    except KeyboardInterrupt:
        runs.end(store, run_id, "KILLED")
        raise
    except BaseException:
        runs.end(store, run_id, "FAILED")
        raise


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """The run's state folder, held by this process alone; the system frees it on any death."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
        shutil.rmtree(folder)
    except BlockingIOError as error:
        raise UserError(f"run {folder.name} is being trained by another process") from error
    finally:
        os.close(handle)


@dataclass(frozen=True)
class _Data:
    inliers: Batches
    outliers: Batches | None
    validation: Validation

    @staticmethod
    def load(session: Session, plan: Plan) -> "_Data":
        experiment = plan.experiment
        general = session.model(plan.general).model if plan.general else None
        facts = lookup(experiment.data.dataset)
        oods = {
            slug_of(ood): session.images(ood, "test")
            for ood in facts.ood
            if plan.role == "in_distribution" and session.present(ood)
        }
        if general and general.image_shape[0] != facts.channels:
            raise UserError(
                f"the general model of run {plan.general and plan.general.run_id} scores images of "
                f"{general.image_shape[0]} channels, {facts.name} has {facts.channels}"
            )
        loss = experiment.loss
        return _Data(
            inliers=_batches(session, experiment, experiment.data.dataset),
            outliers=_batches(session, experiment, loss.outlier_dataset)
            if loss.outlier_loss != "none"
            else None,
            validation=Validation(
                session.images(facts.name, "test"), oods, general, session.device
            ),
        )


def _batches(session: Session, experiment: Experiment, dataset: str) -> Batches:
    images = session.images(dataset, "train", experiment.data.limit)
    return batches_of(session, experiment, images)


def batches_of(session: Session, experiment: Experiment, images: Images) -> Batches:
    """Training batches of some images, augmented as the catalogue says of their dataset."""
    check_same_shape(images.name, experiment.model.channels, "the model")
    facts = lookup(images.name)
    return Batches(
        images,
        experiment.optimisation.batch_size,
        experiment.seed,
        facts.translate,
        facts.flip,
        session.device,
    )


def _train(
    session: Session, plan: Plan, data: _Data, run_id: str, folder: Path, resumed: bool
) -> None:
    experiment, steps = plan.experiment, plan.experiment.optimisation.steps
    trainer = new_trainer(session, plan, data.inliers, data.outliers)
    model = trainer.model
    records: list[dict[str, float]] = []
    if resumed and (folder / STATE_FILE).exists():
        state = load_training(folder / STATE_FILE, experiment)
        trainer.restore(state.step, state.model, state.optimiser)
        records = state.reports
        _log(session, run_id, records, resumed=True)
        console.say(f"{plan.name}: goes on at update {state.step} of {steps}")
    elif not plan.init:
        initialise(model, data.inliers)
    with console.progress(plan.name, steps, trainer.step) as advance:

        def on_step(step: int, bpd: Callable[[], float]) -> None:
            epoch = 1 + (step - 1) // data.inliers.steps_per_pass
            advance(step, lambda: f"epoch {epoch}  {bpd():.3f} bpd")

        for report in trainer.run(on_step):
            records.append(
                {"step": report.step, **report_metrics(report), **data.validation(model)}
            )
            state = TrainingState(
                trainer.step, model.state_dict(), trainer.optimiser_tensors(), records
            )
            save_training(folder / STATE_FILE, state, experiment)
            # Where the state was lost, the run may know these steps from its first life.
            _log(session, run_id, records[-1:], resumed)
    _say_result(plan, records)
    keep_weights(session, run_id, model, experiment)


def new_trainer(
    session: Session, plan: Plan, inliers: Batches, outliers: Batches | None
) -> Trainer:
    """The plan's model with the weights of its start, where it has one, ready to be trained."""
    model = new_model(plan.experiment, session.device)
    contrast = session.model(plan.contrast).model if plan.contrast else None
    if plan.init:
        _start_from(model, session.model(plan.init).model)
    return Trainer(plan.experiment, model, inliers, outliers, contrast)


def _start_from(model: LikelihoodModel, init: LikelihoodModel) -> None:
    """Copy the weights; densities of the classes that the start has not stay N(0, I)."""
    missing, unexpected = model.load_state_dict(init.state_dict(), strict=False)
    if unexpected or any(not name.startswith("per_class.") for name in missing):
        raise UserError(f"the start does not fit the model: {[*missing, *unexpected][0]}")


def report_metrics(report: Report) -> dict[str, float]:
    """``train/bpd``, ``train/outlier_loss``, … of a report."""
    values = dataclasses.asdict(report)
    del values["step"]
    # A classifier has no BPD, and a report in which every batch was skipped has none either.
    return {f"train/{name}": float(v) for name, v in values.items() if math.isfinite(v)}


def _log(session: Session, run_id: str, records: list[dict[str, float]], resumed: bool) -> None:
    reports = [
        (int(record["step"]), {name: value for name, value in record.items() if name != "step"})
        for record in records
    ]
    runs.log_reports(session.store, run_id, reports, resumed)


def _say_result(plan: Plan, records: Sequence[Mapping[str, float]]) -> None:
    last = records[-1]
    counts = {
        "images dropped": sum(record["train/dropped_images"] for record in records),
        "batches skipped": sum(record["train/skipped_batches"] for record in records),
        "updates skipped": sum(record["train/skipped_updates"] for record in records),
    }
    unstable = "".join(f", {int(count)} {what}" for what, count in counts.items() if count)
    loss = (
        f"{last['train/bpd']:.3f} bpd in training, {last['valid/bpd']:.3f} in validation"
        if "train/bpd" in last and "valid/bpd" in last
        else f"loss {last['train/outlier_loss']:.3f}"
    )
    console.say(f"{plan.name}: {int(last['step'])} updates, {loss}{unstable}")


def keep_weights(
    session: Session, run_id: str, model: LikelihoodModel, experiment: Experiment
) -> None:
    """Put the model's weights under the run's ``checkpoints/``, their digest into its tags."""
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        digest = save_model(Path(folder) / MODEL_FILE, model, experiment)
        runs.log_artifacts(session.store, run_id, Path(folder), "checkpoints")
    runs.set_tags(session.store, run_id, {"weights": digest})
