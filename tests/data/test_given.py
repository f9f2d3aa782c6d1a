"""Arrays given in Python: one dataset for one array, with its very pixels."""

import numpy as np
import pytest

from oodflow.data.given import keep_array
from oodflow.data.images import load
from oodflow.errors import UserError


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)


def test_an_array_becomes_a_dataset_of_its_very_pixels(images, tmp_path):
    name = keep_array(images, tmp_path)
    both = [load(name, fold, tmp_path).pixels.numpy() for fold in ("train", "test")]
    assert [len(pixels) for pixels in both] == [8, 2]
    found = {image.tobytes() for image in np.concatenate(both)}
    assert found == {image.tobytes() for image in images.transpose(0, 3, 1, 2).copy()}


def test_the_same_images_are_the_same_dataset_in_either_layout(images, tmp_path):
    name = keep_array(images, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("given/*.npy")}
    assert keep_array(images.transpose(0, 3, 1, 2), tmp_path) == name
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("given/*.npy")} == before
    assert keep_array(images[::-1], tmp_path) != name


@pytest.mark.parametrize("layout", [(6, 32, 32), (6, 1, 32, 32), (6, 32, 32, 1)])
def test_grey_arrays_stay_grey(layout, tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, layout, np.uint8)
    pixels = load(keep_array(grey, tmp_path, "test=1"), "test", tmp_path).pixels.numpy()
    assert np.array_equal(np.sort(pixels.ravel()), np.sort(grey.ravel()))
    assert pixels.shape == (6, 1, 32, 32)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 32, 32)),
        np.zeros((0, 32, 32), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.array(["a"]),
    ],
)
def test_what_is_no_array_of_images_is_refused(array, tmp_path):
    with pytest.raises(UserError, match="the given array (holds|has)"):
        keep_array(array, tmp_path)
    assert not list(tmp_path.iterdir())
