"""BraTS: NIfTI volumes and image files with known voxels, in both layouts, whole and damaged."""

import gzip
import hashlib
import os
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from PIL import Image

from oodflow.data import brats
from oodflow.data.source import Request, refuse_broken
from oodflow.errors import UserError

MODALITIES = ("t1", "t1ce", "t2", "flair")


def ask(path, modality="t1", on_broken=refuse_broken, channels=3):
    facts = SimpleNamespace(name=f"brats-{modality}", channels=channels, classes=0)
    return brats.read(Request(facts, path, on_broken))


def images(fold):
    pieces = list(fold.pieces())
    assert all(piece.labels is None for piece in pieces)
    return np.concatenate([piece.pixels for piece in pieces])


def counts(raw):
    return {name: len(images(fold)) for name, fold in raw.folds.items()}


def save(path, volume):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), path)


def ramp(height=40, width=44, depth=10):
    """Voxel (x, y, z) is 1 + 10·z + a value from 0 to 9: all positive, no two slices alike."""
    x, y, z = np.indices((height, width, depth))
    return 1 + 10 * z + (3 * x + 7 * y) % 10


def by_definition(volume, z):
    """The levels of a slice: round(255·min(v/p, 1)) with p among the sorted positive voxels."""
    positive = sorted(v for v in volume.ravel().tolist() if v > 0)
    at = 0.995 * (len(positive) - 1)
    low = int(at)
    p = positive[low] + (at - low) * (positive[min(low + 1, len(positive) - 1)] - positive[low])
    return [[round(255 * max(min(v / p, 1), 0)) for v in row] for row in volume[:, :, z].tolist()]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_test_crops_are_central_and_slices_are_every_fifth(tmp_path, ending):
    volume = ramp()
    save(tmp_path / "test" / "a" / f"a_t1{ending}", volume)
    save(tmp_path / "train" / "b" / f"b_t1{ending}", volume)
    fold = ask(tmp_path).folds["test"]
    found = images(fold)
    assert found.shape == (2, 3, 32, 32) and found.dtype == np.uint8 and fold.total == 2
    for at, z in enumerate((0, 5)):
        levels = np.array(by_definition(volume, z))[4:36, 6:38]
        assert (found[at] == levels).all()
    assert images(ask(tmp_path, channels=1).folds["test"]).shape == (2, 1, 32, 32)


def test_slices_with_less_than_a_quarter_are_left_out_and_negatives_are_dark(tmp_path):
    volume = np.zeros((32, 32, 14))
    volume[:8, :, 3:] = 100
    volume[0, 0, 3] = 0  # One pixel less than a quarter: slice 3 does not count.
    volume[0, 1, 4] = -50
    volume[0, 2, 4] = 30_000  # Beyond the percentile.
    save(tmp_path / "x" / "x_t1.nii.gz", volume)
    raw = ask(tmp_path)
    assert list(raw.folds) == ["test"] and raw.folds["test"].total == 3
    found = images(raw.folds["test"])
    assert len(found) == 2  # Slices 4 and 9.
    wanted = np.zeros((32, 32))
    wanted[:8] = 255
    assert (found[1] == wanted).all()
    wanted[0, 1] = 0
    assert (found[0] == wanted).all()


def test_training_crops_lie_inside_the_box_of_non_zero_pixels(tmp_path):
    volume = np.zeros((100, 90, 200))
    x, y = np.indices((50, 60))
    volume[20:70, 15:75] = (1 + 60 * x + y)[..., None]
    save(tmp_path / "train" / "a" / "a_t1.nii.gz", volume)
    save(tmp_path / "test" / "b" / "b_t1.nii.gz", volume)
    found = images(ask(tmp_path).folds["train"])
    assert len(found) == 40
    # All pixels of the box are positive and no slice has another outline.
    levels = np.array(by_definition(volume, 0))
    places = {
        (top, left)
        for crop in found
        for top in range(69)
        for left in range(59)
        if (crop[0] == levels[top : top + 32, left : left + 32]).all()
    }
    assert all(20 <= top <= 38 and 15 <= left <= 43 for top, left in places)
    assert (
        len(places) > 20 and len({t for t, _ in places}) > 10 and len({c for _, c in places}) > 10
    )
    assert np.array_equal(images(ask(tmp_path).folds["train"]), found)
    test = images(ask(tmp_path).folds["test"])
    assert (test == levels[34:66, 29:61]).all()


def test_a_box_smaller_than_the_crop_is_extended_inside_the_slice(tmp_path):
    volume = np.zeros((50, 40, 5))
    volume[36:, :] = 7
    volume[45, 3] = 3
    save(tmp_path / "train" / "a" / "a_t1.nii.gz", volume)
    save(tmp_path / "test" / "b" / "b_t1.nii.gz", volume)
    crop = images(ask(tmp_path).folds["train"])[0, 0]
    # 14 rows become the last 32; the columns are free.
    assert (crop[18:] > 0).all() and (crop[:18] == 0).all()


def test_only_the_modality_is_taken(tmp_path):
    for i, modality in enumerate((*MODALITIES, "seg")):
        for patient in ("p", "q"):
            volume = np.full((32, 32, 5), 100)
            volume[:2] = 10 * (i + 1)
            save(tmp_path / "HGG" / patient / f"{patient}_{modality}.nii.gz", volume)
    for i, modality in enumerate(MODALITIES):
        raw = ask(tmp_path, modality)
        assert counts(raw) == {"train": 1, "test": 1}
        dark = images(raw.folds["test"])[0, 0, 0, 0]
        assert dark == round(255 * (i + 1) / 10)


def flat(value):
    return np.where(np.indices((32, 32, 5))[0] < 2, value, 200)


def marks(raw):
    """The value of ``flat`` of every image, by fold."""
    return {
        name: [round(int(image[0, 0, 0]) * 200 / 255) for image in images(fold)]
        for name, fold in raw.folds.items()
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "TEST"),
        ("MICCAI_BraTS2020_TrainingData/HGG", "MICCAI_BraTS2020_ValidationData"),
        ("training", "train_not/validation"),
    ],
)
def test_folds_that_paths_name(tmp_path, train, test):
    for i in range(6):
        place = test if i in (1, 4) else train
        save(tmp_path / place / f"case{i}" / f"case{i}_t2.nii", flat(10 + i))
    assert marks(ask(tmp_path, "t2")) == {"train": [10, 12, 13, 15], "test": [11, 14]}


@pytest.mark.parametrize("place", ["HGG/", "", "Training/"])
def test_elsewhere_a_fifth_of_the_patients_is_held_out_the_same_in_each_modality(tmp_path, place):
    names = [f"{place}BraTS19_{i}" for i in range(10)]
    for i, name in enumerate(names):
        for modality in ("t1", "flair"):
            save(tmp_path / name / f"BraTS19_{i}_{modality}.nii", flat(10 + i))
    ranked = sorted(range(10), key=lambda i: hashlib.sha256(names[i].encode()).hexdigest())
    wanted = {
        "train": [10 + i for i in sorted(ranked[2:])],
        "test": [10 + i for i in sorted(ranked[:2])],
    }
    assert marks(ask(tmp_path, "t1")) == wanted == marks(ask(tmp_path, "flair"))


def test_volumes_in_one_folder_are_a_patient_each(tmp_path):
    for i in range(5):
        save(tmp_path / f"case{i}_t1.nii.gz", flat(10 + i))
    assert counts(ask(tmp_path)) == {"train": 4, "test": 1}


def test_a_volume_that_is_there_packed_and_unpacked_counts_once(tmp_path):
    for ending in (".nii", ".nii.gz"):
        for name in ("a", "b"):
            save(tmp_path / name / f"{name}_t1{ending}", flat(10))
    (tmp_path / "a" / "._a_t1.nii").write_bytes(b"of macOS")
    assert counts(ask(tmp_path)) == {"train": 1, "test": 1}


def write_slice(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_image_files_in_folders_of_the_modality(tmp_path):
    random = np.random.default_rng(0)
    pictures = {
        f"{fold}/{modality}/{i}.png": random.integers(1, 256, (40, 36))
        for fold in ("train", "test")
        for modality in ("t1", "t2")
        for i in range(3)
    }
    for name, pixels in pictures.items():
        write_slice(tmp_path / name, pixels)
    (tmp_path / "test" / "t1" / "notes.txt").write_text("no image")
    raw = ask(tmp_path)
    assert {name: fold.total for name, fold in raw.folds.items()} == {"train": 3, "test": 3}
    found = images(raw.folds["test"])
    for i in range(3):
        assert (found[i] == pictures[f"test/t1/{i}.png"][4:36, 2:34]).all()
    for i, crop in enumerate(images(raw.folds["train"])):
        whole = pictures[f"train/t1/{i}.png"]
        assert any(
            (crop == whole[top : top + 32, left : left + 32]).all()
            for top in range(9)
            for left in range(5)
        )


def test_jpeg_slices_become_grey_and_dark_ones_are_taken(tmp_path):
    for i in range(5):
        colour = np.zeros((40, 40, 3)) + (0 if i == 0 else 50 * i)
        write_slice(tmp_path / "flair" / f"slice{i}.jpg", colour)
    raw = ask(tmp_path, "flair")
    assert counts(raw) == {"train": 4, "test": 1}
    values = sorted(int(image[0, 0, 0]) for fold in raw.folds.values() for image in images(fold))
    assert np.abs(np.array(values) - [0, 50, 100, 150, 200]).max() <= 1


def test_nothing_of_the_modality_says_what_was_looked_for(tmp_path):
    save(tmp_path / "a" / "a_t1ce.nii.gz", flat(10))
    write_slice(tmp_path / "t2" / "a.png", np.ones((40, 40)))
    with pytest.raises(UserError) as caught:
        ask(tmp_path, "t1")
    assert str(caught.value) == (
        f"no file *_t1.nii.gz or *_t1.nii and no image in a folder 't1' below {tmp_path}"
    )


def cut(path, keep):
    os.truncate(path, int(keep * path.stat().st_size))


def damage(path):
    """A flipped bit of a voxel under a gzip stream that still unpacks."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[2000] ^= 1
    other = gzip.compress(bytes(content))
    path.write_bytes(other[:-8] + path.read_bytes()[-8:])


def text(path):
    path.write_text("no volume")


BROKEN = {
    "cut": lambda path: cut(path, 0.5),
    "cut header": lambda path: cut(path, 0.001),
    "empty": lambda path: cut(path, 0),
    "text": text,
    "flat": lambda path: save(path, np.ones((40, 40))),
    "small": lambda path: save(path, np.ones((40, 31, 9))),
    "dark": lambda path: save(path, -np.ones((40, 40, 9))),
}


@pytest.mark.parametrize(
    ("ending", "how"),
    [(ending, how) for ending in (".nii", ".nii.gz") for how in BROKEN] + [(".nii.gz", "bit")],
)
def test_broken_volumes_go_to_on_broken_once(tmp_path, ending, how):
    random = np.random.default_rng(0)
    for fold in ("train", "test"):
        for i in range(2):
            name = f"{fold}/case{i}/case{i}_t1{ending}"
            save(tmp_path / name, random.integers(1, 900, (40, 40, 5)))
    path = tmp_path / f"test/case1/case1_t1{ending}"
    (damage if how == "bit" else BROKEN[how])(path)
    with pytest.raises(UserError, match="cannot be read") as caught:
        counts(ask(tmp_path))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    told = []
    raw = ask(tmp_path, on_broken=lambda which, why: told.append((which, why)))
    assert counts(raw) == {"train": 2, "test": 1}
    assert [which for which, _ in told] == [str(path)] and told[0][1]


def test_a_broken_neighbour_changes_no_crop(tmp_path):
    random = np.random.default_rng(0)
    for name in ("train/a/a", "train/b/b", "test/c/c"):
        save(tmp_path / f"{name}_t1.nii", random.integers(1, 900, (60, 60, 10)))
    before = images(ask(tmp_path).folds["train"])
    text(tmp_path / "train/a/a_t1.nii")
    after = images(ask(tmp_path, on_broken=lambda which, why: None).folds["train"])
    assert np.array_equal(before[2:], after)


def test_broken_and_small_image_files(tmp_path):
    for i in range(3):
        write_slice(tmp_path / "train" / "t1" / f"{i}.png", np.full((40, 40), 9))
        write_slice(tmp_path / "test" / "t1" / f"{i}.png", np.full((40, 40), 9))
    text(tmp_path / "train" / "t1" / "1.png")
    write_slice(tmp_path / "test" / "t1" / "2.png", np.full((31, 40), 9))
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        counts(ask(tmp_path))
    told = []
    raw = ask(tmp_path, on_broken=lambda which, why: told.append(which))
    assert counts(raw) == {"train": 2, "test": 2}
    assert told == [str(tmp_path / "train" / "t1" / "1.png"), str(tmp_path / "test/t1/2.png")]


def test_only_broken_volumes_are_an_error(tmp_path):
    text(tmp_path / "a_t1.nii")
    with pytest.raises(UserError, match="none of the 1 files of t1"):
        ask(tmp_path, on_broken=lambda which, why: None)


def test_scaled_and_floating_point_volumes(tmp_path):
    volume = ramp(32, 32, 5).astype(np.float32)
    volume[3, 4, 0] = np.nan
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image = nibabel.Nifti1Image(volume, np.eye(4))
        nibabel.save(image, tmp_path / name / f"{name}_t1.nii.gz")
    crop = images(ask(tmp_path).folds["test"])[0, 0]
    wanted = np.array(by_definition(np.nan_to_num(volume), 0))
    assert np.array_equal(crop, wanted) and crop[3, 4] == 0
