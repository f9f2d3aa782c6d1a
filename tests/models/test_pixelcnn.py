"""PixelCNN++: the public implementation's numbers, raster-order causality, sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.pixelcnn_pp import convert_public_state, infer_public_shape
from oodflow.models.logistic_mixture import level_log_probs, sample_pixels, scale_levels
from oodflow.models.pixelcnn import PixelCNN

PARITY = Path(__file__).parent / "parity"
NORM = "parametrizations.weight.original"


def parity(colours: str) -> dict[str, Tensor]:
    with np.load(PARITY / f"pixelcnnpp_{colours}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if name != "meta"}


def public_state(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    start = "state/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def small_model(channels: int, **options: float) -> PixelCNN:
    torch.manual_seed(0)
    settings = {"filters": 4, "blocks": 1, "mixtures": 2, "dropout": 0.5} | options
    return PixelCNN(channels, **settings)  # type: ignore[arg-type]


def strong_model(channels: int) -> PixelCNN:
    """Far from the initial weights, whose outputs hardly depend on the image."""
    model = small_model(channels, filters=2, mixtures=1).requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)
    return model


def random_images(channels: int, count: int = 2, size: int = 32) -> Tensor:
    random = torch.Generator().manual_seed(1)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("colours", ["rgb", "grey"])
def test_agrees_with_the_public_implementation(colours: str, dtype: torch.dtype) -> None:
    arrays = parity(colours)
    state, images = public_state(arrays), arrays["images_uint8_nchw"]
    model = PixelCNN(**infer_public_shape(state))
    model.load_state_dict(convert_public_state(state))
    model.eval().to(dtype)
    with torch.no_grad():
        output = model.mixture_parameters(scale_levels(images, dtype))
        log_prob = model.log_prob(images)
    assert output.dtype == log_prob.dtype == dtype
    assert (output - arrays["network_output"]).abs().max().item() < 1e-5
    assert (log_prob - arrays["log_prob"]).abs().max().item() < 1e-2


def test_shape_is_read_from_a_public_state() -> None:
    expected = {"filters": 8, "blocks": 1, "mixtures": 3}
    assert infer_public_shape(public_state(parity("rgb"))) == {"channels": 3} | expected
    assert infer_public_shape(public_state(parity("grey"))) == {"channels": 1} | expected


def test_newer_names_of_weight_normalisation_are_accepted() -> None:
    state = public_state(parity("grey"))
    newer = {
        "module." + name.replace("weight_g", f"{NORM}0").replace("weight_v", f"{NORM}1"): tensor
        for name, tensor in state.items()
    }
    expected = convert_public_state(state)
    converted = convert_public_state(newer)
    assert converted.keys() == expected.keys() == small_model(1).state_dict().keys()
    assert all(converted[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("up_layers.1.ul_stream.0.nin_skip.lin_a.bias", None, "1 missing .*nin_skip"),
        ("nin_out.lin_a.bias", None, "nin_out.lin_a.bias.* is missing"),
        ("u_init.conv.weight_v", torch.zeros(8, 3, 2, 3), "1 or 3 channels"),
        ("extra.bias", torch.zeros(8), "1 unknown .*extra.bias"),
        ("ul_init.0.conv.bias", torch.zeros(7), "ul_init.0.conv.bias has a wrong shape"),
    ],
)
def test_other_states_are_refused(name: str, tensor: Tensor | None, message: str) -> None:
    state = public_state(parity("grey"))
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    with pytest.raises(UserError, match=message):
        convert_public_state(state)


def test_images_of_two_channels_are_refused() -> None:
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        PixelCNN(channels=2)


def test_paper_model_has_as_many_parameters_as_its_layers() -> None:
    with torch.device("meta"):
        model = PixelCNN(channels=3)
    f, blocks, decode_blocks = 120, 5, 3 * 5 + 2
    with_gain = 2  # a bias and a gain for every output

    def gated(taps: int, sides: int) -> int:
        convolutions = taps * 2 * f * f + with_gain * f + taps * 2 * f * 2 * f + with_gain * 2 * f
        return convolutions + (2 * sides * f * f + with_gain * f if sides else 0)

    expected = sum(taps * 4 * f + with_gain * f for taps in (6, 3, 2))
    expected += f * 100 + with_gain * 100
    for taps, sides in ((6, 0), (4, 1)):
        expected += 3 * blocks * gated(taps, sides) + decode_blocks * gated(taps, sides + 1)
        expected += 4 * (taps * f * f + with_gain * f)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_output_depends_on_earlier_pixels_alone(channels: int) -> None:
    model = small_model(channels).eval().double()
    size = 8
    scaled = scale_levels(random_images(channels, 1, size), torch.float64).requires_grad_()
    per_pixel = model.mixture_parameters(scaled).square().sum(dim=(0, 1)).flatten()
    for index in range(size * size):
        (gradient,) = torch.autograd.grad(per_pixel[index], scaled, retain_graph=True)
        influence = gradient.abs().sum(dim=(0, 1))
        assert influence.flatten()[index:].count_nonzero().item() == 0
        row, column = divmod(index, size)
        neighbours = [(row, column - 1), (row - 1, column), (row - 1, column + 1)]
        seen = [influence[r, c] for r, c in neighbours if r >= 0 and 0 <= c < size]
        assert all(value.item() > 0 for value in seen)


def test_all_values_of_the_last_pixels_add_up_to_the_probability_of_the_others() -> None:
    """The chain rule by brute force, through the network, on a 4×4 image's last two pixels."""
    model = strong_model(1).eval()
    images = random_images(1, 1, size=4).repeat(256 * 256, 1, 1, 1)
    images[:, 0, 3, 2:] = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    total = torch.cat([model.log_prob(part).double() for part in images.split(8192)])
    first = model.mixture_parameters(scale_levels(images[:1], torch.float32)).double()
    levels = level_log_probs(first, images[:1], 0).gather(1, images[:1].long()).flatten()
    expected = levels[:14].sum().item()
    assert total.logsumexp(dim=0).item() == pytest.approx(expected, abs=1e-3)


def test_every_parameter_gets_a_gradient() -> None:
    model = small_model(3).eval()
    (-model.log_prob(random_images(3)).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero() > 0, name


def test_dropout_acts_in_training_alone() -> None:
    model, images = small_model(1), random_images(1)
    with torch.no_grad():
        assert not model.log_prob(images).equal(model.log_prob(images))
        model.eval()
        assert model.log_prob(images).equal(model.log_prob(images))


def test_noise_is_ignored() -> None:
    model, images = small_model(1).eval(), random_images(1)
    with torch.no_grad():
        assert model(images, 0.1).equal(model(images, torch.rand(images.shape)))
        assert model(images).shape == (2, 1)


def test_state_survives_saving() -> None:
    model, other, images = small_model(3).eval(), small_model(3).eval(), random_images(3)
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    with torch.no_grad():
        assert not other.log_prob(images).equal(model.log_prob(images))
        other.load_state_dict(model.state_dict())
        assert other.log_prob(images).equal(model.log_prob(images))


def test_sixteen_bit_autocast_stays_near() -> None:
    model, images = small_model(3).eval(), random_images(3)
    with torch.no_grad():
        exact = model.log_prob(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.log_prob(images)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=1e-2, atol=0)


def test_sampling_draws_every_pixel_from_its_own_conditional() -> None:
    """Replayed with the parameters that the whole network gives for the finished images."""
    model = strong_model(3).double()
    done: list[tuple[int, int]] = []
    images = model.sample(
        2, torch.Generator().manual_seed(5), on_progress=lambda *step: done.append(step)
    )
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 32, 32)
    assert done == [(row, 32) for row in range(1, 33)]
    assert model.training
    with torch.no_grad():
        parameters = model.eval().mixture_parameters(scale_levels(images, torch.float64))
    random = torch.Generator().manual_seed(5)
    for row in range(32):
        for column in range(32):
            here = parameters[:, :, row : row + 1, column : column + 1]
            pixel = sample_pixels(here, 3, random)
            assert pixel[:, :, 0, 0].equal(images[:, :, row, column])
