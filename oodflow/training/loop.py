"""The training loop: batches in, reports out, resumable after every update (S4.1, S4.3)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from oodflow.data.batches import Batch, Batches, step_generator
from oodflow.experiment import Experiment
from oodflow.models.build import build_model
from oodflow.models.form import computed_as
from oodflow.models.likelihood import LikelihoodModel, bits_per_dimension
from oodflow.models.precision import precision_context
from oodflow.training.checkpoint import TrainingState
from oodflow.training.distributed import average, broadcast_module, rank, total, world
from oodflow.training.minibatch_loss import BatchLoss, joint, objective
from oodflow.training.optimisers import (
    learning_rate,
    make_optimiser,
    restore_state,
    state_tensors,
)
from oodflow.training.stabilisation import all_finite
from oodflow.training.vector import ParameterVector

__all__ = ["TrainingReport", "Trainer", "initialise", "new_model"]

INITIALISATION_IMAGES = 704
"""Images in the one pass of data-dependent initialisation (authors' code: 11 batches of 64)."""


@dataclass(frozen=True)
class TrainingReport:
    """Means over the updates since the last report; ``step`` counts updates from the start."""

    step: int
    bpd: float
    outlier_loss: float
    dropped_images: int
    skipped_batches: int
    skipped_updates: int


def new_model(experiment: Experiment, device: torch.device) -> LikelihoodModel:
    """Random weights from the experiment's seed, the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        model = build_model(experiment.model)
    return model.to(device)


def initialise(model: LikelihoodModel, batches: Batches) -> None:
    """Data-dependent initialisation on the first batches of the training stream."""
    count = min(-(-INITIALISATION_IMAGES // batches.batch_size), batches.steps_per_pass)
    first = [batches.at(step) for step in range(count)]
    model.initialise(torch.cat([b.images for b in first]), torch.cat([b.noise for b in first]))


class Trainer:
    """A model under training: the weights, the optimiser, and how many updates it has had."""

    def __init__(
        self,
        experiment: Experiment,
        model: LikelihoodModel,
        inliers: Batches,
        outliers: Batches | None = None,
        contrast: LikelihoodModel | None = None,
        form: str = "fused",
        parts: int = 1,
        timed: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``outliers`` and the frozen ``contrast`` model serve the outlier loss.

        ``form`` is how the models are computed, one of :data:`oodflow.models.form.FORMS`.
        A batch is computed in ``parts`` equal parts, one after another, which share the memory.
        ``timed(phase)`` is entered around data, forward, backward and optimiser of each update.
        """
        self.experiment = experiment
        self.model = model.train()
        self.inliers = inliers
        self.outliers = outliers
        self.contrast = contrast.eval().requires_grad_(False) if contrast else None
        self.form = form
        self.parts = parts
        self.timed = timed
        self.step = 0
        self._totals = self._new_totals()
        self.vector = ParameterVector(model.parameters())
        sizes = self.vector.sizes if form == "plain" else ()
        self.optimiser = make_optimiser(experiment, self.vector.chunks(sizes))

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state as named tensors: parameter's position, then the state's name."""
        return state_tensors(self.optimiser, self.vector)

    def state(self) -> TrainingState:
        """The state between two updates; its tensors are the live ones, which updates change."""
        totals = self._totals.tensors() if self._totals.updates else {}
        return TrainingState(self.step, self.model.state_dict(), self.optimiser_tensors(), totals)

    def restore(self, state: TrainingState) -> None:
        """Go back to a saved state; the next update is number ``state.step``."""
        self.model.load_state_dict(state.model)
        restore_state(self.optimiser, self.vector, state.optimiser)
        self.step = state.step
        self._totals = self._new_totals()
        self._totals.restore(state.totals)

    def _new_totals(self) -> "_Totals":
        return _Totals(self.inliers.device, self.model.image_shape)

    def run(
        self, on_step: Callable[[int, Callable[[], float]], None] | None = None
    ) -> Iterator[TrainingReport]:
        """Train to the end, one report every ``report_every`` updates and one at the end.

        ``on_step(step, bpd)`` is called after each update; ``bpd()`` copies the mean BPD since the
        last report from the device, for a progress bar.

        Processes that train together begin with the weights of the first. All yield the same
        reports; only ``bpd()`` is over the process's own images.
        """
        broadcast_module(self.model)
        settings = self.experiment.optimisation
        while self.step < settings.steps:
            next_report = (self.step // settings.report_every + 1) * settings.report_every
            end = min(next_report, settings.steps)
            while self.step < end:
                precision = precision_context(settings.precision, self.inliers.device)
                with precision, computed_as(self.form):
                    self._update()
                self.step += 1
                if on_step:
                    on_step(self.step, self._totals.bpd)
            report = self._totals.report(self.step)
            self._totals = self._new_totals()
            yield report

    def _update(self) -> None:
        """One update of the weights, unless S4.3 says to skip it."""
        with self.timed("data"):
            # Each process makes the whole batch, noise included, and takes its part of it.
            inliers = self.inliers.at(self.step).part(rank(), world())
            outliers = None
            if self.outliers:
                outliers = self.outliers.at(self.step).part(rank(), world())
        outcome = self._descend(inliers, outliers)
        likelihoods, gradients = self._finite(outcome)
        if not likelihoods:
            outcome = self._descend(inliers, outliers, outcome.finite)
            gradients = outcome.loss is not None and self._finite(outcome)[1]
        self._totals.count(outcome)
        if outcome.loss is None:
            return
        if not gradients:
            self._totals.skipped_updates += 1
            return
        with self.timed("optimiser"):
            rate = learning_rate(self.experiment, self.step, self.inliers.steps_per_pass)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()

    def _descend(
        self, inliers: Batch, outliers: Batch | None, finite: Tensor | None = None
    ) -> BatchLoss:
        """The objective and its gradients; :func:`objective` explains ``finite``.

        As long as all images count as finite, equal parts of a batch have equal shares in every
        mean. Otherwise the whole batch is computed at once, in the recomputed form to save memory.
        """
        # First, so that old gradients and new activations are never in memory together.
        self.vector.clear()
        if self.parts == 1 or finite is not None:
            with computed_as(self.form if self.parts == 1 else "recomputed"):
                outcome = self._backward(inliers, outliers, finite)
        else:
            outcome = joint(
                [
                    self._backward(
                        inliers.part(number, self.parts),
                        outliers and outliers.part(number, self.parts),
                        number=number,
                    )
                    for number in range(self.parts)
                ]
            )
        if outcome.loss is not None:
            with self.timed("backward"):
                average(self.vector.gather())
        return outcome

    def _backward(
        self,
        inliers: Batch,
        outliers: Batch | None,
        finite: Tensor | None = None,
        number: int = 0,
    ) -> BatchLoss:
        """The objective of a part; its share of the gradients is added to the existing ones."""
        share = 1.0 if finite is not None else 1 / self.parts
        with self.timed("forward"), self._seeded_dropout(number):
            outcome = objective(
                self.experiment, self.model, self.contrast, inliers, outliers, finite
            )
        if outcome.loss is not None:
            with self.timed("backward"):
                # A process whose images were all dropped takes part in the average only.
                if outcome.loss.requires_grad:
                    (outcome.loss * share).backward()
        return outcome

    def _finite(self, outcome: BatchLoss) -> tuple[bool, bool]:
        """Whether all likelihoods and all gradients are finite.

        The only place in an update that waits for the device: by now all its work is queued.
        """
        with self.timed("backward"):
            gradients = all_finite(self.vector.gradients)
            likelihoods = outcome.finite
            if likelihoods is None:
                return True, bool(gradients)
            both = torch.stack((total((~likelihoods).sum()) == 0, gradients))
            return tuple(both.tolist())

    @contextmanager
    def _seeded_dropout(self, number: int) -> Iterator[None]:
        """Dropout that, like all randomness, is a function of seed and position.

        Every process and every part of its batch draws its own units.
        """
        if not self.experiment.model.dropout:
            yield
            return
        device = self.inliers.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            place = rank() * self.parts + number
            stream = f"dropout/{place}" if place else "dropout"
            generator = step_generator(self.experiment.seed, stream, self.step)
            torch.manual_seed(generator.initial_seed())
            yield


class _Totals:
    """Sums since the last report; those of tensors stay on the device until they are read."""

    def __init__(self, device: torch.device, image_shape: tuple[int, int, int]) -> None:
        zeros = torch.zeros(2, dtype=torch.float64, device=device)
        self.sums = {"log_prob": zeros, "outlier_loss": zeros.clone()}
        self.image_shape = image_shape
        self.updates = self.dropped_images = self.skipped_batches = self.skipped_updates = 0

    def tensors(self) -> dict[str, Tensor]:
        """All of them, to be kept in a checkpoint."""
        counts = self.updates, self.dropped_images, self.skipped_batches, self.skipped_updates
        return self.sums | {"counts": torch.tensor(counts)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`tensors` gave; from zero where there is nothing."""
        if not tensors:
            return
        self.sums = {name: tensors[name].to(old.device) for name, old in self.sums.items()}
        counts = tensors["counts"].tolist()
        self.updates, self.dropped_images, self.skipped_batches, self.skipped_updates = counts

    def count(self, outcome: BatchLoss) -> None:
        """Add the results of one update."""
        self.updates += 1
        self.dropped_images += outcome.dropped
        self.skipped_batches += outcome.loss is None
        for name, values in (
            ("log_prob", outcome.log_prob),
            ("outlier_loss", outcome.outlier_loss),
        ):
            if values is not None:
                values = values.detach().view(-1)
                self.sums[name] += torch.stack((values.sum(), torch.ones_like(values).sum()))

    def mean(self, name: str) -> Tensor:
        summed, count = self.sums[name]
        return summed / count

    def bpd(self) -> float:
        return float(bits_per_dimension(self.mean("log_prob"), self.image_shape))

    def report(self, step: int) -> TrainingReport:
        """The report over all processes, each of which has sums over its own images."""
        self.sums = {name: total(sums) for name, sums in self.sums.items()}
        return TrainingReport(
            step=step,
            bpd=self.bpd(),
            outlier_loss=float(self.mean("outlier_loss").nan_to_num()),
            dropped_images=self.dropped_images,
            skipped_batches=self.skipped_batches,
            skipped_updates=self.skipped_updates,
        )
