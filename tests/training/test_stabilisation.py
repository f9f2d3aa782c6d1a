"""Stabilisation (S4.3) with real infinities in the batch: 0 %, 50 %, 75 % and 80 % of it."""

import math

import pytest
import torch
from torch import Tensor, nn

from oodflow.data.batches import Batches
from oodflow.data.images import Images
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.likelihood import LikelihoodModel
from oodflow.training.loop import Trainer, TrainingReport
from oodflow.training.stabilisation import StableLogProbs, all_finite, stable_log_probs

INFINITE = 255
"""Images whose first pixel has this value get log-likelihood −∞ from the toy model."""


class Toy(LikelihoodModel):
    """log p(x) = −w·mean(x); −∞, with a NaN gradient, for the marked images."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape = (1, 4, 4)
        self.scales = 1
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen: list[int] = []

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        self.seen.append(len(images))
        pixels = images.float().flatten(1)
        marked = pixels[:, 0] == INFINITE
        # 0·(1/0) below makes the gradient of the whole batch NaN where an image is marked.
        pole = torch.where(marked, 1 / (self.weight * (~marked)), torch.zeros_like(pixels[:, 0]))
        return (-self.weight * pixels.mean(1) - pole)[:, None]


def batch_with(marked: int, size: int) -> Tensor:
    images = torch.full((size, 1, 4, 4), 10, dtype=torch.uint8)
    images[:marked, 0, 0, 0] = INFINITE
    return images


def stable(
    model: Toy, images: Tensor, sizes: tuple[int, ...], contrast: Tensor | None = None
) -> StableLogProbs:
    """As the loop does it: all images first, and where some are not finite the others again."""
    noise = torch.zeros(images.shape)
    hopeful = stable_log_probs(model.log_prob, images, noise, sizes, contrast)
    finite = torch.cat(hopeful.finite)
    if finite.all():
        return hopeful
    return stable_log_probs(model.log_prob, images, noise, sizes, contrast, finite)


@pytest.mark.parametrize(("marked", "passes"), [(0, 1), (10, 2), (15, 2)])
def test_up_to_75_percent_leave_and_the_rest_is_computed_again(marked: int, passes: int) -> None:
    model = Toy()
    result = stable(model, batch_with(marked, 20), (20,))
    assert result.dropped == marked
    assert model.seen == [20, 20 - marked][:passes]
    (log_prob,) = result.log_probs
    assert log_prob.tolist() == pytest.approx([-20.0] * (20 - marked))
    log_prob.mean().backward()
    assert model.weight.grad.item() == pytest.approx(-10.0)


def test_beyond_75_percent_the_batch_is_skipped() -> None:
    model = Toy()
    result = stable(model, batch_with(16, 20), (20,))
    assert result.log_probs is None and result.dropped == 16
    assert model.seen == [20]


def test_each_minibatch_is_judged_by_itself() -> None:
    """16 of 40 images are few, but they are 80 % of the outliers."""
    images = torch.cat((batch_with(0, 20), batch_with(16, 20)))
    assert stable(Toy(), images, (20, 20)).log_probs is None
    images = torch.cat((batch_with(5, 20), batch_with(15, 20)))
    result = stable(Toy(), images, (20, 20))
    assert [len(part) for part in result.log_probs] == [15, 5]


def test_images_the_contrast_cannot_score_leave_too() -> None:
    contrast = torch.zeros(4)
    contrast[1] = -math.inf
    result = stable(Toy(), batch_with(0, 8), (4, 4), contrast)
    assert result.finite[1].tolist() == [True, False, True, True]
    assert [len(part) for part in result.log_probs] == [4, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nan_or_infinite_number_is_seen_wherever_it_is(bad: float) -> None:
    values = torch.full((40,), 3e38)
    assert all_finite(values)
    for place in (0, 17, 39):
        assert not all_finite(values.index_fill(0, torch.tensor(place), bad))


def toy_run(
    pixels: Tensor,
    loss: Loss,
    outliers: Tensor | None = None,
    contrast: Toy | None = None,
    parts: int = 1,
) -> tuple[Toy, TrainingReport]:
    """One update on all the images as one batch, computed in so many parts."""
    optimisation = Optimisation(1, len(pixels), 0.1, 0.0, 0, 1, "fp32")
    experiment = Experiment(Model(1, "glow", 1, 1), Data("x", 0), loss, optimisation, "", "", 0)

    def batches(name: str, images: Tensor) -> Batches:
        return Batches(Images(name, "train", images, None, ""), len(images), 0, 0, False, "cpu")

    model = Toy()
    trainer = Trainer(
        experiment,
        model,
        batches("in", pixels),
        batches("out", outliers) if outliers is not None else None,
        contrast,
        parts=parts,
    )
    return model, next(trainer.run())


NONE = Loss("none", "", 0.0, 0.0)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    ("marked", "dropped", "skipped", "moves"),
    [(0, 0, 0, True), (10, 10, 0, True), (16, 16, 1, False)],
)
def test_an_update_counts_what_left_and_what_was_skipped(
    marked: int, dropped: int, skipped: int, moves: bool, parts: int
) -> None:
    model, report = toy_run(batch_with(marked, 20), NONE, parts=parts)
    assert (report.dropped_images, report.skipped_batches) == (dropped, skipped)
    assert report.skipped_updates == 0
    # Adamax's first step has the size of the learning rate, downhill: −w·10 wants a smaller w.
    assert model.weight.item() == pytest.approx(1.9 if moves else 2.0)
    if moves:
        assert report.bpd == pytest.approx(20 / (16 * math.log(2)))


def test_a_non_finite_gradient_skips_the_update_alone() -> None:
    class Broken(Toy):
        def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
            value = super().forward(images, noise)
            # The square root's slope at 0 is infinite, the value is finite.
            return value + (self.weight - self.weight.detach()).abs().sqrt()

    optimisation = Optimisation(2, 4, 0.1, 0.0, 0, 2, "fp32")
    experiment = Experiment(Model(1, "glow", 1, 1), Data("x", 0), NONE, optimisation, "", "", 0)
    model = Broken()
    images = Images("in", "train", batch_with(0, 4), None, "")
    report = next(Trainer(experiment, model, Batches(images, 4, 0, 0, False, "cpu")).run())
    assert (report.skipped_updates, report.skipped_batches) == (2, 0)
    assert model.weight.item() == 2.0


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_outlier_loss_is_over_the_images_kept(parts: int) -> None:
    loss = Loss("binary", "out", 100.0, 50.0)
    contrast = Toy()
    outliers = batch_with(4, 8)
    _, report = toy_run(batch_with(0, 8), loss, outliers, contrast, parts)
    # Contrast and model are equal where both are finite: −λ log σ(0).
    assert report.outlier_loss == pytest.approx(50 * math.log(2), rel=1e-6)
    assert report.dropped_images == 4


def test_the_margin_loss_keeps_pairs_together() -> None:
    loss = Loss("margin", "out", 0.0, 1.0)
    model, report = toy_run(batch_with(3, 8), loss, batch_with(2, 8) // 2)
    assert report.dropped_images == 3
    # The permutations of the two sets differ, so only the count of terms can be foretold: every
    # kept pair gives margin + nll_in − nll_out with nll_in = 2·10 and nll_out = 2·5 or, marked,
    # 2·(5·15 + 127)/16.
    low, high = 16 + 20 - 2 * (5 * 15 + 127) / 16, 16 + 20 - 10
    assert low <= report.outlier_loss <= high
