"""The handles of a command: the store, the data folder, the device, and loaded models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from oodflow import console
from oodflow.data.catalog import data_folder, lookup
from oodflow.data.images import Images, describe, images_of, present, sampled
from oodflow.data.prepared import Prepared
from oodflow.errors import UserError
from oodflow.experiment import Experiment
from oodflow.models.device import available_device
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import AUTO, Options, PlaceOptions, RunOptions
from oodflow.tracking import runs
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store, open_store
from oodflow.training.checkpoint import MODEL_FILE, load_model
from oodflow.training.distributed import launched, world

__all__ = [
    "SAMPLE",
    "LoadedModel",
    "Session",
    "check_same_shape",
    "computing",
    "dataset_use",
    "described",
    "open_session",
]

SAMPLE = "train-sample"
"""Stands for a fold: a seeded random subset of the training images, as they are."""

SAMPLE_SEED = 0
"""The same for all models of a dataset, which are compared."""


@dataclass(frozen=True)
class LoadedModel:
    """A model from a run's checkpoint, on the device, with its experiment and digest."""

    run: RunInfo
    model: LikelihoodModel
    experiment: Experiment
    digest: str


@dataclass(frozen=True)
class Session:
    """Handles of one command; images and models that it has loaded are kept."""

    store: Store
    data_dir: Path
    device: torch.device
    project_run: str
    """The run that ``mlflow run`` made for this command, or ""."""
    form: str = "fused"
    """How models in training are computed, one of :data:`oodflow.models.form.FORMS`."""
    parts: int = 1
    """In how many parts a batch is computed."""
    _images: dict[tuple[str, str, int], Images] = field(default_factory=dict)
    _models: dict[str, LoadedModel] = field(default_factory=dict)
    _described: dict[str, Prepared] = field(default_factory=dict)
    tables: dict[tuple[str, str], tuple[Mapping[str, str], pd.DataFrame]] = field(
        default_factory=dict
    )
    """Score tables by run and path, with what they are of: an evaluation asks for each often."""
    _warned: set[str] = field(default_factory=set)

    def images(self, name: str, fold: str, limit: int = 0) -> Images:
        """A fold of a dataset, loaded once: the first ``limit`` images, of :data:`SAMPLE` any."""
        key = (name, fold, limit)
        if key not in self._images:
            ready = self.described(name)
            self._images[key] = (
                sampled(images_of(ready, "train"), limit, SAMPLE_SEED)
                if fold == SAMPLE
                else images_of(ready, fold, limit)
            )
        return self._images[key]

    def described(self, name: str) -> Prepared:
        """A dataset's true sizes, classes and digests; it is prepared where it is not yet."""
        if name not in self._described:
            self._described[name] = described(name, self.data_dir)
        return self._described[name]

    def train_digest(self, name: str) -> str:
        """Digest of a dataset's training fold; UserError where it has none."""
        return self.described(name).fold("train").digest

    def model(self, run: RunInfo) -> LoadedModel:
        """The model of a run, loaded once; UserError for a run that has none."""
        if not run.has_model:
            raise run.without_model()
        if run.run_id not in self._models:
            with runs.artifact(self.store, run.run_id, f"checkpoints/{MODEL_FILE}") as path:
                try:
                    model, experiment, digest = load_model(path)
                except UserError as error:
                    line = str(error).replace(str(path), f"checkpoints/{MODEL_FILE}")
                    raise UserError(f"run {run.run_id}: {line}") from error
            model = model.to(self.device).eval()
            self._models[run.run_id] = LoadedModel(run, model, experiment, digest)
        return self._models[run.run_id]

    def present(self, dataset: str) -> bool:
        """Whether a dataset is there: prepared, or its raw files."""
        return present(dataset, self.data_dir)

    def warn(self, line: str) -> None:
        """Say a warning, unless this command has said it; "" is none."""
        if line and line not in self._warned:
            self._warned.add(line)
            console.say(f"warning: {line}")

    def outliers(self, dataset: str) -> tuple[str, ...]:
        """The catalogue's outlier sets of a dataset whose test fold is there.

        A part of another one is left out where that one is there.
        """
        there = [
            name
            for name in lookup(dataset).ood
            if self.present(name) and "test" in self.described(name).folds
        ]
        return tuple(name for name in there if lookup(name).part_of not in there)


def described(name: str, data_dir: Path) -> Prepared:
    """A dataset's facts once it is prepared, which a bar shows where it has to be done.

    What was left out is said then.
    """
    steps = []
    with console.progress(f"preparing {name}", 0) as advance:

        def on_progress(done: int, total: int) -> None:
            steps.append(done)
            advance(done, total=total)

        ready = describe(name, data_dir, on_progress)
    if steps:
        for note in ready.notes:
            console.say(f"{name}: {note}")
    return ready


def dataset_use(session: Session, name: str, fold: str, context: str) -> runs.DatasetUse:
    """A fold of a dataset as an input of a run; ``context`` says what it was used for."""
    ready = session.described(name)
    known = ready.folds[fold]
    facts = ready.facts
    return runs.DatasetUse(
        facts.slug, fold, known.count, known.digest, context, facts.name, facts.channels
    )


def open_session(options: PlaceOptions) -> Session:
    """Open everything that the options name; UserError before any work is done."""
    if launched() != world():
        raise UserError("torchrun is for oodflow train and oodflow finetune; leave it out here")
    device = available_device(options.device)
    data_dir = data_folder(options.data_dir)
    if options.data_dir != AUTO and not data_dir.is_dir():
        raise UserError(f"no data folder at {data_dir}; make it, or leave data_dir out")
    store = open_store()
    return Session(store, data_dir, device, runs.project_run(store), *computing(options))


def computing(options: Options) -> tuple[str, int]:
    """The form in which a batch is computed, and in how many parts, by the options."""
    if not isinstance(options, RunOptions):
        return "fused", 1
    return "recomputed" if options.recompute else "fused", options.accumulate


def check_same_shape(dataset: str, channels: int, what: str) -> None:
    """Refuse a dataset whose images a model of so many channels cannot score."""
    own = lookup(dataset).channels
    if own != channels:
        raise UserError(
            f"{dataset} has {own} channel{'s' * (own > 1)}, but {what} has {channels}; "
            "use a model trained on images of the same shape"
        )
