"""A training that is made one update at a time, each part of which is timed.

All of it is real: batches, objective, stabilisation, optimiser, report and journal. Only the images
are noise: their content does not change the cost.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from oodflow.bench.machine import kept_bytes, now, peak_memory
from oodflow.data.batches import Batches
from oodflow.data.images import Images
from oodflow.evaluation.validation import VALIDATION_IMAGES, Validation
from oodflow.experiment import Experiment
from oodflow.models.form import computed_as
from oodflow.models.precision import precision_context
from oodflow.tracking.journal import append_report
from oodflow.training.checkpoint import save_training
from oodflow.training.loop import Trainer, new_model
from oodflow.training.minibatch_loss import objective

__all__ = ["IMAGES", "PHASES", "TimedTraining", "noise_batches"]

PHASES = ("data", "forward", "backward", "optimiser", "logging")

IMAGES = 50_000
"""Images of a training set, as in CIFAR10."""


class TimedTraining:
    """Updates of an experiment's training in one form, on RGB or grey noise."""

    def __init__(self, experiment: Experiment, device: torch.device, form: str) -> None:
        self.experiment = experiment
        self.device = device
        self.seconds: list[dict[str, float]] = []
        """For each update the seconds of each of :data:`PHASES`."""
        self._spent: dict[str, float] = defaultdict(float)
        # A report with every update returns to the caller after each; its cost is shared out.
        each = replace(experiment, optimisation=replace(experiment.optimisation, report_every=1))
        inliers = noise_batches("inliers", experiment, device)
        model, contrast = new_model(each, device), None
        # A single batch is enough for numbers that stay finite.
        first = inliers.at(0)
        model.initialise(first.images, first.noise)
        if experiment.loss.outlier_loss == "binary":
            contrast = new_model(each, device)
            contrast.load_state_dict(model.state_dict())
        has_outliers = experiment.loss.outlier_loss != "none"
        outliers = noise_batches("outliers", experiment, device) if has_outliers else None
        self.trainer = Trainer(each, model, inliers, outliers, contrast, form, timed=self._timed)
        self.images_per_update = inliers.batch_size * (1 + has_outliers)
        self._reports = self.trainer.run(self._on_step)

    def update(self) -> None:
        """Make one update; it carries its share of the cost of a report."""
        self._spent.clear()
        begin = now(self.device)
        report = next(self._reports)
        if report.dropped_images or report.skipped_updates:
            raise RuntimeError("an update met numbers that are not finite: its time means nothing")
        bookkeeping = self._end - begin - sum(self._spent.values())
        with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
            append_report(Path(folder) / "journal", report.step, {"train/bpd": report.bpd})
            reporting = now(self.device) - self._end
        share = reporting / self.experiment.optimisation.report_every
        self._spent["logging"] = bookkeeping + share
        self.seconds.append({phase: self._spent[phase] for phase in PHASES})

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = now(self.device)
        yield
        self._spent[phase] += now(self.device) - begin

    def _on_step(self, step: int, bpd: Callable[[], float]) -> None:
        self._end = now(self.device)

    def report_seconds(self) -> float:
        """Seconds of a report: a validation on the own and four outlier sets, and saving the state.

        CIFAR10 has four outlier sets. Delivery to the store, in another thread, does not count.
        """
        trainer = self.trainer
        own, *others = (
            noise_images(f"set {i}", self.experiment, VALIDATION_IMAGES) for i in range(5)
        )
        precision = self.experiment.optimisation.precision
        sets = {each.name: each for each in others}
        validation = Validation(own, sets, None, self.device, precision)
        begin = now(self.device)
        metrics = validation(trainer.model)
        with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
            append_report(Path(folder) / "journal", trainer.step, metrics)
            save_training(Path(folder), trainer.state(), self.experiment)
            return now(self.device) - begin

    def peak_bytes(self) -> int:
        """Peak bytes in use during an update, which is made for this measurement."""
        lasting = (*self._weights(), *self._optimiser_tensors(), self.trainer.vector.gradients)
        self.trainer.vector.clear()
        return sum(each.nbytes for each in lasting) + peak_memory(self.update, self.device)

    def traffic_bytes(self) -> int:
        """Bytes that an update has to move through memory; see :class:`measurement.Floor`."""
        trainer = self.trainer
        weights = sum(tensor.nbytes for tensor in trainer.model.parameters())
        frozen = sum(t.nbytes for t in trainer.contrast.parameters()) if trainer.contrast else 0
        state = sum(tensor.nbytes for tensor in self._optimiser_tensors())
        return 6 * weights + 2 * state + frozen + 2 * self._kept_bytes()

    def _kept_bytes(self) -> int:
        trainer = self.trainer
        inliers = trainer.inliers.at(0)
        outliers = trainer.outliers.at(0) if trainer.outliers else None
        precision = precision_context(self.experiment.optimisation.precision, self.device)
        with precision, computed_as("fused"):
            return kept_bytes(
                lambda: objective(
                    self.experiment, trainer.model, trainer.contrast, inliers, outliers
                ),
                {tensor.untyped_storage().data_ptr() for tensor in self._weights()},
            )

    def _weights(self) -> Iterator[Tensor]:
        trainer = self.trainer
        for model in filter(None, (trainer.model, trainer.contrast)):
            yield from model.state_dict().values()

    def _optimiser_tensors(self) -> list[Tensor]:
        return list(self.trainer.optimiser_tensors().values())


def noise_images(name: str, experiment: Experiment, count: int) -> Images:
    """``count`` images of noise, with labels of the experiment's classes."""
    generator = torch.Generator()
    shape = (count, experiment.model.channels, 32, 32)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(max(experiment.model.classes, 1), (count,), generator=generator)
    return Images(name, "train", pixels, labels, "")


def noise_batches(
    name: str, experiment: Experiment, device: torch.device, count: int = IMAGES
) -> Batches:
    """Training batches of ``count`` images of noise."""
    return Batches(
        noise_images(name, experiment, count),
        experiment.optimisation.batch_size,
        seed=0,
        translate=3,
        flip=True,
        device=device,
    )
