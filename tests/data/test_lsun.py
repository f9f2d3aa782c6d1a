"""LSUN: ten LMDB environments of encoded images, written here through lmdb."""

import io
import multiprocessing
import struct
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from oodflow.data.lsun import CATEGORIES, read
from oodflow.data.source import Request
from oodflow.errors import UserError

SHAPED = Compose([Resize(32), CenterCrop(32)])


def ask(path, **more):
    return Request(SimpleNamespace(name="lsun", channels=3, classes=10, options={}), path, **more)


def encoded(seed, kind, size, **options):
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write(folder, values):
    folder.mkdir(exist_ok=True)
    environment = lmdb.open(str(folder), map_size=1 << 22)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    environment.close()


def values_of(label):
    """Three images under keys that are not written in their order."""
    return {
        "f": encoded(3 * label, "WEBP", (32, 32), lossless=True),
        "a": encoded(3 * label + 1, "JPEG", (40, 70)),
        "c": encoded(3 * label + 2, "WEBP", (50, 36), quality=75),
    }


@pytest.fixture
def lsun(tmp_path):
    root = tmp_path / "lsun"
    root.mkdir()
    for label, category in enumerate(CATEGORIES):
        write(root / f"{category}_val_lmdb", values_of(label))
    return root


def test_categories_and_keys_in_order_pixels_as_torchvision_makes_them(lsun):
    assert len(CATEGORIES) == 10 and list(CATEGORIES) == sorted(CATEGORIES)
    raw = read(ask(lsun))
    assert list(raw.folds) == ["test"] and raw.folds["test"].total == 30
    assert raw.classes == CATEGORIES
    for _ in range(2):
        found = list(raw.folds["test"].pieces())
        labels = np.concatenate([piece.labels for piece in found])
        assert labels.tolist() == [i for i in range(10) for _ in range(3)]
        assert labels.dtype == np.int64
        pixels = np.concatenate([piece.pixels for piece in found])
    for label in range(10):
        for i, key in enumerate("acf"):
            image = Image.open(io.BytesIO(values_of(label)[key]))
            expected = np.asarray(SHAPED(image)).transpose(2, 0, 1)
            assert np.array_equal(pixels[3 * label + i], expected)
    # The lossless one is 32×32 and stays as it was written.
    written = np.random.default_rng(27).integers(256, size=(32, 32, 3), dtype=np.uint8)
    assert np.array_equal(pixels[29], written.transpose(2, 0, 1))


def test_nothing_is_written_into_the_folder(lsun):
    for path in lsun.glob("*/lock.mdb"):
        path.unlink()
    before = {path: path.read_bytes() for path in lsun.glob("*/*")}
    list(read(ask(lsun)).folds["test"].pieces())
    assert {path: path.read_bytes() for path in lsun.glob("*/*")} == before


def test_absent_categories_are_named(lsun):
    (lsun / "bridge_val_lmdb" / "data.mdb").unlink()
    (lsun / "tower_val_lmdb").rename(lsun / "tower_train_lmdb")
    with pytest.raises(UserError) as caught:
        read(ask(lsun))
    message = str(caught.value)
    assert message.startswith(
        f"{lsun} has no bridge_val_lmdb/data.mdb, tower_val_lmdb/data.mdb; get the"
    )
    with pytest.raises(UserError, match="absent has no bedroom_val_lmdb"):
        read(ask(lsun / "absent"))


def test_a_broken_value_is_named_or_left_out(lsun):
    folder = lsun / "kitchen_val_lmdb"
    write(folder, {"c": b"no image", "e": b""})
    raw = read(ask(lsun))
    assert raw.folds["test"].total == 31
    with pytest.raises(UserError, match="kitchen_val_lmdb/c cannot be read"):
        list(raw.folds["test"].pieces())
    told = []
    raw = read(ask(lsun, on_broken=lambda name, why: told.append(name)))
    labels = np.concatenate([piece.labels for piece in raw.folds["test"].pieces()]).tolist()
    assert told == [f"{folder}/c", f"{folder}/e"]
    assert [labels.count(i) for i in range(10)] == [3, 3, 3, 3, 3, 3, 2, 3, 3, 3]


def outcome(root, answers):
    try:
        list(read(ask(root)).folds["test"].pieces())
        answers.put("read")
    except UserError as error:
        answers.put(str(error))


def in_a_process(root):
    """What reading says, or None where it killed its process."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=outcome, args=(root, answers))
    child.start()
    child.join()
    return answers.get(timeout=5) if child.exitcode == 0 else None


def test_a_truncated_file_is_named_and_kills_no_process(lsun):
    path = lsun / "classroom_val_lmdb" / "data.mdb"
    data = path.read_bytes()
    assert len(data) >= 5 * 4096
    for keep in (0, 100, 4096, 8191, 8192, 3 * 4096, len(data) - 4096, len(data) - 1):
        path.write_bytes(data[:keep])
        message = in_a_process(lsun)
        assert message and message.startswith(f"{path} is damaged ("), keep
        assert "remove it and get it again" in message and "\n" not in message
    path.write_bytes(data)
    assert in_a_process(lsun) == "read"


def test_damaged_pages_kill_no_process(lsun):
    path = lsun / "classroom_val_lmdb" / "data.mdb"
    data = path.read_bytes()
    for page in range(len(data) // 4096):
        spoilt = data[: page * 4096] + bytes(4096) + data[(page + 1) * 4096 :]
        path.write_bytes(spoilt)
        assert in_a_process(lsun) is not None, page
    path.write_bytes(data[:40] + struct.pack("<I", 0) + data[44:])
    assert "its page size is 0" in in_a_process(lsun)


def test_an_environment_without_images_is_refused(lsun):
    folder = lsun / "tower_val_lmdb"
    (folder / "data.mdb").unlink()
    write(folder, {})
    with pytest.raises(UserError, match="tower_val_lmdb/data.mdb is damaged .it holds no image"):
        read(ask(lsun))
