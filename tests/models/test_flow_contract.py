"""What holds for every density flow: densities, inverse, forms, initialisation, samples.

What holds for every model is in ``test_contract.py``.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.form import computed_as
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import DenseGlow, LocalGlow
from oodflow.models.tarflow import TarFlow

Build = Callable[[], Any]
SMALL: dict[str, Build] = {
    "glow": lambda: Glow(1, depth=2, hidden=5, size=8),
    "local": lambda: LocalGlow(1, depth=2, hidden=5, size=8, patch=4),
    "dense": lambda: DenseGlow(1, depth=2, hidden=5, size=8),
    "conditional": lambda: ConditionalGlow(1, depth=2, hidden=5, size=8),
    "class-conditional": lambda: ClassConditionalGlow(1, 3, depth=2, hidden=5, size=8),
    "tarflow": lambda: TarFlow(1, patch=2, depth=3, layers=2, width=12, size=8),
}


def without(*names: str) -> Any:
    """A test is for all flows but these."""
    return pytest.mark.parametrize(
        "build", [name for name in SMALL if name not in names], indirect=True
    )


@pytest.fixture(params=SMALL)
def build(request: pytest.FixtureRequest) -> Build:
    return SMALL[request.param]


@pytest.fixture
def flow(build: Build) -> Any:
    """A small float64 flow in which every parameter is random, the zero-initialised too."""
    torch.manual_seed(3)
    flow = build().double()
    flow.initialise(random_images(64, flow), 0.5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return flow


def random_images(count: int, flow: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (count, *flow.image_shape), dtype=torch.uint8, generator=generator)


def latent_log_prob(flow: Any, z: Tensor) -> Tensor:
    """log p of one image's latents, all scales as one vector, by torch's distributions."""
    if not isinstance(flow, ClassConditionalGlow):
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    per_class = []
    for label in range(flow.classes):
        affine = {
            name: torch.cat([getattr(density, name)[label] for density in flow.per_class])
            for name in ("loc", "log_scale", "mean", "log_std")
        }
        moved = affine["log_scale"].exp() * (z + affine["loc"])
        gaussian = torch.distributions.Normal(affine["mean"], affine["log_std"].exp())
        per_class.append(gaussian.log_prob(moved).sum() + affine["log_scale"].sum())
    return torch.stack(per_class).logsumexp(0) - math.log(flow.classes)


def test_contributions_are_one_per_scale_and_sum_to_log_prob(flow: Any) -> None:
    images = random_images(4, flow)
    noise = torch.rand(images.shape, dtype=torch.float64)
    contributions = flow(images, noise)
    assert contributions.shape == (4, flow.scales)
    assert contributions.dtype == torch.float64 and contributions.isfinite().all()
    assert torch.equal(flow.log_prob(images, noise), contributions.sum(1))
    assert not torch.equal(contributions, flow(images, 0.5))


def test_log_det_is_that_of_the_jacobian_by_autograd(flow: Any) -> None:
    images = random_images(1, flow)
    v = flow.preprocess(images, 0.5)

    def flat(x: Tensor) -> Tensor:
        return torch.cat(flow.encode(x.view_as(v))[0], dim=1).flatten()

    jacobian = torch.autograd.functional.jacobian(flat, v.flatten())
    log_det = torch.linalg.slogdet(jacobian)[1].item()
    latents, contributions = flow.encode(v)
    assert flow.transform(v)[1].sum().item() == pytest.approx(log_det, rel=1e-8)
    expected = latent_log_prob(flow, torch.cat(latents, dim=1)[0]).item() + log_det
    assert contributions.sum().item() == pytest.approx(expected, rel=1e-8)
    # And over the levels: x → v has log-det − D ln 256, or 128 where v is as wide as [−1, 1], in
    # the first contribution.
    levels = (flow(images, 0.5) - contributions)[0].tolist()
    expected_levels = [-v.numel() * math.log(128 if isinstance(flow, TarFlow) else 256)] + [0.0] * (
        flow.scales - 1
    )
    assert levels == pytest.approx(expected_levels, rel=1e-12)


def test_gradient_of_log_prob_agrees_with_finite_differences(flow: Any) -> None:
    """The derivative of log p along a direction, by central differences in float64."""
    v = flow.preprocess(random_images(2, flow), 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(flow.encode(v)[1].sum(), v)
    direction = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    ahead = flow.encode(v + step * direction)[1].sum()
    behind = flow.encode(v - step * direction)[1].sum()
    slope = ((ahead - behind) / (2 * step)).item()
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_decode_inverts_encode(flow: Any, dtype: torch.dtype, tolerance: float) -> None:
    flow = flow.to(dtype)
    v = flow.preprocess(random_images(4, flow), 0.5)
    with torch.no_grad():
        back = flow.decode(flow.encode(v)[0])
    assert back.dtype == dtype
    assert float((back - v).abs().max()) < tolerance


def test_the_layout_of_memory_changes_nothing(flow: Any) -> None:
    """Neither that of the images nor that of the weights."""
    images = random_images(3, flow)
    expected = flow(images, 0.5)
    flow.to(memory_format=torch.channels_last)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.allclose(flow(images.to(memory_format=layout), 0.5), expected, rtol=1e-12)


@pytest.mark.parametrize("form", ["fused", "recomputed"])
def test_every_form_has_the_numbers_and_gradients_of_the_plain_one(flow: Any, form: str) -> None:
    images = random_images(5, flow)
    noise = torch.rand(images.shape, dtype=torch.float64)
    found = []
    for each in ("plain", form):
        flow.zero_grad()
        v = flow.preprocess(images, noise).requires_grad_()
        with computed_as(each):
            latents, contributions = flow.encode(v)
            log_prob = flow.log_prob(images, noise)
        # The latents too: through them a gradient reaches the last step's y by another way.
        through_latents = torch.cat(latents, dim=1).sin().sum()
        (contributions.square().sum() + through_latents - log_prob.sum()).backward()
        gradients = {name: p.grad.clone() for name, p in flow.named_parameters()} | {"v": v.grad}
        found.append((torch.cat((contributions, *latents, log_prob[:, None]), 1), gradients))
    (plain, plain_gradients), (numbers, gradients) = found
    assert torch.allclose(numbers, plain, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        # Relative to the whole tensor: single entries cancel.
        error = (gradient - plain_gradients[name]).norm() / plain_gradients[name].norm()
        assert error < 1e-11, name


@pytest.mark.parametrize("form", ["plain", "recomputed"])
def test_bfloat16_means_the_same_in_every_form(flow: Any, form: str) -> None:
    flow.float()
    images = random_images(3, flow)
    results = []
    for each in ("fused", form):
        flow.zero_grad()
        with computed_as(each), torch.autocast("cpu", torch.bfloat16):
            log_prob = flow.log_prob(images)
        log_prob.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in flow.parameters()])
        results.append((log_prob.detach(), gradient))
    (log_prob, gradient), (other, other_gradient) = results
    assert float((log_prob - other).abs().max()) < 0.1
    assert (gradient - other_gradient).norm() / gradient.norm() < 0.02


def test_bfloat16_is_for_the_networks_alone(flow: Any) -> None:
    """Under autocast the flow's own maps and the densities keep float32 (--precision bf16)."""
    flow.float()
    images = random_images(3, flow)
    exact = flow(images, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flow(images, 0.5)
    assert rounded.dtype == torch.float32
    # The networks give little here, and so does their rounding: 8 bits would be off by 1 nat.
    assert 0 < float((rounded - exact).abs().max().detach()) < 0.1


# What is "tarflow" depends on no data before training.
@without("tarflow")
def test_initialisation_is_remembered_and_standardises_the_latents(build: Build) -> None:
    torch.manual_seed(0)
    flow = build().double()
    images = random_images(300, flow)
    assert not flow.initialised
    flow.initialise(images, 0.5)
    assert flow.initialised
    with torch.no_grad():
        latents = torch.cat(flow.encode(flow.preprocess(images, 0.5))[0], dim=1)
    # Without an affine behind it, the last coupling's sigmoid(2) is still in z_1, z_2, half of z_3.
    shrunk = 7 / 8 if isinstance(flow, ConditionalGlow) else 0
    expected = 1 - shrunk + shrunk * torch.tensor(2.0).sigmoid().item() ** 2
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)
    assert float(latents.var()) == pytest.approx(expected, abs=0.01)


@without("tarflow")
def test_reloaded_model_keeps_its_initialisation(build: Build, flow: Any) -> None:
    other = build().double()
    assert not other.initialised
    other.load_state_dict(flow.state_dict())
    assert other.initialised
    images = random_images(3, flow)
    assert torch.equal(flow(images, 0.5), other(images, 0.5))


def test_samples_are_images_and_follow_the_generator(flow: Any) -> None:
    draw = [flow.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draw[0].dtype == torch.uint8 and draw[0].shape == (5, *flow.image_shape)
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


# The samples of "local" are those of a Glow on the patches.
@without("local")
def test_drawn_latents_are_those_of_the_images_made_from_them(flow: Any) -> None:
    drawn = flow.draw_latents(50, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, contributions = flow.encode(flow.decode(drawn))
        expected = sum(latent_log_prob(flow, z) for z in torch.cat(drawn, dim=1))
        log_dets = flow.transform(flow.decode(drawn))[1]
    for ours, theirs in zip(found, drawn, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)
    assert contributions.sum().item() == pytest.approx((expected + log_dets.sum()).item(), rel=1e-8)


# "conditional" has no affine behind its last coupling: see the test of the initialisation.
@without("conditional", "tarflow")
def test_samples_of_an_untrained_flow_have_the_distribution_it_was_initialised_to(
    build: Build,
) -> None:
    """With its initialisation alone the flow is affine: samples have the batch's moments."""
    torch.manual_seed(0)
    flow = build().double()
    if isinstance(flow, DenseGlow):
        # The one network that is not constant at first.
        for name, parameter in flow.named_parameters():
            if "linear3" in name:
                torch.nn.init.zeros_(parameter)
    images = (torch.randn(2000, 1, 8, 8).mul(20) + 100).clamp(0, 255).to(torch.uint8)
    flow.initialise(images, 0.5)
    drawn = flow.sample(2000, torch.Generator().manual_seed(0)).double()
    assert float(drawn.mean()) == pytest.approx(100, abs=1.0)
    assert float(drawn.std()) == pytest.approx(20, abs=0.5)
