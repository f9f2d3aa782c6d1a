"""Glow against the public implementation, against brute force, and against its own inverse."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.glow import Glow
from oodflow.models.layers import ActNorm, CouplingNetwork, FlowStep, InvertibleConv

PARITY = Path(__file__).parent / "parity"
LAYER_NAMES = {
    "actnorm/loc": "actnorm.loc",
    "actnorm/log_scale": "actnorm.log_scale",
    "permutation/w_p": "mixing.permutation",
    "permutation/w_l": "mixing.lower",
    "permutation/w_u": "mixing.upper",
    "permutation/w_s": "mixing.log_abs",
    "permutation/s_sign": "mixing.sign",
    "conv1/weight": "coupling.network.conv1.weight",
    "conv1/actnorm_loc": "coupling.network.actnorm1.loc",
    "conv1/actnorm_log_scale": "coupling.network.actnorm1.log_scale",
    "conv2/weight": "coupling.network.conv2.weight",
    "conv2/actnorm_loc": "coupling.network.actnorm2.loc",
    "conv2/actnorm_log_scale": "coupling.network.actnorm2.log_scale",
    "conv3/weight": "coupling.network.conv3.weight",
    "conv3/bias": "coupling.network.bias",
    "conv3/logs": "coupling.network.logs",
}


def public_glow(name: str) -> tuple[Glow, dict[str, np.ndarray]]:
    """A Glow with the weights of a parity file, and the file's arrays."""
    arrays = dict(np.load(PARITY / f"{name}.npz"))
    meta = json.loads(str(arrays["meta"]))
    glow = Glow(meta["channels"], meta["K"], meta["hidden"])
    state = {"initialised": torch.tensor(True)}
    for key, array in arrays.items():
        if key.startswith("param/") and not key.endswith("permutation/weight"):
            scale, *rest = key.split("/")[1:]
            prefix = f"flow.{int(scale.removeprefix('scale')) - 1}."
            if rest[0] == "latent":
                own = f"{prefix}latent.{rest[1]}"
            else:
                step = int(rest[0].removeprefix("step")) - 1
                own = f"{prefix}steps.{step}.{LAYER_NAMES['/'.join(rest[1:])]}"
            state[own] = torch.from_numpy(array)
    glow.load_state_dict(state)
    return glow, arrays


def random_glow(channels: int = 1, depth: int = 2, hidden: int = 5, size: int = 8) -> Glow:
    """A small float64 Glow in which every parameter is random, the zero-initialised too."""
    torch.manual_seed(3)
    glow = Glow(channels, depth, hidden, size, scales=3).double()
    glow.initialise(torch.randint(256, (64, channels, size, size), dtype=torch.uint8), 0.5)
    with torch.no_grad():
        for parameter in glow.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return glow


def random_images(count: int, glow: Glow) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (count, *glow.image_shape), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["glow_rgb", "glow_grey"])
def test_agrees_with_the_public_implementation(name: str) -> None:
    glow, arrays = public_glow(name)
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    latents, contributions = glow.encode(glow.preprocess(images, 0.5))
    assert np.abs(contributions.detach().numpy() - arrays["contributions"]).max() < 1e-2
    for i, latent in enumerate(latents, start=1):
        assert np.abs(latent.detach().numpy() - arrays[f"latent{i}"]).max() < 1e-4
    # Over the 256 levels: the files hold log p(v) without − D ln 256.
    dimensions = math.prod(glow.image_shape)
    expected = arrays["log_prob"].astype(np.float64) - dimensions * math.log(256)
    assert np.abs(glow.log_prob(images).detach().numpy() - expected).max() < 1e-2


@pytest.mark.parametrize("name", ["glow_rgb", "glow_grey"])
def test_gradient_norm_agrees_with_the_public_implementation(name: str) -> None:
    glow, arrays = public_glow(name)
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    (-glow.log_prob(images).mean()).backward()
    squares = [float(p.grad.double().square().sum()) for p in glow.parameters()]
    expected = json.loads(str(arrays["meta"]))["global_grad_norm_of_mean_neg_log_prob"]
    assert math.sqrt(sum(squares)) == pytest.approx(expected, rel=1e-4)


def test_log_det_is_that_of_the_jacobian_by_autograd() -> None:
    glow = random_glow()
    v = glow.preprocess(random_images(1, glow), 0.5)
    dimensions = v.numel()

    def flat(x: Tensor) -> Tensor:
        return torch.cat(glow.encode(x.view_as(v))[0], dim=1).flatten()

    jacobian = torch.autograd.functional.jacobian(flat, v.flatten())
    log_det = torch.linalg.slogdet(jacobian)[1]
    latents, contributions = glow.encode(v)
    z = torch.cat(latents, dim=1)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum()
    assert contributions.sum().item() == pytest.approx((normal + log_det).item(), rel=1e-8)
    # And over the levels: x → v has log-det − D ln 256, in the first contribution.
    levels = glow(random_images(1, glow), 0.5)[0] - contributions[0]
    assert levels.tolist() == pytest.approx([-dimensions * math.log(256), 0, 0], rel=1e-12)


def test_gradient_of_log_prob_agrees_with_finite_differences() -> None:
    """The derivative of log p along a direction, by central differences in float64."""
    glow = random_glow()
    v = glow.preprocess(random_images(2, glow), 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(glow.encode(v)[1].sum(), v)
    direction = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    ahead = glow.encode(v + step * direction)[1].sum()
    behind = glow.encode(v - step * direction)[1].sum()
    slope = ((ahead - behind) / (2 * step)).item()
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["glow_rgb", "glow_grey"])
def test_decode_inverts_encode_in_float32(name: str) -> None:
    glow, arrays = public_glow(name)
    v = glow.preprocess(torch.from_numpy(arrays["images_uint8_nchw"]), 0.5)
    with torch.no_grad():
        back = glow.decode(glow.encode(v)[0])
    assert float((back - v).abs().max()) < 1e-5


def test_scales_have_the_shapes_of_the_paper() -> None:
    glow = Glow(3, depth=1, hidden=4)
    latents, contributions = glow.encode(glow.preprocess(random_images(2, glow), 0.5))
    assert [latent.shape[1] for latent in latents] == [6 * 16 * 16, 12 * 8 * 8, 48 * 4 * 4]
    assert contributions.shape == (2, 3)


def test_paper_preset_has_the_authors_number_of_parameters() -> None:
    with torch.device("meta"):
        steps = Glow(3, depth=1, hidden=512), Glow(3, depth=2, hidden=512)
    one, two = (sum(p.numel() for p in glow.parameters()) for glow in steps)
    assert one + 31 * (two - one) == 44_155_008


def test_every_parameter_gets_a_gradient() -> None:
    glow = random_glow()
    glow.log_prob(random_images(4, glow)).sum().backward()
    still = [name for name, p in glow.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_training_mode_changes_nothing() -> None:
    glow = random_glow()
    images = random_images(2, glow)
    assert torch.equal(glow.train()(images, 0.5), glow.eval()(images, 0.5))


def test_images_do_not_influence_each_other() -> None:
    glow = random_glow()
    images = random_images(6, glow)
    alone = torch.cat([glow(image[None], 0.5) for image in images])
    assert torch.allclose(glow(images, 0.5), alone, rtol=1e-12)


def test_reloaded_model_keeps_its_initialisation() -> None:
    glow = random_glow()
    other = Glow(1, depth=2, hidden=5, size=8).double()
    assert not other.initialised
    other.load_state_dict(glow.state_dict())
    assert other.initialised
    images = random_images(3, glow)
    assert torch.equal(glow(images, 0.5), other(images, 0.5))


def test_initialisation_normalises_every_actnorm_on_its_batch() -> None:
    torch.manual_seed(0)
    glow = Glow(3, depth=2, hidden=6, size=8).double()
    images = random_images(200, glow)
    noise = torch.rand(images.shape, dtype=torch.float64)
    outputs: list[Tensor] = []
    glow.initialise(images, noise)
    # Unfolded: each actnorm of the coupling networks is applied here to what precedes it.
    x = torch.nn.functional.pixel_unshuffle(glow.preprocess(images, noise), 2)
    for step in glow.flow[0].steps:
        outputs.append(step.actnorm(x))
        mixed = step.mixing.weight() @ outputs[-1].flatten(2)
        hidden = step.coupling.network.conv1(mixed.view_as(x).chunk(2, 1)[0])
        outputs.append(step.coupling.network.actnorm1(hidden))
        x = step(x)[0]
    outputs.append(glow.flow[0](glow.preprocess(images, noise))[0])
    for output in outputs:
        dims = [0, *range(2, output.dim())]
        assert output.mean(dims).abs().max() < 1e-9
        assert (output.std(dims) - 1).abs().max() < 1e-9


def test_a_constant_channel_is_initialised_with_the_floor_of_the_deviation() -> None:
    actnorm = ActNorm(2)
    x = torch.stack((torch.full((4, 3), 7.0), torch.randn(4, 3)), dim=1)
    assert actnorm.initialise(x)[:, 0].abs().max() == 0
    assert float(actnorm.log_scale[0]) == pytest.approx(math.log(1e6), rel=1e-5)


def test_folded_step_equals_its_separate_layers() -> None:
    torch.manual_seed(1)
    step = FlowStep(6, lambda given, wanted: CouplingNetwork(given, wanted, 4)).double()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    network = step.coupling.network
    mixed = torch.einsum("oi,nihw->nohw", step.mixing.weight(), step.actnorm(x))
    fixed, moved = mixed[:, :3], mixed[:, 3:]
    hidden = torch.relu(network.actnorm1(network.conv1(fixed)))
    hidden = torch.relu(network.actnorm2(network.conv2(hidden)))
    out = network.conv3(hidden) + network.bias.view(1, -1, 1, 1)
    out = out * (3 * network.logs).exp().view(1, -1, 1, 1)
    scale = torch.sigmoid(out[:, 1::2] + 2)
    y, log_det = step(x)
    assert torch.allclose(y, torch.cat((fixed, (moved + out[:, 0::2]) * scale), 1), rtol=1e-10)
    affine = step.actnorm.log_scale.sum() + torch.linalg.slogdet(step.mixing.weight())[1]
    expected = 25 * affine + scale.log().flatten(1).sum(1)
    assert torch.allclose(log_det, expected, rtol=1e-10)
    assert torch.allclose(step.inverse(y), x, rtol=1e-8, atol=1e-10)


def test_mixing_starts_orthogonal_and_ignores_the_dead_triangles() -> None:
    torch.manual_seed(2)
    mixing = InvertibleConv(8).double()
    weight = mixing.weight()
    assert torch.allclose(weight @ weight.T, torch.eye(8, dtype=torch.float64), atol=1e-6)
    with torch.no_grad():
        mixing.lower += torch.ones(8, 8).triu()
        mixing.upper += torch.ones(8, 8).tril()
    assert torch.equal(mixing.weight(), weight)


def test_samples_are_images_and_follow_the_generator() -> None:
    glow = random_glow(channels=3)
    draw = [glow.sample(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draw[0].dtype == torch.uint8 and draw[0].shape == (5, 3, 8, 8)
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_samples_of_an_untrained_flow_have_the_distribution_it_was_initialised_to() -> None:
    """With its initialisation alone the flow is affine: samples have the batch's moments."""
    torch.manual_seed(0)
    glow = Glow(1, depth=1, hidden=2, size=8).double()
    images = (torch.randn(4000, 1, 8, 8).mul(20) + 100).clamp(0, 255).to(torch.uint8)
    glow.initialise(images, 0.5)
    drawn = glow.sample(4000, torch.Generator().manual_seed(0)).double()
    assert float(drawn.mean()) == pytest.approx(100, abs=1.0)
    assert float(drawn.std()) == pytest.approx(20, abs=0.5)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="12×12"):
        Glow(3, size=12)
