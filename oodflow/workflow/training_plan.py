"""The plan of a training: its experiment, the runs that it builds on, its tags and record."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from oodflow.data.catalog import is_own, slug_of
from oodflow.experiment import Experiment, json_hash, parameters, spec_hash, to_dict
from oodflow.tracking import runs
from oodflow.tracking.journal import Record, new_record
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow.session import Session, dataset_use

__all__ = ["TrainingPlan", "device_name", "made_with", "model_name", "record_of", "run_tags"]


@dataclass(frozen=True)
class TrainingPlan:
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
    """Tags that name the source of parameters, such as a study."""

    @property
    def name(self) -> str:
        """The run's name, ``shapes · binary · s1``: first what tells it from those beside it."""
        return f"{self._words} · s{self.experiment.seed}"

    @property
    def group(self) -> str:
        """What the runs of one setting have in common, whatever their seed; readable and unique."""
        facts = to_dict(self.experiment) | {"init": self.start, "role": self.role}
        # The models that it builds on may have a seed each.
        del facts["seed"], facts["general"]
        return f"{self._words} · {json_hash(facts)[:6]}"

    @property
    def _words(self) -> str:
        """Dataset and loss; model and start only where they are not the usual ones."""
        model, loss = self.experiment.model, self.experiment.loss
        general = self.role == "general"
        words = ["supervised"] if model.classes else []
        if loss.outlier_loss != "none":
            words.append(loss.outlier_loss)
            if not self.init or self.init.tags.get("dataset") != loss.outlier_dataset:
                words.append(f"against {_short(loss.outlier_dataset)}")
        elif not general:
            words.append("plain")
        found = [_short(self.experiment.data.dataset), " ".join(words)]
        found.append("" if model.name == "glow" else model.name)
        usual = "scratch" if general and self.kind == "train" else "general"
        found.append("" if self.start == usual else f"from {self.start}")
        return " · ".join(filter(None, found))


def _short(dataset: str) -> str:
    """``shapes`` of sketch-shapes: most runs of a store are of one family of datasets."""
    return slug_of(dataset) if is_own(dataset) else dataset.removeprefix("sketch-")


def run_tags(plan: TrainingPlan) -> dict[str, str]:
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
        "group": plan.group,
        "spec": spec_hash(experiment),
        "registered": "false",
    }
    tags |= {name: run.run_id for name, run in
             (("init_run", plan.init), ("contrast_run", plan.contrast)) if run}  # fmt: skip
    plugins = {
        "plugin.model": experiment.model.plugin,
        "plugin.dataset": experiment.data.plugin,
        "plugin.outlier_dataset": experiment.loss.outlier_plugin,
    }
    tags |= {name: plugin for name, plugin in plugins.items() if plugin}
    return tags | dict(plan.origins)


def made_with(device: torch.device) -> dict[str, str]:
    """Tags that say what a training ran on, since numbers differ between machines and versions."""
    cpu = f" ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else ""
    return {
        "device": device_name(device) + cpu,
        "versions": f"oodflow {version('oodflow')}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }


def device_name(device: torch.device) -> str:
    """What a duration was measured on: ``cpu``, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def model_name(plan: TrainingPlan) -> str:
    """Name in the model registry; its versions are the seeds and repetitions."""
    words = ["oodflow", plan.experiment.model.name, slug_of(plan.experiment.data.dataset)]
    if plan.experiment.model.classes:
        words.append("supervised")
    if plan.experiment.loss.outlier_loss != "none":
        words.append(plan.experiment.loss.outlier_loss)
    return "-".join(words)


def record_of(session: Session, plan: TrainingPlan, parent: str) -> Record:
    """All that a store receives when the run begins, enough for another store to finish it."""
    general = plan.general
    return new_record(
        plan.name,
        run_tags(plan) | made_with(session.device),
        parameters(plan.experiment),
        tuple(_datasets(session, plan)),
        parent=parent,
        general_run=general.run_id if general else "",
        general_spec=general.tags.get("spec", "") if general else "",
    )


def _datasets(session: Session, plan: TrainingPlan) -> list[runs.DatasetUse]:
    """The training folds, for the run's inputs in MLflow."""
    uses = {
        "training": plan.experiment.data.dataset,
        "outliers": plan.experiment.loss.outlier_dataset,
    }
    return [dataset_use(session, name, "train", use) for use, name in uses.items() if name]
