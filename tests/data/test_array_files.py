"""Files of images: what is read from every layout, and what is refused with one clear line."""

from types import SimpleNamespace

import numpy as np
import pytest

from oodflow.data.array_files import read, stamp
from oodflow.data.catalog import agreeing, lookup, slug_of
from oodflow.data.images import describe, load
from oodflow.data.source import Request
from oodflow.errors import UserError


def ask(path, channels=3, **options):
    facts = SimpleNamespace(name=f"array:{path}", channels=channels, classes=0, options=options)
    return Request(facts, path)


def images(count, *shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def pixels(raw, fold):
    return np.concatenate([piece.pixels for piece in raw.folds[fold].pieces()])


def labels(raw, fold):
    return np.concatenate([piece.labels for piece in raw.folds[fold].pieces()]).tolist()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "Fortran", "npz"])
def test_every_layout_of_colour_gives_the_same_images(tmp_path, layout):
    expected = images(30, 3, 32, 32)
    path = tmp_path / ("x.npz" if layout == "npz" else "x.npy")
    last = expected.transpose(0, 2, 3, 1)
    if layout == "npz":
        np.savez(path, images=last)
    else:
        np.save(
            path, {"NHWC": np.ascontiguousarray(last), "NCHW": expected, "Fortran": last}[layout]
        )
    raw = read(ask(path))
    train, test = pixels(raw, "train"), pixels(raw, "test")
    assert (
        len(train) == raw.folds["train"].total == 24 and len(test) == raw.folds["test"].total == 6
    )
    # Each image is in one of the folds, and in its order.
    place = {image.tobytes(): i for i, image in enumerate(expected)}
    found = [[place[image.tobytes()] for image in fold] for fold in (train, test)]
    assert sorted(found[0] + found[1]) == list(range(30))
    assert all(fold == sorted(fold) for fold in found)
    assert raw.classes == () and next(raw.folds["test"].pieces()).labels is None


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1), (1, 32, 32)])
def test_grey_images_in_every_layout(tmp_path, shape):
    grey = images(8, *shape)
    np.save(tmp_path / "g.npy", grey)
    raw = read(ask(tmp_path / "g.npy", 1, test="1"))
    assert list(raw.folds) == ["test"]
    assert (pixels(raw, "test") == grey.reshape(8, 1, 32, 32)).all()
    with pytest.raises(UserError, match=r"holds grey images; write array:.*\?channels=1"):
        read(ask(tmp_path / "g.npy", 3))


def test_folds_and_labels_of_a_file(tmp_path):
    names = {"train_images": images(4, 28, 28), "train_labels": np.array([[7], [3], [7], [9]]),
             "test_images": images(2, 28, 28), "test_labels": np.array([[9], [3]]),
             "val_images": images(1, 28, 28)}  # fmt: skip
    np.savez_compressed(tmp_path / "m.npz", **names)
    raw = read(ask(tmp_path / "m.npz", 1))
    assert raw.classes == ("3", "7", "9") and list(raw.folds) == ["train", "test"]
    assert labels(raw, "train") == [1, 0, 1, 2] and labels(raw, "test") == [2, 0]
    assert pixels(raw, "test").shape == (2, 1, 32, 32)
    with pytest.raises(UserError, match="folds of its own, which test=0.5 cannot split"):
        read(ask(tmp_path / "m.npz", 1, test="0.5"))


def test_a_share_is_split_in_the_same_way_each_time_and_labels_follow(tmp_path):
    whole = images(1000, 4, 4)
    np.savez(tmp_path / "w.npz", images=whole, labels=np.arange(1000) % 5)
    first, second = (read(ask(tmp_path / "w.npz", 1, test="0.1")) for _ in range(2))
    assert (pixels(first, "test") == pixels(second, "test")).all()
    assert 64 <= first.folds["test"].total <= 128
    assert sorted(labels(first, "train") + labels(first, "test")) == sorted(np.arange(1000) % 5)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def save(path, array, **options):
    np.save(path, array, **options)


def cut(path, array):
    np.save(path, array)
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = {
    "floats": (lambda p: save(p, np.zeros((5, 32, 32))), "holds float64 of shape 5×32×32 in place"),
    "NaN": (lambda p: save(p, np.full((5, 8, 8), np.nan)), "float64 of shape 5×8×8 with NaN"),
    "no images": (lambda p: save(p, images(5)), "has shape 5; images are"),
    "five dimensions": (lambda p: save(p, images(2, 2, 2, 2, 3)), "has shape 2×2×2×2×3"),
    "four channels": (lambda p: save(p, images(2, 8, 8, 4)), "1 or 3 channels"),
    "two layouts": (lambda p: save(p, images(2, 3, 8, 3)), "N×H×W×C as well as N×C×H×W"),
    "none": (lambda p: save(p, images(0, 8, 8)), "has shape 0×8×8"),
    "cut": (lambda p: cut(p, images(9, 32, 32)), "is not a whole file of numbers"),
    "pickled": (lambda p: save(p, np.array([Evil()], object), allow_pickle=True), "unpickled"),
    "text": (lambda p: p.write_text("hello"), "is not a whole file of numbers"),
    "empty": (lambda p: p.touch(), "is not a whole file of numbers"),
}


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED)
def test_what_holds_no_images_is_refused(tmp_path, capfd, make, match):
    path = tmp_path / "x.npy"
    make(path)
    with pytest.raises(UserError, match=match) as caught:
        read(ask(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"pictures": images(3, 8, 8)}, "holds pictures; name its arrays images and labels"),
        ({"images": images(3, 8, 8), "train": images(3, 8, 8)}, "name images once, or train and"),
        ({"train": images(3, 8, 8)}, "has no test images"),
        ({"images": images(3, 8, 8), "labels": np.arange(4)}, "labels are int64 of shape 4, not 3"),
        ({"images": images(3, 8, 8), "labels": np.ones(3)}, "labels are float64"),
        (
            {"train": images(2, 8, 8), "test": images(2, 8, 8), "train_labels": np.arange(2)},
            "labels of one fold only",
        ),
        (
            {"train": images(1, 8, 8), "test": images(1, 8, 8), "train_labels": np.array([1]),
             "test_labels": np.array([2])},
            "label 2 of the test images has no training images",
        ),
    ],
)  # fmt: skip
def test_arrays_that_do_not_belong_together_are_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=match):
        read(ask(tmp_path / "x.npz", 1))


def test_a_file_of_arrays_that_is_cut_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images=images(9, 32, 32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="it may be cut"):
        read(ask(path))


def test_it_is_a_dataset_by_its_name_and_changes_are_seen(tmp_path):
    path = tmp_path / "photos.npy"
    np.save(path, images(20, 40, 40, 3))
    name = f"array:{path}?crop=32"
    assert slug_of(name).startswith("photos.npy-") and lookup(name).family == "folder"
    cropped = images(20, 40, 40, 3)[:, 4:36, 4:36].transpose(0, 3, 1, 2)
    found = [load(name, fold, tmp_path).pixels.numpy() for fold in ("train", "test")]
    assert [len(fold) for fold in found] == [16, 4]
    expected = {image.tobytes() for image in cropped}
    assert {image.tobytes() for fold in found for image in fold} == expected
    grey = agreeing(name, 1)
    assert "channels=1" in grey and load(grey, "train", tmp_path).pixels.shape == (16, 1, 32, 32)
    before, digest = stamp(path), describe(name, tmp_path).folds["test"].digest
    np.save(path, images(21, 40, 40, 3))
    assert stamp(path) != before and describe(name, tmp_path).folds["test"].digest != digest
    with pytest.raises(UserError, match="unknown array option 'size'; available: resize"):
        lookup(f"array:{path}?size=3")
    path.unlink()
    with pytest.raises(UserError, match="does not exist; give an .npy or .npz file"):
        load(name, "test", tmp_path)
