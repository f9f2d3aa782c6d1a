"""Traces of resizing: figures that follow from the resizing, not from what images show."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from oodflow.data import catalog, images, sketch
from oodflow.data.resampling import compared, traces_of, unequal
from oodflow.data.torchvision_sets import enlarge

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def crops(side, count=250, seed=0):
    """Grey crops of photographs at their own resolution."""
    rng = np.random.default_rng(seed)
    photos = [
        np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("L"))
        for name in ("astronaut", "coffee", "chelsea", "rocket")
    ]
    made = []
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (int(rng.integers(length - side)) for length in photo.shape)
        made.append(photo[None, top : top + side, left : left + side])
    return np.stack(made)


def resized(pixels, side, how):
    made = [np.asarray(Image.fromarray(p[0]).resize((side, side), how))[None] for p in pixels]
    return np.stack(made)


def jpeg(pixels, quality):
    made = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image[0]).save(stream, "JPEG", quality=quality)
        made.append(np.asarray(Image.open(stream))[None])
    return np.stack(made)


def large(pixels):
    return enlarge(torch.from_numpy(pixels)).numpy()


@pytest.fixture(scope="module")
def sketches(tmp_path_factory):
    """The data folder of the grey embedded sets, of 300 test images each."""
    with pytest.MonkeyPatch.context() as patch:

        def lookup(name):
            return dataclasses.replace(catalog.lookup(name), train_size=20, test_size=300)

        patch.setattr(sketch, "lookup", lookup)
        patch.setattr(images, "lookup", lookup)
        folder = tmp_path_factory.mktemp("sketches")
        kinds = ("shapes", "letters", "digits", "scenes", "general")
        names = [f"sketch-{kind}-grey" for kind in kinds]
        pixels = {name: images.load(name, "test", folder).pixels.numpy() for name in names}
        return folder, pixels


@pytest.mark.parametrize("side", [20, 22, 24, 26, 27, 28, 29])
@pytest.mark.parametrize("how", ["torch", "pillow"])
def test_the_side_that_images_were_enlarged_from_is_found(side, how):
    small = crops(side, seed=side)
    made = large(small) if how == "torch" else resized(small, 32, BILINEAR)
    assert traces_of(made).side == side


def test_a_side_is_found_whatever_the_images_show(sketches):
    sets = {name: large(resized(p, 28, BILINEAR)) for name, p in sketches[1].items()}
    sets |= {"photos": large(crops(28)), "smooth": large(resized(crops(128), 28, BILINEAR))}
    # White figures on black in a field of 20×20 pixels, as digits of MNIST are.
    figures = resized(crops(60), 20, BILINEAR)
    figures = np.where(figures > 128, figures, 0).astype(np.uint8)
    sets["figures"] = large(np.pad(figures, ((0, 0), (0, 0), (4, 4), (4, 4))))
    traces = {name: traces_of(pixels) for name, pixels in sets.items()}
    assert {each.side for each in traces.values()} == {28}
    for one in traces:
        assert unequal(one, traces) == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: crops(32),
        lambda: resized(crops(64), 32, BILINEAR),
        lambda: resized(crops(178), 32, BILINEAR),
        lambda: resized(crops(48), 32, BILINEAR),
        lambda: crops(64)[:, :, ::2, ::2],
        lambda: jpeg(crops(32), 75),
        lambda: jpeg(crops(32), 30),
        lambda: jpeg(crops(40), 50)[:, :, 3:35, 3:35],
        # A frame that all images have is no grid of a resizing.
        lambda: np.pad(crops(26), ((0, 0), (0, 0), (3, 3), (3, 3))),
        lambda: np.pad(crops(20), ((0, 0), (0, 0), (6, 6), (6, 6))),
        lambda: np.random.default_rng(0).integers(256, size=(250, 1, 32, 32), dtype=np.uint8),
    ],
    ids=[
        "32",
        "64",
        "178",
        "48",
        "64 unfiltered",
        "q75",
        "q30",
        "q50 cut",
        "framed",
        "field",
        "noise",
    ],
)
def test_no_side_is_made_up(make):
    assert traces_of(make()).side == 0


def test_the_embedded_sets_are_alike(sketches):
    folder, pixels = sketches
    for one, other in itertools.permutations(pixels, 2):
        assert unequal(one, {name: traces_of(pixels[name]) for name in (one, other)}) == ""
    assert all(each.side == 0 for each in map(traces_of, pixels.values()))


def test_enlarged_images_against_native_ones_are_named_with_figures(sketches):
    folder, pixels = sketches
    small = resized(pixels["sketch-shapes-grey"], 28, BILINEAR)
    sets = {"clothes": traces_of(large(small))}
    sets |= {name: traces_of(each) for name, each in pixels.items()}
    line = unequal("clothes", sets)
    assert line.startswith("unequal resizing, clothes enlarged from 28×28 (grid 0.")
    assert all(f"{name} with no grid (grid 0.0" in line for name in pixels)
    assert "same steps" in line and "\n" not in line


def test_pictures_made_smaller_with_and_without_a_filter_are_unequal():
    for side in (64, 128, 178):
        source = crops(side)
        filtered = resized(source, 32, BILINEAR)
        plain = resized(source, 32, NEAREST)
        sets = {"filtered": traces_of(filtered), "plain": traces_of(plain)}
        assert "plain with no grid" in unequal("filtered", sets), sets
        # The same resizing of other pictures.
        sets = {"filtered": sets["filtered"], "other": traces_of(resized(crops(96), 32, BILINEAR))}
        assert unequal("filtered", sets) == ""


def test_few_or_flat_images_say_nothing():
    assert traces_of(large(crops(28, count=50))) is None
    assert traces_of(np.full((300, 3, 32, 32), 7, np.uint8)) is None
    assert unequal("a", {"a": None, "b": traces_of(crops(32))}) == ""


def test_only_prepared_sets_are_compared(tmp_path):
    for name, pixels in (("native", crops(32)), ("large", large(crops(28)))):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image[0]).save(tmp_path / name / f"{number}.png")
    native, enlarged = (
        f"folder:{tmp_path / name}?channels=1&test=1" for name in ("native", "large")
    )
    names = [catalog.lookup(name).name for name in (native, enlarged)]
    data = tmp_path / "data"
    assert compared(names[0], [names[1], "tiny-grey", "no-such-set", ""], data) == ""
    images.describe(names[0], data)
    assert compared(names[0], names[1:], data) == ""
    images.describe(names[1], data)
    line = compared(names[0], [names[1], "no-such-set"], data)
    assert f"{catalog.lookup(names[1]).slug} enlarged from 28×28" in line
