"""Loading by name: folds, limits, grey forms and the user's errors."""

import numpy as np
import pytest
import torch

from oodflow.data.images import describe, download, load, prepare, present
from oodflow.errors import UserError


def test_a_limit_takes_the_first_images_and_their_digest(tmp_path):
    some = load("sketch-scenes", "test", tmp_path, limit=5)
    whole = load("sketch-scenes", "test", tmp_path)
    assert (whole.name, whole.fold) == ("sketch-scenes", "test")
    assert len(whole.pixels) == 1000 and len(some.pixels) == 5
    assert torch.equal(some.pixels, whole.pixels[:5])
    assert some.digest != whole.digest
    assert some.digest == load("sketch-scenes", "test", tmp_path, limit=5).digest
    assert load("sketch-scenes", "test", tmp_path, limit=6).digest != some.digest
    assert load("sketch-scenes", "test", tmp_path, limit=1000).digest == whole.digest
    assert len(load("sketch-scenes", "test", tmp_path, limit=5000).pixels) == 1000


@pytest.mark.parametrize(
    ("name", "fold", "limit", "message"),
    [
        ("sketch-shape", "test", 0, "unknown dataset 'sketch-shape'; available: sketch-shapes"),
        ("sketch-shapes", "valid", 0, "unknown fold 'valid' of sketch-shapes; available: train"),
        ("sketch-shapes", "test", -1, "limit is -1"),
    ],
)
def test_wrong_requests_are_the_users_errors(tmp_path, name, fold, limit, message):
    with pytest.raises(UserError, match=message):
        load(name, fold, tmp_path, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_grey_form_is_the_weighted_sum_of_the_channels(small, tmp_path):
    colour = load("sketch-shapes", "test", tmp_path)
    grey = load("sketch-shapes-grey", "test", tmp_path)
    assert grey.pixels.shape == (40, 1, 32, 32)
    assert grey.labels.tolist() == colour.labels.tolist()
    red, green, blue = colour.pixels.double().unbind(1)
    exact = 0.2989 * red + 0.5870 * green + 0.1140 * blue
    assert (grey.pixels[:, 0] - exact).abs().max() <= 0.5 + 1e-4
    assert present("sketch-shapes-grey", tmp_path)


def test_a_grey_form_follows_its_colour_form(tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (10 * i, 0, 0)).save(folder / f"{i}.png")
    name = f"folder:{folder}?test=1&channels=1"
    before = load(name, "test", tmp_path / "data")
    assert before.pixels[:, 0, 0, 0].tolist() == [0, 3, 6]
    Image.new("RGB", (32, 32), (0, 100, 0)).save(folder / "3.png")
    after = load(name, "test", tmp_path / "data")
    assert after.pixels[:, 0, 0, 0].tolist() == [0, 3, 6, 59]
    assert after.digest != before.digest


def test_a_missing_fold_and_an_absent_set_say_so(tmp_path):
    with pytest.raises(UserError, match="lsun is not at .*lsun. Get the ten `_val` LMDB folders"):
        load("lsun", "test", tmp_path)
    assert not present("lsun", tmp_path) and present("sketch-shapes", tmp_path)
    with pytest.raises(UserError, match="tiny300k cannot be downloaded"):
        download("tiny300k", tmp_path)
    with pytest.raises(UserError, match="unknown dataset 'sketch-unknown'"):
        download("sketch-unknown", tmp_path)


def test_a_set_for_outliers_alone_has_no_training_fold(tmp_path):
    from PIL import Image

    (tmp_path / "celeba").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "celeba" / "000001.png")
    assert load("celeba", "test", tmp_path).pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    with pytest.raises(UserError, match="celeba has no train fold"):
        load("celeba", "train", tmp_path)


def test_prepared_data_are_used_without_the_raw_files(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(640, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    prepare("tiny300k", tmp_path / "data", tmp_path / "images.npy")
    (tmp_path / "images.npy").unlink()
    ready = describe("tiny300k", tmp_path / "data")
    assert {fold: known.count for fold, known in ready.folds.items()} == {"train": 512, "test": 128}
    folds = [load("tiny300k", fold, tmp_path / "data").pixels for fold in ("train", "test")]
    assert sorted(map(bytes, torch.cat(folds).permute(0, 2, 3, 1).reshape(640, -1).numpy())) == (
        sorted(map(bytes, pixels.reshape(640, -1)))
    )
