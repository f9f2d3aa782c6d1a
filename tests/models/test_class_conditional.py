"""Class-conditional Glow: against the public implementation, its marginal, and its numerics."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from oodflow.errors import UserError
from oodflow.models.class_conditional import ClassConditionalGlow, ClassGaussians
from oodflow.models.glow import Glow

PARTS = {
    "loc": "actnorm/loc",
    "log_scale": "actnorm/log_scale",
    "mean": "gaussian/mean",
    "log_std": "gaussian/log_std",
}


def small(classes: int = 3, deviation: float = 0.2) -> ClassConditionalGlow:
    torch.manual_seed(4)
    glow = ClassConditionalGlow(1, classes, depth=1, hidden=4, size=8).double()
    glow.initialise(torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8), 0.5)
    with torch.no_grad():
        for parameter in glow.per_class.parameters():
            parameter.normal_(0, deviation)
    return glow


def test_agrees_with_the_public_implementation(public: Callable[[str], Any]) -> None:
    file = public("glow_class_conditional_rgb")
    classes = file.meta["classes"]
    for i in range(3):
        for own, theirs in PARTS.items():
            stacked = [file.arrays[f"param/class{y}/scale{i + 1}/{theirs}"] for y in range(classes)]
            file.state[f"per_class.{i}.{own}"] = torch.from_numpy(np.stack(stacked))
    glow = ClassConditionalGlow(3, classes, file.meta["K"], file.meta["hidden"])
    glow.load_state_dict(file.state)
    levels = 3072 * math.log(256)
    with torch.no_grad():
        per_class = glow.class_log_probs(file.images, 0.5).numpy().astype(np.float64) + levels
        marginal = glow.log_prob(file.images).numpy().astype(np.float64) + levels
    assert np.abs(per_class - file.arrays["log_prob_per_class"]).max() < 1e-2
    assert np.abs(marginal - file.arrays["log_prob_marginal"]).max() < 1e-2
    of_label = per_class[np.arange(len(per_class)), file.arrays["labels"]]
    assert np.abs(of_label - file.arrays["log_prob_of_label"]).max() < 1e-2


def test_contributions_follow_the_chain_rule_from_the_last_scale() -> None:
    glow = small()
    images = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)
    v = glow.preprocess(images, 0.5)
    per_class = glow.encode_per_class(v)[1]
    contributions = glow.encode(v)[1]
    # log p of scale i and all later ones, without labels.
    marginal = [(per_class[:, i:].sum(1).logsumexp(1) - math.log(3)) for i in range(3)]
    assert torch.allclose(contributions[:, 2], marginal[2], rtol=1e-12)
    assert torch.allclose(contributions[:, 1], marginal[1] - marginal[2], rtol=1e-10)
    assert torch.allclose(contributions[:, 0], marginal[0] - marginal[1], rtol=1e-10)
    whole = glow.class_log_probs(images, 0.5).logsumexp(1) - math.log(3)
    assert torch.allclose(glow.log_prob(images), whole, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_classes_are_plain_glow(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    glow = ClassConditionalGlow(3, 7, depth=1, hidden=4, size=8).to(dtype)
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    glow.initialise(images, 0.5)
    plain = Glow(3, depth=1, hidden=4, size=8).to(dtype)
    missing, unexpected = plain.load_state_dict(glow.state_dict(), strict=False)
    assert missing == [] and all(name.startswith("per_class.") for name in unexpected)
    with torch.no_grad():
        per_class = glow.class_log_probs(images, 0.5)
        rtol = 1e-6 if dtype == torch.float32 else 1e-12
        assert torch.allclose(glow(images, 0.5), plain(images, 0.5), rtol=rtol)
    assert torch.equal(per_class, per_class[:, :1].expand_as(per_class))


def test_initialisation_makes_all_classes_standard_normal() -> None:
    glow = small()
    glow.initialise(torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8), 0.5)
    assert not any(parameter.any() for parameter in glow.per_class.parameters())


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_float32_suffices_for_a_hundred_classes_of_3072_dimensions(shift: float) -> None:
    """Differences between the classes too, where all of them are far from the origin."""
    torch.manual_seed(0)
    exact = ClassGaussians(100, 3072).double()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.normal_(0, 0.3)
        exact.loc += shift
    z = torch.randn(16, 3072, dtype=torch.float64) - shift
    expected = exact(z)
    mean, log_std = exact.moments()
    for label in (0, 99):
        normal = torch.distributions.Normal(mean[label], log_std[label].exp())
        assert torch.allclose(expected[:, label], normal.log_prob(z).sum(1), rtol=1e-10)
    single = ClassGaussians(100, 3072)
    single.load_state_dict(exact.state_dict())
    # Both see the latents that float32 can hold.
    found = single(z.float()).double()
    assert (found - exact(z.float().double())).abs().max() < 1e-2


def test_gradients_of_the_quadratic_form_are_those_of_the_densities() -> None:
    torch.manual_seed(0)
    density = ClassGaussians(4, 5).double()
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.normal_(0, 0.5)
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    inputs = [z, *density.parameters()]
    found = torch.autograd.grad((density(z) * weights).sum(), inputs)
    moved = density.log_scale.exp() * (z[:, None] + density.loc)
    normal = torch.distributions.Normal(density.mean, density.log_std.exp())
    direct = (normal.log_prob(moved) + density.log_scale).sum(2)
    assert torch.allclose(density(z), direct, rtol=1e-10)
    expected = torch.autograd.grad((direct * weights).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_drawn_latents_have_the_moments_of_the_mixture() -> None:
    glow = small(deviation=0.5)
    with torch.no_grad():
        latents = glow.draw_latents(20_000, torch.Generator().manual_seed(0))
        for density, z in zip(glow.per_class, latents, strict=True):
            mean, log_std = density.moments()
            second = ((2 * log_std).exp() + mean.square()).mean(0)
            variance = second - mean.mean(0).square()
            assert ((z.mean(0) - mean.mean(0)) / variance.sqrt()).abs().max() < 0.05
            assert torch.allclose(z.var(0), variance, rtol=0.1)


def test_a_drawn_image_is_of_one_class_in_all_scales() -> None:
    """Classes far apart: the class that explains a scale explains the others."""
    glow = small()
    with torch.no_grad():
        for density in glow.per_class:
            density.mean.copy_(torch.tensor([-30.0, 0.0, 30.0])[:, None].expand_as(density.mean))
        latents = glow.draw_latents(50, torch.Generator().manual_seed(1))
        votes = torch.stack(
            [density(z).argmax(1) for density, z in zip(glow.per_class, latents, strict=True)]
        )
    assert torch.equal(votes, votes[:1].expand_as(votes))
    assert votes.unique().tolist() == [0, 1, 2]


def test_no_classes_are_refused() -> None:
    with pytest.raises(UserError, match="0 classes"):
        ClassConditionalGlow(3, 0)
