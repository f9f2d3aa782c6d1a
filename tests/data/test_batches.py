"""Batches: what is shuffled, shifted, mirrored and drawn is a function of the position alone."""

import pytest
import torch

from oodflow.data.batches import Batches, flip, noise_like, step_generator, translate
from oodflow.data.images import Images
from oodflow.errors import UserError


def numbered(count, labels=True):
    """Images whose every pixel is their own number, so that a batch says whom it holds."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 32, 32)
    marks = torch.arange(count) % 10 if labels else None
    return Images("numbered", "train", pixels, marks, "")


def batches(images, size=4, seed=0, translate=0, flip=False):
    return Batches(images, size, seed, translate, flip, "cpu")


def test_translation_is_that_of_a_plain_loop():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(1, 256, (7, 3, 6, 9), generator=generator, dtype=torch.uint8)
    dx = torch.tensor([0, 1, -1, 3, -3, 2, -9])
    dy = torch.tensor([0, -2, 2, 3, 1, 6, 0])
    expected = torch.zeros_like(images)
    for i in range(7):
        for y in range(6):
            for x in range(9):
                if 0 <= y + dy[i] < 6 and 0 <= x + dx[i] < 9:
                    expected[i, :, y + dy[i], x + dx[i]] = images[i, :, y, x]
    shifted = translate(images, dx, dy)
    assert shifted.dtype == torch.uint8
    assert torch.equal(shifted, expected)


def test_flip_mirrors_only_the_chosen():
    images = torch.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    flipped = flip(images, torch.tensor([False, True]))
    assert torch.equal(flipped[0], images[0])
    assert flipped[1, 2, 1].tolist() == images[1, 2, 1].tolist()[::-1]


def test_noise_is_in_the_unit_interval_and_fills_it():
    noise = noise_like(torch.zeros(50, 3, 32, 32, dtype=torch.uint8), step_generator(0, "n", 0))
    assert noise.dtype == torch.float32 and noise.shape == (50, 3, 32, 32)
    assert noise.min() >= 0 and noise.max() < 1
    assert noise.min() < 1e-3 and noise.max() > 1 - 1e-3
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)


def test_generators_differ_in_each_part_of_the_position():
    positions = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (10, "a", 0), (1, "a", 10)]
    drawn = {torch.rand(4, generator=step_generator(*each)).sum().item() for each in positions}
    assert len(drawn) == len(positions)


def test_each_image_comes_once_a_pass_with_its_label_and_the_rest_is_dropped():
    stream = batches(numbered(22))
    assert stream.steps_per_pass == 5
    orders = []
    for each_pass in range(3):
        seen = []
        for step in range(each_pass * 5, each_pass * 5 + 5):
            batch = stream.at(step)
            assert batch.images.shape == (4, 3, 32, 32) and batch.images.dtype == torch.uint8
            numbers = batch.images[:, 0, 0, 0].tolist()
            assert batch.labels.tolist() == [number % 10 for number in numbers]
            seen += numbers
        assert len(set(seen)) == 20
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_batch_is_a_function_of_seed_and_step_in_any_order():
    images = numbered(22)
    forward = batches(images, translate=3, flip=True)
    all_forward = [forward.at(step) for step in range(12)]
    backward = batches(images, translate=3, flip=True)
    for step in reversed(range(12)):
        again = backward.at(step)
        assert torch.equal(again.images, all_forward[step].images)
        assert torch.equal(again.labels, all_forward[step].labels)
        assert torch.equal(again.noise, all_forward[step].noise)
    noises = {each.noise[0, 0, 0, 0].item() for each in all_forward}
    assert len(noises) == 12
    other = batches(images, seed=1, translate=3, flip=True).at(0)
    assert not torch.equal(other.noise, all_forward[0].noise)
    assert not torch.equal(other.images, all_forward[0].images)


def test_shifts_reach_their_limit_and_no_further_and_images_move_alone():
    pixels = torch.zeros(400, 1, 32, 32, dtype=torch.uint8)
    pixels[:, :, 16, 16] = 255
    images = Images("dot", "train", pixels, None, "")
    batch = batches(images, size=400, translate=3).at(0)
    assert batch.labels is None
    _, _, y, x = batch.images.nonzero().unbind(1)
    assert len(y) == 400
    assert sorted(set((y - 16).tolist())) == sorted(set((x - 16).tolist())) == list(range(-3, 4))
    assert len({*zip(y.tolist(), x.tolist(), strict=True)}) == 49


def test_half_of_the_images_are_mirrored_only_when_asked():
    pixels = torch.zeros(1000, 1, 32, 32, dtype=torch.uint8)
    pixels[:, :, :, 0] = 255
    images = Images("edge", "train", pixels, None, "")
    plain = batches(images, size=1000).at(0).images
    assert (plain[:, 0, 0, 0] == 255).all()
    mirrored = batches(images, size=1000, flip=True).at(0).images
    share = (mirrored[:, 0, 0, 31] == 255).float().mean().item()
    assert 0.44 < share < 0.56
    assert (mirrored[:, 0, 0, 0].int() + mirrored[:, 0, 0, 31] == 255).all()


def test_fewer_images_than_a_batch_is_the_users_error():
    with pytest.raises(UserError, match="numbered train has 3 images, fewer than one batch of 4"):
        batches(numbered(3))
    with pytest.raises(UserError, match="batch_size is 0"):
        batches(numbered(3), size=0)
