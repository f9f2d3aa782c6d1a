"""Objectives of the families: class likelihood, classification, schedules, seeded dropout."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from oodflow.data.batches import Batches
from oodflow.data.images import Images
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.build import build_model
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.glow import Glow
from oodflow.models.wide_resnet import WideResNet
from oodflow.training.loop import Trainer
from oodflow.training.losses import wrong_class_loss
from oodflow.training.minibatch_loss import objective
from oodflow.training.optimisers import learning_rate, make_optimiser
from oodflow.training.stabilisation import all_finite
from oodflow.training.vector import ParameterVector

GENERATOR = torch.Generator().manual_seed(0)


def batches(name: str, channels: int = 1, labels: bool = False) -> Batches:
    pixels = torch.randint(60, 180, (16, channels, 32, 32), dtype=torch.uint8, generator=GENERATOR)
    classes = torch.arange(16) % 3 if labels else None
    return Batches(Images(name, "train", pixels, classes, ""), 8, 1, 0, False, "cpu")


def experiment(model: Model, loss: Loss, steps: int = 4, lr: float = 1e-3) -> Experiment:
    optimisation = Optimisation(steps, 8, lr, 0.0, 0, 2, "fp32")
    return Experiment(model, Data("x", 0), loss, optimisation, "scratch", "", seed=3)


def test_wrong_class_loss_is_the_mean_over_all_cells_with_true_classes_as_zero() -> None:
    log_prob = torch.tensor([[-10.0, -12.0, -9.0], [-7.0, -7.5, -20.0]])
    labels, contrast = [2, 0], [-11.0, -6.0]
    total = 0.0
    for i, label in enumerate(labels):
        for y in range(3):
            if y != label:
                gap = (contrast[i] - float(log_prob[i, y])) / 2.0
                total += -5.0 * math.log(1 / (1 + math.exp(-gap)))
    value = wrong_class_loss(
        log_prob, torch.tensor(labels), torch.tensor(contrast), Loss("none", "", 2.0, 5.0)
    )
    assert value.item() == pytest.approx(total / 6, rel=1e-6)


def test_supervised_objective_is_the_sum_of_its_three_parts() -> None:
    torch.manual_seed(0)
    model = ClassConditionalGlow(1, 3, depth=1, hidden=4).double()
    contrast = Glow(1, depth=1, hidden=4).double()
    inliers, outliers = batches("in", labels=True).at(0), batches("out").at(0)
    model.initialise(inliers.images, inliers.noise)
    contrast.initialise(outliers.images, outliers.noise)
    with torch.no_grad():
        for parameter in model.per_class.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    loss = Loss("binary", "out", 100.0, 50.0)
    outcome = objective(
        experiment(Model(1, "glow", 1, 4, classes=3), loss), model, contrast, inliers, outliers
    )
    per_class = model.class_log_probs(inliers.images, inliers.noise)
    true_class = per_class[torch.arange(8), inliers.labels].mean()
    wrong = wrong_class_loss(
        per_class, inliers.labels, contrast.log_prob(inliers.images, inliers.noise), loss
    )
    gap = contrast.log_prob(outliers.images, outliers.noise) - model.log_prob(
        outliers.images, outliers.noise
    )
    expected = -true_class + wrong - 50 * F.logsigmoid(gap / 100).mean()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    unlabelled = model.log_prob(inliers.images, inliers.noise)
    assert torch.allclose(outcome.log_prob, unlabelled, rtol=1e-10)


def test_classifier_objective_is_the_binary_cross_entropy_of_both_sets() -> None:
    torch.manual_seed(0)
    model = WideResNet(3, depth=10, widen=1, dropout=0.0).eval()
    inliers, outliers = batches("in", 3).at(0), batches("out", 3).at(0)
    spec = Model(3, "wide-resnet", 10, 1)
    loss = Loss("classifier", "out", 0.0, 0.0)
    outcome = objective(experiment(spec, loss), model, None, inliers, outliers)
    logits = model.logits(torch.cat((inliers.images, outliers.images)))
    target = torch.cat((torch.ones(8), torch.zeros(8)))
    expected = F.binary_cross_entropy_with_logits(logits, target)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert outcome.log_prob is None


def test_a_classifier_learns_to_tell_dark_from_bright() -> None:
    dark = Images("in", "train", torch.full((16, 1, 32, 32), 40, dtype=torch.uint8), None, "")
    bright = Images("out", "train", torch.full((16, 1, 32, 32), 200, dtype=torch.uint8), None, "")
    given = experiment(
        Model(1, "wide-resnet", 10, 1), Loss("classifier", "out", 0.0, 0.0), steps=12, lr=0.05
    )
    torch.manual_seed(0)
    model = build_model(given.model)
    sets = [Batches(images, 8, 0, 0, False, "cpu") for images in (dark, bright)]
    list(Trainer(given, model, *sets).run())
    model.eval()
    scores = [model.log_prob(images.pixels[:1]).item() for images in (dark, bright)]
    assert scores[0] > math.log(0.5) > scores[1]


def test_each_family_has_its_published_optimiser() -> None:
    kinds = {
        name: type(
            make_optimiser(
                experiment(Model(1, name, 1, 1), Loss("none", "", 0, 0)),
                [torch.nn.Parameter(torch.ones(1))],
            )
        ).__name__
        for name in ("glow", "glow-dense", "pixelcnn", "tarflow", "wide-resnet")
    }
    assert kinds == {
        "glow": "Adamax",
        "glow-dense": "Adamax",
        "pixelcnn": "Adam",
        "tarflow": "AdamW",
        "wide-resnet": "SGD",
    }


def test_pixelcnn_rate_decays_by_5e_6_an_epoch() -> None:
    given = experiment(Model(1, "pixelcnn", 1, 1), Loss("none", "", 0, 0), steps=10_000, lr=2e-4)
    rates = [learning_rate(given, step, steps_per_pass=100) for step in (0, 99, 100, 9_900)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4 * (1 - 5e-6), 2e-4 * (1 - 5e-6) ** 99])


def test_tarflow_rate_rises_linearly_and_falls_along_a_cosine_to_1e_6() -> None:
    given = experiment(Model(1, "tarflow", 1, 1), Loss("none", "", 0, 0), steps=1100, lr=1e-4)
    given = replace(given, optimisation=replace(given.optimisation, warmup=100))
    rates = [learning_rate(given, step, 100) for step in (0, 49, 99, 100, 350, 600, 1100)]
    halfway, quarter = (1e-4 + 1e-6) / 2, 1e-6 + 9.9e-5 * (1 + math.sqrt(0.5)) / 2
    assert rates == pytest.approx([1e-6, 5e-5, 1e-4, 1e-4, quarter, halfway, 1e-6])


def test_wide_resnet_rate_falls_by_a_fifth_at_epochs_60_120_and_160_of_200() -> None:
    loss = Loss("classifier", "", 0, 0)
    given = experiment(Model(1, "wide-resnet", 10, 1), loss, steps=200 * 390, lr=0.1)
    rates = [learning_rate(given, epoch * 390, 390) for epoch in (0, 59, 60, 119, 120, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


def test_dropout_is_a_function_of_seed_and_position() -> None:
    """A run continued after two updates drops the same units as one that was not interrupted."""
    model = Model(1, "pixelcnn", 1, 4, mixtures=2, dropout=0.5)
    given = experiment(model, Loss("none", "", 0.0, 0.0))

    pixels = batches("fixed")
    runs = []
    for stop in (None, 2):
        torch.manual_seed(0)
        first = Trainer(given, build_model(model), pixels)
        for report in first.run():
            if report.step == stop:
                break
        if stop:
            torch.manual_seed(99)
            second = Trainer(given, build_model(model), pixels)
            second.restore(first.state())
            list(second.run())
            first = second
        runs.append(first.model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


class _Queued(TorchDispatchMode):
    """Refuses what cannot be queued on a device: copying a number, or asking how many are true."""

    REFUSED = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.is_nonzero.default,
    }

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in self.REFUSED, function
        masks = args[1] if function is torch.ops.aten.index.Tensor else ()
        assert all(index is None or index.dtype != torch.bool for index in masks)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("supervised", [False, True])
def test_objective_and_gradients_never_wait_for_the_device(supervised: bool) -> None:
    torch.manual_seed(0)
    classes = 3 if supervised else 0
    spec = Model(1, "glow", 1, 4, classes=classes)
    model, contrast = build_model(spec), Glow(1, depth=1, hidden=4)
    inliers, outliers = batches("in", labels=True).at(0), batches("out").at(0)
    given = experiment(spec, Loss("binary", "out", 100.0, 50.0))
    vector = ParameterVector(model.parameters())
    with _Queued():
        outcome = objective(given, model, contrast, inliers, outliers)
        outcome.loss.backward()
        assert all_finite(vector.gather()).shape == ()
    assert outcome.finite.tolist() == [True] * 16
    with pytest.raises(AssertionError), _Queued():
        objective(given, model, contrast, inliers, outliers, outcome.finite)
