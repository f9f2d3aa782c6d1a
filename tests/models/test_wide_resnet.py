"""The wide residual network: size, scores, gradients, state."""

import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.wide_resnet import WideResNet


def random_images(channels: int, count: int = 4) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, 32, 32), generator=random, dtype=torch.uint8)


def small_model(channels: int = 3, dropout: float = 0.3) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(channels, depth=10, widen=1, dropout=dropout)


def count_by_hand(channels: int, depth: int, widen: int) -> int:
    """Weights of the 3×3 and 1×1 convolutions, two numbers a normalised channel, one logit."""
    total, inputs = 9 * channels * 16, 16
    for outputs in (16 * widen, 32 * widen, 64 * widen):
        for block in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs
            if block == 0 and inputs != outputs:
                total += inputs * outputs
            inputs = outputs
    return total + 2 * inputs + inputs + 1


@pytest.mark.parametrize(("channels", "depth", "widen"), [(3, 28, 10), (1, 16, 2), (3, 10, 1)])
def test_parameter_count(channels: int, depth: int, widen: int) -> None:
    with torch.device("meta"):
        model = WideResNet(channels, depth, widen)
    assert sum(p.numel() for p in model.parameters()) == count_by_hand(channels, depth, widen)


def test_paper_size_is_the_published_one_but_for_the_last_layer() -> None:
    ten_classes = 36_479_194  # WRN-28-10 for CIFAR10
    assert count_by_hand(3, 28, 10) == ten_classes - 10 * 641 + 641 == 36_473_425


@pytest.mark.parametrize("depth", [4, 9, 11, 27])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(UserError, match=f"depth {depth}"):
        WideResNet(3, depth=depth)


@pytest.mark.parametrize("channels", [1, 3])
def test_score_is_the_log_probability_of_the_positive_class(channels: int) -> None:
    model, images = small_model(channels).eval(), random_images(channels)
    with torch.no_grad():
        score, logits = model(images), model.logits(images)
        assert model(images, torch.rand(images.shape)).equal(score)
        assert model.log_prob(images).equal(score[:, 0])
    assert score.shape == (4, 1) and logits.shape == (4,)
    torch.testing.assert_close(score[:, 0].exp(), torch.sigmoid(logits))
    assert not model.is_density and model.scales == 1 and model.image_shape == (channels, 32, 32)


def test_every_parameter_gets_a_gradient() -> None:
    model = small_model()
    model(random_images(3)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero() > 0, name


def test_block_without_change_of_shape_adds_to_its_untouched_input() -> None:
    model = WideResNet(3, depth=16, widen=1)
    block = model.groups[1][1]  # type: ignore[index]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 32, 16, 16)
    assert block(x).equal(x)


def test_block_with_change_of_shape_projects_its_normalised_input() -> None:
    block = small_model().groups[1][0]  # type: ignore[index]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 16, 16)
    projected = torch.nn.functional.conv2d(block.norm1(x).relu(), block.shortcut.weight, stride=2)
    assert block(x).equal(projected)


def test_initial_weights_have_the_variance_of_their_outgoing_connections() -> None:
    torch.manual_seed(0)
    weight = WideResNet(3, depth=10, widen=4).groups[2][0].conv1.weight  # type: ignore[index]
    assert weight.shape == (256, 128, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_dropout_and_batch_statistics_act_in_training_alone() -> None:
    model, images = small_model(dropout=0.3), random_images(3)
    with torch.no_grad():
        assert not model(images).equal(model(images))
        model.eval()
        torch.testing.assert_close(model(images)[:1], model(images[:1]))


def test_double_precision() -> None:
    model, images = small_model().eval(), random_images(3)
    with torch.no_grad():
        single, double = model(images), model.double()(images)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single, double.float(), rtol=1e-4, atol=1e-5)


def test_state_survives_saving() -> None:
    model, images = small_model(dropout=0), random_images(3)
    model(images)  # moves the running statistics, which are part of the state
    model.eval()
    torch.manual_seed(1)
    other = WideResNet(3, depth=10, widen=1).eval()
    with torch.no_grad():
        assert not other(images).equal(model(images))
        other.load_state_dict(model.state_dict())
        assert other(images).equal(model(images))
