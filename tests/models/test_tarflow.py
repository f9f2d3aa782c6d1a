"""TarFlow: the public implementation's numbers, causality, and inversion with a memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.ml_tarflow import convert_public_state, infer_public_shape
from oodflow.models.form import computed_as
from oodflow.models.tarflow import TarFlow, TransformerBlock, cut_tokens, join_tokens

PARITY = Path(__file__).parent / "parity"


def random_block(tokens: int = 9, features: int = 4, width: int = 12) -> TransformerBlock:
    """In float64, with every parameter random."""
    torch.manual_seed(0)
    block = TransformerBlock(tokens, features, width, layers=2).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return block


def sequence(block: TransformerBlock, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = count, len(block.position), block.enter.in_features
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("colours", ["rgb", "grey"])
def test_agrees_with_the_public_implementation(colours: str, dtype: torch.dtype) -> None:
    arrays = dict(np.load(PARITY / f"tarflow_{colours}.npz"))
    start = "state/"
    state = {k.removeprefix(start): torch.from_numpy(v) for k, v in arrays.items() if start in k}
    shape = infer_public_shape(state)
    meta = json.loads(str(arrays["meta"]))
    expected = {"depth": "blocks", "width": "width", "layers": "layers", "patch": "patch"}
    assert {own: meta[theirs] for own, theirs in expected.items()}.items() <= shape.items()
    model = TarFlow(**shape).to(dtype)
    model.load_state_dict(convert_public_state(state))
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    with torch.no_grad():
        v = model.preprocess(images, 0.5)
        (latent,) = model.encode(v)[0]
        log_prob = model.log_prob(images)
        back = model.decode([latent])
    assert latent.dtype == log_prob.dtype == dtype
    assert np.abs(log_prob.numpy() - arrays["log_prob"]).max() < 1e-2
    assert np.abs(latent.view(arrays["latent"].shape).numpy() - arrays["latent"]).max() < 1e-3
    assert float((back - v).abs().max()) < 1e-4


@pytest.mark.parametrize(("channels", "patch"), [(1, 2), (3, 4), (3, 1)])
def test_patches_are_tokens_in_raster_order_and_join_again(channels: int, patch: int) -> None:
    images = torch.arange(2 * channels * 64).view(2, channels, 8, 8)
    tokens = cut_tokens(images, patch)
    assert tokens[1, 1].tolist() == images[1, :, :patch, patch : 2 * patch].flatten().tolist()
    # Channel-major patches are what unfold makes of floating-point images.
    unfolded = torch.nn.functional.unfold(images.double(), patch, stride=patch)
    assert torch.equal(tokens.double(), unfolded.transpose(1, 2))
    assert torch.equal(join_tokens(tokens, patch), images)


def test_a_token_of_a_block_depends_on_itself_and_those_before_alone() -> None:
    block = random_block()
    x = sequence(block, 1).requires_grad_()
    z, _ = block(x)
    for index in range(z.shape[1]):
        (gradient,) = torch.autograd.grad(z[0, index].square().sum(), x, retain_graph=True)
        influence = gradient[0].abs().sum(1)
        assert influence[index + 1 :].count_nonzero() == 0
        assert influence[: index + 1].count_nonzero() == index + 1


def test_log_scales_and_shifts_are_those_of_the_tokens_before() -> None:
    """z_t changes with x_t by exp(−a_t) alone, and log|det| is the sum of all −a_t."""
    block = random_block()
    x = sequence(block, 2)
    z, log_det = block(x)
    moved, _ = block(x + torch.eye(x.shape[1], dtype=x.dtype)[-1, :, None])
    assert torch.equal(moved[:, :-1], z[:, :-1])
    slopes = []
    for index in range(x.shape[1]):
        changed = x.clone()
        changed[:, index] += 1
        slopes.append(block(changed)[0][:, index] - z[:, index])
    assert torch.equal(slopes[0], (x + 1)[:, 0] - x[:, 0])
    assert torch.allclose(torch.stack(slopes, 1).log().sum((1, 2)), log_det, rtol=1e-9)


def test_every_second_block_reads_from_the_last_patch() -> None:
    torch.manual_seed(0)
    flow = TarFlow(1, patch=2, depth=2, layers=1, width=8, size=8).double()
    first, second = flow.blocks
    for block, others in ((first, slice(1, None)), (second, slice(0, -1))):
        for each in flow.blocks:
            torch.nn.init.zeros_(each.leave.weight)
        torch.nn.init.normal_(block.leave.weight)
        v = torch.randn(1, 1, 8, 8, dtype=torch.float64)
        same = (flow.encode(v)[0][0].view(16, 4) == cut_tokens(v, 2)[0]).all(1)
        # The one token that follows no other is the one that stays.
        assert not same[others].any() and int(same.sum()) == 1


def test_inversion_with_a_memory_is_that_by_whole_passes() -> None:
    block = random_block()
    z = sequence(block)
    with torch.no_grad():
        x = z.clone()
        for index in range(1, z.shape[1]):
            # What is known so far gives this token's scale and shift; the rest has no say.
            h = block.enter(x) + block.position
            for layer in block.layers:
                h = layer(h)
            log_scale, shift = block.leave(h)[:, index - 1].chunk(2, dim=1)
            x[:, index] = z[:, index] * log_scale.exp() + shift
        found = block.inverse(z)
    assert torch.allclose(found, x, rtol=1e-9)
    assert not torch.allclose(found, z, atol=0.1)


def test_untrained_it_is_the_identity() -> None:
    torch.manual_seed(0)
    flow = TarFlow(1, patch=4, depth=3, layers=1, width=8)
    v = torch.rand(2, 1, 32, 32)
    latents, log_det = flow.transform(v)
    assert torch.equal(latents[0], cut_tokens(v, 4).flatten(1))
    assert torch.equal(log_det, torch.zeros(2, 1))


def test_a_temperature_narrows_the_latents_and_progress_is_told_token_by_token() -> None:
    torch.manual_seed(0)
    flow = TarFlow(1, patch=2, depth=2, layers=1, width=8, size=8)
    told: list[tuple[int, int]] = []
    cold, plain = (
        flow.sample(4, torch.Generator().manual_seed(1), temperature, lambda *at: told.append(at))
        for temperature in (0.5, 1.0)
    )
    assert told == 2 * [(number, 30) for number in range(1, 31)]
    # Untrained, v is the latent itself.
    latent = flow.draw_latents(4, torch.Generator().manual_seed(1))[0].view(4, 16, 4)
    for temperature, found in ((0.5, cold), (1.0, plain)):
        levels = (128 * (join_tokens(temperature * latent, 2) + 1)).floor().clamp(0, 255)
        assert torch.equal(found, levels.to(torch.uint8))


def test_images_that_are_not_finite_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    flow = TarFlow(1, patch=2, depth=2, layers=1, width=8, size=8)
    sizes, decode = [], flow.decode

    def failing(latents: list[Tensor], on_progress: object = None) -> Tensor:
        v = decode(latents)
        sizes.append(len(v))
        if len(sizes) < 3:
            v[0, 0, 3, 3], v[1, 0, 0, 0] = torch.nan, torch.inf
        return v

    whole = flow.sample(5, torch.Generator().manual_seed(1))
    monkeypatch.setattr(flow, "decode", failing)
    generator = torch.Generator().manual_seed(1)
    found = flow.sample(5, generator)
    assert sizes == [5, 2, 2]
    assert torch.equal(found[2:], whole[2:])
    # The first two are those of the third draw.
    generator.manual_seed(1)
    third = [flow.draw_latents(size, generator)[0] for size in sizes][-1]
    expected = (128 * (decode([third]) + 1)).floor().clamp(0, 255).to(torch.uint8)
    assert torch.equal(found[:2], expected)


def test_a_model_that_draws_nothing_finite_says_so() -> None:
    flow = TarFlow(1, patch=2, depth=2, layers=1, width=8, size=8)
    torch.nn.init.constant_(flow.blocks[0].leave.bias, 200.0)
    with pytest.raises(UserError, match="3 of 3 images were not finite"):
        flow.sample(3, torch.Generator().manual_seed(1))


def test_products_by_convolutions_are_those_of_the_plain_form() -> None:
    """In float32: the contract's tests are in float64, which a CPU computes in the plain way."""
    torch.manual_seed(0)
    flow = TarFlow(3, patch=4, depth=2, layers=2, width=64)
    for block in flow.blocks:
        torch.nn.init.normal_(block.leave.weight, std=0.02)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    found = []
    for form in ("plain", "fused"):
        flow.zero_grad()
        with computed_as(form):
            log_prob = flow.log_prob(images)
        log_prob.sum().backward()
        found.append([log_prob.detach(), *(p.grad.clone() for p in flow.parameters())])
    assert torch.allclose(found[0][0], found[1][0], atol=1e-2, rtol=0)
    # Were they the same to the last digit, there would be one form only.
    assert not all(map(torch.equal, *found))
    for plain, fused in zip(*found, strict=True):
        assert (fused - plain).norm() < 1e-4 * plain.norm()


def test_recomputation_keeps_what_a_layer_is_given_and_nothing_else() -> None:
    kept = {}
    for form in ("plain", "recomputed"):
        torch.manual_seed(0)
        flow = TarFlow(1, patch=4, depth=2, layers=6, width=64)
        images = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, computed_as(form):
            log_prob = flow.log_prob(images)
        kept[form] = sum(sizes.values())
        del log_prob
    assert kept["recomputed"] < 0.2 * kept["plain"]


def test_wide_transformers_have_heads_of_64() -> None:
    flow = TarFlow(1, patch=8, depth=1, layers=1, width=192)
    assert flow.blocks[0].layers[0].heads == 3  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 5}, "patches of 5×5 do not tile 32×32"),
        ({"patch": 32}, "patches of 32×32"),
        ({"patch": 0}, "patches of 0×0"),
        ({"width": 96}, "heads are 64 wide"),
        ({"layers": 0}, "2 blocks of 0 layers"),
        ({"depth": 0}, "0 blocks"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TarFlow(**({"channels": 1, "patch": 4, "depth": 2, "layers": 1, "width": 8} | changes))
