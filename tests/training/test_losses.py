"""Losses against METHOD's check value, and against their formulas written out."""

import math

import pytest
import torch

from oodflow.experiment import Loss
from oodflow.training.losses import binary_outlier_loss, margin_outlier_loss, outlier_loss

IN_MODEL = -torch.tensor([4800, 5600, 6900, 6500, 7800, 7600, 8500, 9300], dtype=torch.float64)
GENERAL = -torch.linspace(5000, 9000, 8, dtype=torch.float64)


def test_binary_loss_has_the_published_check_value() -> None:
    value = binary_outlier_loss(IN_MODEL, GENERAL, temperature=1000, weight=6000)
    assert value.item() == pytest.approx(3884.1006, abs=5e-5)


def test_binary_loss_is_the_tempered_odds_of_equation_s1() -> None:
    """−λ log( p_g^(1/T) / (p_in^(1/T) + p_g^(1/T)) ), evaluated with Python's floats."""
    model, general, temperature, weight = [-3.0, -1.5], [-2.0, -4.0], 2.0, 5.0
    odds = [
        math.exp(g / temperature) / (math.exp(m / temperature) + math.exp(g / temperature))
        for m, g in zip(model, general, strict=True)
    ]
    expected = -weight * sum(map(math.log, odds)) / 2
    value = binary_outlier_loss(torch.tensor(model), torch.tensor(general), temperature, weight)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_binary_loss_pushes_only_the_model_and_downwards() -> None:
    model = IN_MODEL.clone().requires_grad_()
    binary_outlier_loss(model, GENERAL, 1000, 6000).backward()
    assert (model.grad > 0).all()  # type: ignore[operator]


def test_binary_loss_stays_finite_far_from_zero() -> None:
    far = binary_outlier_loss(torch.tensor([1e8]), torch.tensor([-1e8]), 1000, 6000)
    assert far.item() == pytest.approx(6000 * 2e8 / 1000, rel=1e-6)


def test_margin_loss_counts_the_pairs_within_the_margin() -> None:
    inlier = torch.tensor([-10.0, -10.0, -10.0], requires_grad=True)
    outlier = torch.tensor([-11.0, -13.0, -20.0], requires_grad=True)
    value = margin_outlier_loss(inlier, outlier, margin=5.0, weight=2.0)
    # margin + nll_in − nll_out = 4, 2, −5
    assert value.item() == pytest.approx(2 * (4 + 2 + 0) / 3)
    value.backward()
    assert inlier.grad is None
    assert outlier.grad.tolist() == pytest.approx([2 / 3, 2 / 3, 0])  # type: ignore[union-attr]


def test_the_margin_is_the_number_of_dimensions() -> None:
    loss = Loss("margin", "x", 0.0, 1.0)
    value = outlier_loss(loss, torch.tensor([-7.0]), torch.tensor([-7.0]), None, dimensions=3072)
    assert value.item() == 3072


def test_binary_loss_without_a_contrast_is_refused() -> None:
    with pytest.raises(ValueError, match="contrast"):
        outlier_loss(Loss("binary", "x", 1.0, 1.0), torch.ones(1), torch.ones(1), None, 1)
