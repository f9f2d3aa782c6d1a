"""Glow with conditioned latents: against Glow-PyTorch, and the conversion of its state dicts."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.glow_pytorch import convert_public_state, infer_public_shape
from oodflow.models.conditional import (
    ConditionalGlow,
)

State = dict[str, Tensor]


@pytest.fixture
def arrays(public: Callable[[str], Any]) -> dict[str, np.ndarray]:
    return public("glow_conditional_rgb").arrays


@pytest.fixture
def state(arrays: dict[str, np.ndarray]) -> State:
    """A state dict in the public names."""
    return {
        name.removeprefix("state/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("state/")
    }


def load(state: State) -> ConditionalGlow:
    glow = ConditionalGlow(*infer_public_shape(state))
    glow.load_state_dict(convert_public_state(state))
    return glow


def unfactorised(state: State) -> State:
    """The state dict of the same model with ``LU_decomposed`` false."""
    result = {name: value for name, value in state.items() if ".invconv." not in name}
    for name in state:
        if name.endswith("invconv.p"):
            layer = name.removesuffix("p")
            p, lower, upper, sign, logs = (
                state[layer + part].double() for part in ("p", "lower", "upper", "sign_s", "log_s")
            )
            lower = lower.tril(-1) + torch.eye(len(p), dtype=torch.float64)
            weight = p @ lower @ (upper.triu(1) + (sign * logs.exp()).diag())
            result[layer + "weight"] = weight.float()
    return result


def test_agrees_with_the_public_implementation(arrays: dict[str, np.ndarray], state: State) -> None:
    glow = load(state)
    assert glow.initialised
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    with torch.no_grad():
        v = glow.preprocess(images, 0.5)
        latents, contributions = glow.encode(v)
        log_prob = glow.log_prob(images).numpy().astype(np.float64) + 3072 * math.log(256)
        assert float((glow.decode(latents) - v).abs().max()) < 1e-5
        # The file holds z_3 itself, not standardised by its prior.
        z3 = glow.flow[2].latent.restore(latents[2], torch.empty(4, 0, 4, 4))
    assert np.abs(log_prob - arrays["log_prob"]).max() < 1e-2
    assert np.abs(contributions.numpy().sum(1) - arrays["log_prob"]).max() < 1e-2
    assert np.abs(z3.numpy() - arrays["latent3"].reshape(4, -1)).max() < 1e-4


def test_weights_that_are_not_factorised_give_the_same(state: State) -> None:
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    plain = unfactorised(state)
    assert not any(".invconv.p" in name for name in plain)
    with torch.no_grad():
        assert torch.allclose(load(plain).log_prob(images), load(state).log_prob(images), rtol=1e-6)


def test_shape_follows_from_the_weights(state: State) -> None:
    assert infer_public_shape(state) == (3, 2, 16)


def test_weights_that_never_enter_are_not_needed(state: State) -> None:
    """The public prior of z_3 convolves zeros: only its bias and logs count."""
    complete = convert_public_state(state)
    del state["prior_h"], state["learn_top_fn.conv.weight"]
    assert convert_public_state(state).keys() == complete.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("learn_top_fn.logs"), "lacks learn_top_fn.logs"),
        (lambda s: s.pop("flow.layers.6.invconv.log_s"), "lacks flow.layers.6.invconv.log_s"),
        (lambda s: s.update({"flow.layers.1.logs": torch.zeros(1)}), "also has flow.layers.1.logs"),
        (lambda s: s["prior_h"].add_(1), "prior_h is not zero"),
        (
            lambda s: s.update({"flow.layers.9.actnorm.bias": torch.zeros(1, 12, 1, 1)}),
            r"flow.layers.9.actnorm.bias has the shape \(1, 12, 1, 1\)",
        ),
    ],
)
def test_other_models_are_refused(
    state: State, change: Callable[[State], Any], message: str
) -> None:
    change(state)
    with pytest.raises(UserError, match=message):
        convert_public_state(state)


def of_options(state: State, L: int = 3, **options: Any) -> State:
    """What a model of the public implementation with other options would have saved."""
    found = {name: value for name, value in state.items() if L > 2 or "layers.7" not in name}
    if options.get("flow_coupling") == "additive":
        halved = (".block.4.logs", ".block.4.conv.weight", ".block.4.conv.bias")
        found |= {k: v[: len(v) // 2] for k, v in found.items() if k.endswith(halved)}
    if options.get("flow_permutation") in ("shuffle", "reverse"):
        found = {name: value for name, value in found.items() if "invconv" not in name}
    if options.get("y_condition"):
        found |= {"project_ycond.linear.weight": torch.zeros(96, 10)}
    return found


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"L": 2}, r"2 scales \(L\)"),
        ({"flow_coupling": "additive"}, r"additive couplings \(flow_coupling\)"),
        ({"flow_permutation": "shuffle"}, r"another order \(flow_permutation\)"),
        ({"flow_permutation": "reverse"}, r"another order \(flow_permutation\)"),
        ({"y_condition": True}, r"classes as a condition \(y_condition\)"),
    ],
)
def test_options_without_a_counterpart_are_named(
    state: State, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(UserError, match=name) as caught:
        convert_public_state(of_options(state, **options))
    assert "\n" not in str(caught.value)


def test_without_a_learned_top_the_last_latent_is_standard_normal(state: State) -> None:
    """The learned prior N(m, exp(2s)) of z_3, in the public arithmetic, exchanged for N(0, I)."""
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    learned = load(state).double()
    top = {name: state.pop(name) for name in list(state) if name.startswith("learn_top_fn")}
    both = top["learn_top_fn.conv.bias"] * (3 * top["learn_top_fn.logs"].flatten()).exp()
    mean, log_std = both.double().repeat_interleave(16).chunk(2)
    assert mean.abs().max() > 0.01
    with torch.no_grad():
        epsilon = learned.encode(learned.preprocess(images, 0.5))[0][2]
        z = epsilon * log_std.exp() + mean
        normal = torch.distributions.Normal
        change = normal(0.0, 1.0).log_prob(z) - normal(mean, log_std.exp()).log_prob(z)
        wanted = learned.log_prob(images) + change.sum(1)
        assert torch.allclose(load(state).double().log_prob(images), wanted, rtol=1e-9)


def test_state_dicts_of_something_else_are_refused() -> None:
    for other in ({}, {"conv1.weight": torch.zeros(3, 3)}):
        with pytest.raises(UserError, match="not the weights of a public Glow-PyTorch model"):
            infer_public_shape(other)
        with pytest.raises(UserError, match="not the weights of a public Glow-PyTorch model"):
            convert_public_state(other)


def test_actnorms_are_initialised_with_the_biased_variance() -> None:
    torch.manual_seed(0)
    glow = ConditionalGlow(1, depth=1, hidden=4, size=8).double()
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    glow.initialise(images, 0.5)
    step = glow.flow[0].steps[0]
    x = torch.nn.functional.pixel_unshuffle(glow.preprocess(images, 0.5), 2)
    y = step.actnorm(x)
    assert (y.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-9
    mixed = step.mixing.weight() @ y.flatten(2)
    network = step.coupling.network
    hidden = network.actnorm1(network.conv1(mixed.view_as(x).chunk(2, 1)[0]))
    assert (hidden.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-9


def test_first_half_goes_on_and_conditions_the_second() -> None:
    """Mean and log-std of z_1 by a convolution written out, its density by torch's."""
    torch.manual_seed(1)
    glow = ConditionalGlow(1, depth=1, hidden=3, size=8, scales=2).double()
    latent = glow.flow[0].latent
    with torch.no_grad():
        for parameter in glow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    v = torch.rand(2, 1, 8, 8, dtype=torch.float64) - 0.5
    x = torch.nn.functional.pixel_unshuffle(v, 2)
    x, log_det = glow.flow[0].steps[0](x)
    onward, z = x[:, :2], x[:, 2:]
    out = torch.nn.functional.conv2d(onward, latent.weight, latent.bias, padding=1)
    out = out * (3 * latent.logs).exp().view(1, -1, 1, 1)
    normal = torch.distributions.Normal(out[:, 0::2], out[:, 1::2].exp())
    expected = normal.log_prob(z).sum((1, 2, 3)) + log_det
    _, contributions = glow.encode(v)
    assert torch.allclose(contributions[:, 0], expected, rtol=1e-10)
