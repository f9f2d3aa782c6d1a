"""Local and fully connected Glow: against the public implementation, and what makes them so."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from oodflow.errors import UserError
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import (
    DenseGlow,
    DenseStep,
    LocalGlow,
    cut_patches,
    join_patches,
)


def test_local_agrees_with_the_public_implementation(public: Callable[[str], Any]) -> None:
    file = public("glow_local_rgb")
    local = LocalGlow(file.meta["channels"], file.meta["K"], file.meta["hidden"])
    local.flow.load_state_dict(file.state)
    levels = 3072 * math.log(256)
    with torch.no_grad():
        log_prob = local.log_prob(file.images).numpy().astype(np.float64) + levels
        contributions = local.encode(local.preprocess(file.images, 0.5))[1].numpy()
    assert contributions.shape == (6, 1)
    assert np.abs(log_prob - file.arrays["log_prob"]).max() < 1e-2
    assert np.abs(contributions[:, 0] - file.arrays["log_prob"]).max() < 1e-2


def test_dense_agrees_with_the_public_implementation(public: Callable[[str], Any]) -> None:
    file = public("glow_dense_grey")
    dense = DenseGlow(file.meta["channels"], file.meta["K"], file.meta["hidden"])
    dense.load_state_dict(file.state)
    latents, contributions = dense.encode(dense.preprocess(file.images, 0.5))
    assert np.abs(contributions.detach().numpy() - file.arrays["contributions"]).max() < 1e-2
    for i, latent in enumerate(latents, start=1):
        assert np.abs(latent.detach().numpy() - file.arrays[f"latent{i}"]).max() < 1e-4
    log_prob = dense.log_prob(file.images)
    over_levels = log_prob.detach().numpy().astype(np.float64) + 1024 * math.log(256)
    assert np.abs(over_levels - file.arrays["log_prob"]).max() < 1e-2
    (-log_prob.mean()).backward()
    squares = [float(p.grad.double().square().sum()) for p in dense.parameters()]
    expected = file.meta["global_grad_norm_of_mean_neg_log_prob"]
    assert math.sqrt(sum(squares)) == pytest.approx(expected, rel=1e-4)


def test_dense_inverts_the_public_projections_in_float32(public: Callable[[str], Any]) -> None:
    file = public("glow_dense_grey")
    dense = DenseGlow(file.meta["channels"], file.meta["K"], file.meta["hidden"])
    dense.load_state_dict(file.state)
    v = dense.preprocess(file.images, 0.5)
    with torch.no_grad():
        assert float((dense.decode(dense.encode(v)[0]) - v).abs().max()) < 1e-5


def test_public_projections_have_no_log_det_that_could_show(public: Callable[[str], Any]) -> None:
    state = public("glow_dense_grey").state
    weights = [value.double() for name, value in state.items() if name.endswith("mixing.weight")]
    assert len(weights) == 3
    assert all(abs(torch.linalg.slogdet(weight)[1].item()) < 1e-4 for weight in weights)


def test_patches_are_tiles_and_join_to_the_image() -> None:
    images = torch.arange(2 * 3 * 12 * 12).view(2, 3, 12, 12)
    patches = cut_patches(images, 4)
    assert patches.shape == (18, 3, 4, 4)
    assert torch.equal(patches[9 + 5], images[1, :, 4:8, 8:12])
    assert torch.equal(join_patches(patches, 3), images)


def test_local_likelihood_is_that_of_the_patches_wherever_they_are() -> None:
    torch.manual_seed(0)
    local = LocalGlow(1, depth=2, hidden=4, size=16, patch=8).double()
    images = torch.randint(256, (5, 1, 16, 16), dtype=torch.uint8)
    noise = torch.rand(images.shape, dtype=torch.float64)
    local.initialise(images, noise)
    patch_model = Glow(1, depth=2, hidden=4, size=8, scales=1).double()
    patch_model.load_state_dict(local.flow.state_dict())
    corners = [(slice(i, i + 8), slice(j, j + 8)) for i in (0, 8) for j in (0, 8)]
    expected = sum(
        patch_model.log_prob(images[:, :, rows, columns], noise[:, :, rows, columns])
        for rows, columns in corners
    )
    assert torch.allclose(local.log_prob(images, noise), expected, rtol=1e-12)
    swapped = images.roll(8, 3), noise.roll(8, 3)
    assert torch.allclose(local.log_prob(*swapped), expected, rtol=1e-12)


def test_local_initialisation_uses_all_patches_as_one_batch() -> None:
    torch.manual_seed(0)
    local = LocalGlow(1, depth=1, hidden=4, size=16, patch=8).double()
    # Each quarter of the image has its own level; only all of them together have the deviation.
    images = torch.tensor([10, 80, 160, 250], dtype=torch.uint8).view(1, 1, 2, 2)
    images = images.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(3, 1, 1, 1)
    noise = torch.rand(images.shape, dtype=torch.float64)
    local.initialise(images, noise)
    v = local.preprocess(images, noise)
    x = torch.nn.functional.pixel_unshuffle(cut_patches(v, 8), 2)
    y = local.flow.flow[0].steps[0].actnorm(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-9
    assert (y.std((0, 2, 3)) - 1).abs().max() < 1e-9


def test_dense_step_mixes_all_positions_and_equals_its_separate_layers() -> None:
    torch.manual_seed(1)
    step = DenseStep(channels=4, size=3, hidden=7).double()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    network = step.coupling.network
    mixed = (step.actnorm.log_scale.exp() * (x.flatten(1) + step.actnorm.loc)) @ (
        step.mixing.weight.t()
    )
    fixed, moved = mixed[:, :18], mixed[:, 18:]
    out = network.linear3(network.linear2(network.linear1(fixed).relu()).relu())
    scale = torch.sigmoid(out[:, 1::2] + 2)
    y, log_det = step(x)
    expected = torch.cat((fixed, (moved + out[:, 0::2]) * scale), dim=1)
    assert y.shape == x.shape and torch.allclose(y.flatten(1), expected, rtol=1e-10)
    # One per dimension of the vector, not one per channel and position.
    expected_log_det = step.actnorm.log_scale.sum() + scale.log().sum(1)
    assert torch.allclose(log_det, expected_log_det, rtol=1e-10)


def test_dense_projection_is_orthogonal_and_no_parameter() -> None:
    step = DenseStep(channels=4, size=4, hidden=3)
    weight = step.mixing.weight
    assert torch.allclose(weight @ weight.t(), torch.eye(64), atol=1e-5)
    assert "mixing.weight" in step.state_dict()
    assert "mixing.weight" not in dict(step.named_parameters())


def test_paper_presets_have_the_shapes_of_the_supplement() -> None:
    with torch.device("meta"):
        local, dense = LocalGlow(3), DenseGlow(3)
    assert len(local.flow.flow) == 1 and len(local.flow.flow[0].steps) == 32
    assert local.flow.flow[0].latent_shape == (12, 4, 4)
    assert [len(scale.steps) for scale in dense.flow] == [8, 8, 8]
    network = dense.flow[0].steps[0].coupling.network
    shapes = [tuple(linear.weight.shape) for linear in network.children()]
    assert shapes == [(512, 1536), (512, 512), (3072, 512)]


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="do not tile"):
        LocalGlow(3, size=20)
    with pytest.raises(UserError, match="DenseGlow .*12×12"):
        DenseGlow(3, size=12)
