"""Images drawn from every density that can, and the grid that shows them."""

import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.evaluation.sampling import BATCH, draw_images, grid
from oodflow.experiment import Model
from oodflow.models.build import build_model
from oodflow.models.likelihood import LikelihoodModel
from oodflow.registration import MODELS

DENSITIES = [each for each in MODELS if each.startswith("glow")] + ["tarflow"]
SIZES = {"depth": 1, "hidden": 4, "mixtures": 1, "patch": 16, "layers": 1}


def small(name: str, classes: int = 0) -> LikelihoodModel:
    torch.manual_seed(0)
    sizes = SIZES | ({"depth": 10} if name == "wide-resnet" else {})
    model = build_model(Model(1, name, classes=classes, **sizes))
    images = torch.randint(90, 110, (32, 1, 32, 32), dtype=torch.uint8)
    model.initialise(images, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", [*DENSITIES, "pixelcnn"])
def test_every_density_draws_images_that_follow_the_seed(name: str) -> None:
    model = small(name)
    told: list[tuple[int, int]] = []
    first, again, other = (
        draw_images(model, 2, seed, on_progress=lambda *at: told.append(at)) for seed in (1, 1, 2)
    )
    assert first.dtype == torch.uint8 and first.shape == (2, 1, 32, 32)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert told[-1] == (2, 2) and all(0 <= done <= 2 for done, _ in told)


@pytest.mark.parametrize(("name", "classes"), [*((name, 0) for name in DENSITIES), ("glow", 3)])
def test_images_are_nearer_to_each_other_at_a_lower_temperature(name: str, classes: int) -> None:
    model = small(name, classes)
    cold, plain = (draw_images(model, 40, 1, t).double().std(0).mean() for t in (0.3, 1.0))
    assert cold < 0.6 * plain


@pytest.mark.parametrize("name", ["glow-conditional", "tarflow"])
def test_at_temperature_0_all_images_are_the_same(name: str) -> None:
    images = draw_images(small(name), 3, 1, temperature=0)
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_more_than_a_batch_are_drawn_batch_by_batch_and_all_are_different() -> None:
    told: list[tuple[int, int]] = []
    count = BATCH + 2
    images = draw_images(small("tarflow"), count, 1, on_progress=lambda *at: told.append(at))
    assert len(images) == count
    assert len({image.numpy().tobytes() for image in images}) == count
    # One block of four patches: three steps and the end of each batch.
    assert told == [(21, 66), (42, 66), (64, 66), (64, 66), (64, 66), (65, 66), (66, 66), (66, 66)]


@pytest.mark.parametrize(("name", "kind"), [("wide-resnet", "WideResNet"), ("png", "Compressor")])
def test_what_is_no_density_of_images_says_so(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"no images can be drawn from a {kind}"):
        draw_images(small(name), 1, 0)


def test_pixelcnn_refuses_a_temperature() -> None:
    with pytest.raises(UserError, match="no temperature"):
        draw_images(small("pixelcnn"), 1, 0, temperature=0.7)


@pytest.mark.parametrize(
    ("count", "temperature", "named"),
    [(0, 1.0, "count"), (1, -0.1, "temperature"), (1, float("nan"), "temperature")],
)
def test_numbers_that_make_no_images_are_refused(
    count: int, temperature: float, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        draw_images(small("tarflow"), count, 0, temperature)


def numbered(count: int, channels: int) -> Tensor:
    """Images each of whose values is its own number."""
    numbers = torch.arange(count, dtype=torch.uint8)
    return numbers[:, None, None, None].expand(-1, channels, 4, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_the_images_row_by_row_on_white(channels: int) -> None:
    picture = grid(numbered(5, channels), columns=3)
    assert picture.dtype == torch.uint8 and picture.shape == (11, 19, 3)
    for number, (top, left) in enumerate([(1, 1), (1, 7), (1, 13), (6, 1), (6, 7)]):
        assert (picture[top : top + 4, left : left + 5] == number).all()
    white = torch.ones(11, 19, dtype=torch.bool)
    for top, left in [(1, 1), (1, 7), (1, 13), (6, 1), (6, 7)]:
        white[top : top + 4, left : left + 5] = False
    assert (picture[white] == 255).all()


def test_colours_of_a_grid_are_those_of_the_images() -> None:
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 1] = torch.tensor([10, 20, 30])
    assert grid(image)[1, 2].tolist() == [10, 20, 30]
