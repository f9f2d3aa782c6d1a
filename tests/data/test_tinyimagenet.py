"""TinyImageNet: its archive and the folder extracted from it, written here."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from oodflow.data.source import Request
from oodflow.data.tinyimagenet import read
from oodflow.errors import UserError

TOP = "tiny-imagenet-200"


def ask(path, **more):
    facts = SimpleNamespace(name="tinyimagenet", channels=3, classes=200, options={})
    return Request(facts, path, **more)


def picture(seed, grey=False):
    """A JPEG file of 64×64, and what it must become."""
    shape = (64, 64) if grey else (64, 64, 3)
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    small = Image.open(stream).resize((32, 32), Image.Resampling.BILINEAR).convert("RGB")
    return stream.getvalue(), np.asarray(small).transpose(2, 0, 1)


PICTURES = {
    "train/n02/images/n02_0.JPEG": picture(1),
    "train/n02/images/n02_1.JPEG": picture(2, grey=True),
    "train/n01/images/n01_0.JPEG": picture(3),
    "test/images/test_1.JPEG": picture(4),
    "test/images/test_0.JPEG": picture(5),
    "val/images/val_0.JPEG": picture(6),
}
FILES = {
    # The makers' list is not sorted either.
    "wnids.txt": b"n02\nn01\n",
    "words.txt": b"n01\tone\n",
    "train/n01/n01_boxes.txt": b"",
    **{name: data for name, (data, _) in PICTURES.items()},
}


def write_folder(path, files=FILES):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, files=FILES, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{TOP}/{name}", data)
        for name in extra:
            archive.writestr(name, b"x")
    return path


def check(raw):
    assert list(raw.folds) == ["train", "test"] and raw.classes == ("n01", "n02")
    assert [raw.folds[fold].total for fold in raw.folds] == [3, 2]
    (train,), (test,) = (list(fold.pieces()) for fold in raw.folds.values())
    names = sorted(name for name in PICTURES if name.startswith("train/"))
    assert np.array_equal(train.pixels, [PICTURES[name][1] for name in names])
    assert train.labels.tolist() == [0, 1, 1] and train.labels.dtype == np.int64
    assert np.array_equal(
        test.pixels, [PICTURES[f"test/images/test_{i}.JPEG"][1] for i in range(2)]
    )
    assert test.labels is None


def test_every_layout_gives_the_same_images(tmp_path):
    packed, extracted = tmp_path / "packed", tmp_path / "extracted"
    packed.mkdir()
    write_zip(packed / f"{TOP}.zip")
    write_folder(extracted / TOP)
    for path in (packed, packed / f"{TOP}.zip", extracted, extracted / TOP):
        check(read(ask(path)))
    assert [each.name for each in packed.iterdir()] == [f"{TOP}.zip"]


def without(*names):
    return {name: data for name, data in FILES.items() if name not in names}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without("wnids.txt"), "has no wnids.txt"),
        (FILES | {"wnids.txt": b"\n"}, "wnids.txt lists no class"),
        (FILES | {"wnids.txt": b"\xff"}, "wnids.txt cannot be read"),
        (FILES | {"wnids.txt": b"n01"}, "train/n02/images/n02_0.JPEG is of no class in wnids.txt"),
        (without("train/n01/images/n01_0.JPEG"), "no image in .*train/n01/images"),
        (
            without("test/images/test_0.JPEG", "test/images/test_1.JPEG"),
            "no image in .*test/images",
        ),
    ],
)
def test_incomplete_files_are_named(tmp_path, files, message):
    for path in (
        write_zip(tmp_path / f"{TOP}.zip", files),
        write_folder(tmp_path / "other" / TOP, files),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read(ask(path))
        assert str(path) in str(caught.value) and "again from its makers" in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} has no wnids.txt; get {TOP}.zip"):
        read(ask(tmp_path))


@pytest.mark.parametrize("keep", [0, 0.3, 0.999])
def test_a_truncated_archive_is_named(tmp_path, keep):
    path = write_zip(tmp_path / f"{TOP}.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=rf"{TOP}\.zip is not a complete zip archive"):
        read(ask(tmp_path))


def test_a_member_that_leads_out_is_refused(tmp_path):
    write_zip(tmp_path / f"{TOP}.zip", extra=[f"{TOP}/../../evil.JPEG"])
    with pytest.raises(UserError, match=rf"{TOP}\.zip holds a member .* leads out of it"):
        read(ask(tmp_path))
    assert not (tmp_path.parent / "evil.JPEG").exists()


def test_a_broken_image_is_named_or_left_out(tmp_path):
    name = "train/n02/images/n02_0.JPEG"
    write_zip(tmp_path / f"{TOP}.zip", FILES | {name: FILES[name][:900]})
    raw = read(ask(tmp_path))
    with pytest.raises(UserError, match=rf"{TOP}\.zip/{TOP}/{name} cannot be read"):
        list(raw.folds["train"].pieces())
    raw = read(ask(tmp_path, on_broken=lambda name, why: None))
    (piece,) = raw.folds["train"].pieces()
    assert piece.labels.tolist() == [0, 1]
    assert np.array_equal(piece.pixels[1], PICTURES["train/n02/images/n02_1.JPEG"][1])
