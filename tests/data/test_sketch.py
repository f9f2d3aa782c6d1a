"""The sketch family: the same for ever, split by source, cached whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image

from oodflow.data import sketch
from oodflow.data.catalog import CATALOG
from oodflow.data.images import load
from oodflow.data.sketch_masks import (
    EXTENT,
    SHAPES,
    STYLES,
    TILE,
    glyph_tiles,
    place,
    shape_tiles,
)
from oodflow.data.sketch_photos import PHOTOS, REDUCTIONS, SIDE, crops, photo, regions
from oodflow.data.source import to_grey
from oodflow.errors import UserError

NAMES = [name for name in CATALOG if name.startswith("sketch-")]


def roughness(pixels):
    """Mean absolute difference of neighbouring pixels: what makes an image hard to compress."""
    return np.abs(np.diff(pixels.astype(int), axis=3)).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_the_same_again_and_the_first_of_every_larger_count(name):
    few = sketch.generate(name, "test", 30)
    more = sketch.generate(name, "test", sketch.CHUNK + 7)
    assert len(few) == 30 and len(more) == sketch.CHUNK + 7
    assert few.tobytes() == more[:30].tobytes()
    # The second chunk is not the first again, nor is another fold.
    assert more[sketch.CHUNK :].tobytes() != more[:7].tobytes()
    assert few.tobytes() != sketch.generate(name, "train", 30).tobytes()
    # Small test regions have few places for the widest crops, so a scene may come twice.
    assert len({each.tobytes() for each in more["pixels"]}) > 0.98 * len(more)


@pytest.mark.parametrize("name", NAMES)
def test_labels_cover_the_classes_evenly_or_are_absent(name):
    labels = sketch.generate(name, "train", 500)["label"]
    classes = CATALOG[name].classes
    if classes:
        counts = np.bincount(labels, minlength=classes)
        assert len(counts) == classes and counts.min() > 25
    else:
        assert (labels == -1).all()


@pytest.mark.parametrize("name", PHOTOS)
def test_no_test_region_touches_a_training_region(name):
    height, width, _ = photo(name).shape
    boxes = regions(width, height, PHOTOS[name][2])
    covered = np.zeros((height, width), int)
    for fold, (left, top, right, bottom) in boxes.items():
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        # Every size of the region is large enough for a crop.
        assert min(right - left, bottom - top) / max(REDUCTIONS) >= SIDE, fold
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1
    train, test = boxes["train"], boxes["test"]
    gap = max(test[0] - train[2], train[0] - test[2], test[1] - train[3], train[1] - test[3])
    assert gap >= 3


@pytest.mark.parametrize("fold", ["train", "test"])
def test_crops_are_pieces_of_their_folds_regions(fold):
    pieces = crops(300, fold, np.random.default_rng(5)).transpose(0, 2, 3, 1)
    columns = set()
    for name in PHOTOS:
        whole = photo(name)
        left, top, right, bottom = regions(whole.shape[1], whole.shape[0], PHOTOS[name][2])[fold]
        region = whole[top:bottom, left:right]
        windows = np.lib.stride_tricks.sliding_window_view(region, SIDE, axis=1)
        # Each row of 32 pixels anywhere in the region, as bytes.
        columns |= {row.tobytes() for row in windows.transpose(0, 1, 3, 2).reshape(-1, SIDE * 3)}
    found = [each[9].tobytes() in columns or each[9, ::-1].tobytes() in columns for each in pieces]
    # A fifth of the crops is not reduced; flat pieces may match in other sizes as well.
    assert 0.1 < np.mean(found) < 0.4
    mirrored = [each[9, ::-1].tobytes() in columns for each in pieces]
    assert 0.02 < np.mean(mirrored) < np.mean(found)


def test_shapes_are_ten_different_tiles_inside_their_margin():
    tiles = shape_tiles()
    assert tiles.shape == (len(SHAPES), TILE, TILE) == (10, TILE, TILE)
    margin = (TILE - EXTENT) // 2 - 1
    assert not tiles[:, :margin].any() and not tiles[:, -margin:].any()
    assert not tiles[:, :, :margin].any() and not tiles[:, :, -margin:].any()
    area = dict(zip(SHAPES, tiles.sum(axis=(1, 2)) / 255 / EXTENT**2, strict=True))
    assert area["disk"] == pytest.approx(np.pi / 4, abs=0.03)
    assert area["ring"] == pytest.approx(np.pi / 4 * (1 - 0.55**2), abs=0.03)
    assert area["square"] == pytest.approx(0.85**2, abs=0.05)
    assert area["diamond"] == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("characters", [sketch.DIGITS, sketch.LETTERS, sketch.PRINTABLE])
def test_characters_are_whole_and_none_is_empty(characters):
    tiles = glyph_tiles(characters).reshape(len(characters), len(STYLES), TILE, TILE)
    # A cut character would touch the border of its tile.
    assert not tiles[..., 0, :].any() and not tiles[..., -1, :].any()
    assert not tiles[..., 0].any() and not tiles[..., -1].any()
    assert (tiles.reshape(*tiles.shape[:2], -1).max(axis=2) > 200).all()
    assert len({each.tobytes() for each in tiles[:, 0]}) == len(characters)


def test_a_placed_object_has_the_asked_size_and_varies_in_place():
    disk = np.repeat(shape_tiles()[:1], 200, axis=0)
    masks = place(disk, np.random.default_rng(0), sizes=(20.0, 20.0))
    assert masks.min() == 0 and masks.max() == 255
    area = masks.sum(axis=(1, 2)) / 255
    assert np.median(area) == pytest.approx(np.pi * 100, rel=0.03)
    centre = (masks * np.arange(32)).sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
    assert np.mean(centre) == pytest.approx(15.5, abs=0.8)
    assert 2 < np.std(centre) < 6


def test_a_turned_object_is_turned():
    bar = np.repeat(shape_tiles()[list(SHAPES).index("bar")][None], 100, axis=0)
    masks = place(bar, np.random.default_rng(0), sizes=(24.0, 24.0), turn=0.0)
    assert (masks.max(axis=1) > 128).sum(axis=1).max() == pytest.approx(24, abs=1)
    assert (masks.max(axis=2) > 128).sum(axis=1).max() == pytest.approx(7, abs=1)
    turned = place(bar, np.random.default_rng(0), sizes=(24.0, 24.0), turn=0.6)
    assert (turned.max(axis=2) > 128).sum(axis=1).max() > 12


def test_digits_are_the_smoother_images_and_the_general_set_is_between():
    rough = {
        name: np.mean(roughness(sketch.generate(name, "test", 400)["pixels"])) for name in NAMES
    }
    assert rough["sketch-digits"] < 0.75 * rough["sketch-shapes"]
    assert rough["sketch-digits"] < rough["sketch-general"] < rough["sketch-letters"]


def test_painting_mixes_ground_and_fill_by_the_mask(monkeypatch):
    def painted(cover: int) -> np.ndarray:
        monkeypatch.setattr(
            sketch, "place", lambda tiles, rng, **_: np.full((len(tiles), SIDE, SIDE), cover)
        )
        return sketch.generate("sketch-digits", "test", 20)["pixels"].astype(int)

    ground, fill = painted(0), painted(255)
    # A digit has one colour, and what is behind it has many.
    assert (fill == fill[..., :1, :1]).all()
    assert all(len(np.unique(each)) > 3 for each in ground)
    for cover in (1, 51, 128, 254):
        exact = ground * (1 - cover / 255) + fill * cover / 255
        assert np.array_equal(painted(cover), np.rint(exact))


def test_a_prepared_fold_is_the_generated_one(small, tmp_path):
    loaded = load("sketch-shapes", "train", tmp_path)
    records = sketch.generate("sketch-shapes", "train", 60)
    assert loaded.pixels.dtype == torch.uint8 and loaded.labels.dtype == torch.int64
    assert np.array_equal(loaded.pixels.numpy(), records["pixels"])
    assert loaded.labels.tolist() == records["label"].tolist()


def test_sets_without_labels_have_none(small, tmp_path):
    scenes = load("sketch-scenes", "test", tmp_path)
    assert scenes.labels is None and len(scenes.pixels) == 40


def test_another_version_of_the_recipe_is_prepared_anew(small, tmp_path, monkeypatch):
    first = load("sketch-digits", "test", tmp_path)
    monkeypatch.setattr(sketch, "VERSION", sketch.VERSION + 1)
    assert load("sketch-digits", "test", tmp_path).digest != first.digest


@pytest.mark.parametrize("axis", [1, 2])
def test_placing_interpolates_between_the_pixels_of_the_tile(axis):
    ramp = np.broadcast_to(np.arange(TILE, dtype=np.uint8)[:, None] * 6, (TILE, TILE))
    tile = ramp if axis == 1 else ramp.T
    tiles = np.repeat(tile[None], 20, axis=0)
    masks = place(tiles, np.random.default_rng(3), sizes=(20.0, 20.0), turn=0.0)
    # A size of 20 shows 28/20 pixels of the tile per pixel, each 6 brighter than the one before.
    steps = np.diff(np.moveaxis(masks, axis, 1)[:, 10:22], axis=1)
    assert np.abs(steps - 6 * EXTENT / 20).max() <= 1


def test_grey_outliers_beside_mnist_are_their_colour_form_by_way_of_28_pixels(tmp_path):
    """Written with Pillow: its filters round otherwise, by a level or two."""
    grey = load("letters-grey", "test", tmp_path).pixels[:20].numpy()
    colour = sketch.generate("sketch-letters", "test", 20)["pixels"]
    for made, original in zip(grey[:, 0], to_grey(colour)[:, 0], strict=True):
        picture = Image.fromarray(original).resize((28, 28), Image.Resampling.BILINEAR)
        small = torch.from_numpy(np.asarray(picture).copy())[None, None]
        expected = torch_bilinear(small.float())[0, 0].numpy()
        assert np.abs(made.astype(float) - expected).max() <= 2


def torch_bilinear(pixels):
    return torch.nn.functional.interpolate(
        pixels, size=(32, 32), mode="bilinear", align_corners=False
    )


def test_outliers_beside_mnist_have_no_training_fold(tmp_path):
    with pytest.raises(UserError, match="scenes-grey"):
        load("scenes-grey", "train", tmp_path)
