"""Glow and its layers against the public implementation and against brute force."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.glow import Glow
from oodflow.models.layers import ActNorm, CouplingNetwork, FlowStep, InvertibleConv


@pytest.fixture(params=["glow_rgb", "glow_grey"])
def parity(request: pytest.FixtureRequest, public: Callable[[str], Any]) -> tuple[Glow, Any]:
    """A Glow with the weights of a parity file, and the file."""
    file = public(request.param)
    glow = Glow(file.meta["channels"], file.meta["K"], file.meta["hidden"])
    glow.load_state_dict(file.state)
    return glow, file


def random_images(count: int, glow: Glow) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (count, *glow.image_shape), dtype=torch.uint8, generator=generator)


def test_agrees_with_the_public_implementation(parity: tuple[Glow, Any]) -> None:
    glow, file = parity
    latents, contributions = glow.encode(glow.preprocess(file.images, 0.5))
    assert np.abs(contributions.detach().numpy() - file.arrays["contributions"]).max() < 1e-2
    for i, latent in enumerate(latents, start=1):
        assert np.abs(latent.detach().numpy() - file.arrays[f"latent{i}"]).max() < 1e-4
    # Over the 256 levels: the files hold log p(v) without − D ln 256.
    levels = math.prod(glow.image_shape) * math.log(256)
    log_prob = glow.log_prob(file.images).detach().numpy().astype(np.float64) + levels
    assert np.abs(log_prob - file.arrays["log_prob"]).max() < 1e-2


def test_gradient_norm_agrees_with_the_public_implementation(parity: tuple[Glow, Any]) -> None:
    glow, file = parity
    (-glow.log_prob(file.images).mean()).backward()
    squares = [float(p.grad.double().square().sum()) for p in glow.parameters()]
    expected = file.meta["global_grad_norm_of_mean_neg_log_prob"]
    assert math.sqrt(sum(squares)) == pytest.approx(expected, rel=1e-4)


def test_decode_inverts_encode_in_float32(parity: tuple[Glow, Any]) -> None:
    glow, file = parity
    v = glow.preprocess(file.images, 0.5)
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
    assert actnorm.log_scale[0].item() == pytest.approx(math.log(1e6), rel=1e-5)


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


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="12×12"):
        Glow(3, size=12)
