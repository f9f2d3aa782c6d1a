"""CelebA: its folder and its archive, written here."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from oodflow.data import celeba
from oodflow.data.source import Request
from oodflow.errors import UserError


def ask(path, **more):
    return Request(SimpleNamespace(name="celeba", channels=3, classes=0, options={}), path, **more)


def picture(seed):
    """A JPEG file of CelebA's size, and what it must become."""
    pixels = np.random.default_rng(seed).integers(256, size=(218, 178, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    small = Image.open(stream).resize((32, 32), Image.Resampling.BILINEAR)
    return stream.getvalue(), np.asarray(small).transpose(2, 0, 1)


FILES = {f"{i:06}.jpg": picture(i) for i in (10, 2, 1)}
EXPECTED = np.stack([FILES[name][1] for name in sorted(FILES)])


def write_folder(folder):
    folder.mkdir(parents=True)
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)


def write_zip(path, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img_align_celeba/", b"")
        for name, (data, _) in FILES.items():
            archive.writestr(f"img_align_celeba/{name}", data)
        for name in extra:
            archive.writestr(name, b"x")


def pixels_of(request):
    raw = celeba.read(request)
    assert list(raw.folds) == ["test"] and raw.classes == ()
    found = list(raw.folds["test"].pieces())
    assert all(piece.labels is None for piece in found)
    return raw.folds["test"].total, np.concatenate([piece.pixels for piece in found])


def test_every_layout_gives_the_same_images(tmp_path):
    root = tmp_path / "celeba"
    write_folder(root / "img_align_celeba")
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    Image.new("RGB", (9, 9)).save(root / "aside.png")
    packed = tmp_path / "packed"
    packed.mkdir()
    write_zip(packed / "img_align_celeba.zip", extra=["__MACOSX/._000001.jpg", "readme.txt"])
    for path in (root, root / "img_align_celeba", packed, packed / "img_align_celeba.zip"):
        total, pixels = pixels_of(ask(path))
        assert total == 3 and np.array_equal(pixels, EXPECTED), path
    assert [each.name for each in packed.iterdir()] == ["img_align_celeba.zip"]


def test_any_folder_of_images_in_the_order_of_file_names(tmp_path):
    for i, name in enumerate(("a/3.png", "b/1.png", "2.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / name)
    assert pixels_of(ask(tmp_path))[1][:, 0, 0, 0].tolist() == [1, 2, 0]


def test_only_the_first_are_taken(tmp_path, monkeypatch):
    assert celeba.FIRST == 60_000
    monkeypatch.setattr(celeba, "FIRST", 2)
    write_folder(tmp_path / "img_align_celeba")
    total, pixels = pixels_of(ask(tmp_path))
    assert total == 2 and np.array_equal(pixels, EXPECTED[:2])


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../b", "C:\\evil.jpg"])
def test_a_member_that_leads_out_is_refused(tmp_path, name):
    write_zip(tmp_path / "img_align_celeba.zip", extra=[name])
    with pytest.raises(UserError, match=r"img_align_celeba\.zip holds a member .* leads out of it"):
        celeba.read(ask(tmp_path))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_a_truncated_archive_is_named(tmp_path, keep):
    path = tmp_path / "img_align_celeba.zip"
    write_zip(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"img_align_celeba\.zip is not a complete zip") as caught:
        celeba.read(ask(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_member_is_named_or_left_out(tmp_path):
    path = tmp_path / "img_align_celeba.zip"
    write_zip(path)
    data = bytearray(path.read_bytes())
    # Members are stored as they are, so that a changed byte only spoils the check sum of one.
    data[data.index(FILES["000002.jpg"][0]) + 3000] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"img_align_celeba\.zip/img_align_celeba/000002\.jpg cannot be read .*CRC"
    ):
        pixels_of(ask(path))
    total, pixels = pixels_of(ask(path, on_broken=lambda name, why: None))
    assert total == 3 and np.array_equal(pixels, EXPECTED[[0, 2]])


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=f"no image in {tmp_path}; put img_align_celeba"):
        celeba.read(ask(tmp_path))
    with pytest.raises(UserError, match="no file or folder at .*absent"):
        celeba.read(ask(tmp_path / "absent"))
