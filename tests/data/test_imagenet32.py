"""Downsampled ImageNet: pickled batches as Python 2 and 3 write them, damaged and hostile ones."""

import os
import pickle
import shutil
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from oodflow.data import imagenet32
from oodflow.data.source import Request
from oodflow.errors import UserError

FACTS = SimpleNamespace(name="imagenet32", channels=3, classes=1000)
TRAIN = [f"train_data_batch_{i}" for i in range(1, 11)]


def batch(seed, count):
    random = np.random.default_rng(seed)
    rows = random.integers(256, size=(count, 3072), dtype=np.uint8)
    return rows, random.integers(1, 1001, size=count).tolist()


def python2_pickle(rows, labels):
    """Protocol 2 as Python 2 writes it: str is a byte string, numpy's core has its old name."""

    def string(content):
        return b"T" + struct.pack("<i", len(content)) + content  # BINSTRING

    def integer(number):
        return b"J" + struct.pack("<i", number)

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    array += integer(0) + b"\x85" + string(b"b") + b"tR"
    kind = b"cnumpy\ndtype\n(" + string(b"u1") + integer(0) + integer(1) + b"tR("
    kind += integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    shape = integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
    array += b"(" + integer(1) + shape + kind + b"\x89" + string(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(map(integer, labels)) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def write(path, rows, labels, protocol=2, keys=str, **more):
    content = {"data": rows, "labels": labels, **more}
    if keys is bytes:
        content = {key.encode(): value for key, value in content.items()}
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.fixture
def folder(tmp_path):
    """Ten batches of 3 and more images by every protocol, a validation file of 4."""
    for i, name in enumerate(TRAIN):
        rows, labels = batch(i, 3 + i)
        path = tmp_path / name
        if i == 3:
            path.write_bytes(python2_pickle(rows, labels))
        else:
            more = {"mean": rows.mean(0)} if i % 2 else {}
            keys = bytes if i in (5, 6) else str
            write(path, rows, labels, protocol=2 + i % 4, keys=keys, **more)
    write(tmp_path / "val_data", *batch(99, 4))
    return tmp_path


def ask(folder):
    return imagenet32.read(Request(FACTS, folder))


def joined(fold):
    pieces = list(fold.pieces())
    return (
        np.concatenate([piece.pixels for piece in pieces]),
        np.concatenate([piece.labels for piece in pieces]),
    )


def test_pixels_labels_and_folds(folder):
    raw = ask(folder)
    pixels, labels = joined(raw.folds["train"])
    assert pixels.shape == (75, 3, 32, 32) and pixels.dtype == np.uint8
    assert labels.dtype == np.int64
    rows = np.concatenate([batch(i, 3 + i)[0] for i in range(10)])
    assert labels.tolist() == [label - 1 for i in range(10) for label in batch(i, 3 + i)[1]]
    for at, channel, row, column in ((0, 0, 0, 0), (13, 1, 2, 5), (74, 2, 31, 30), (14, 2, 9, 0)):
        assert pixels[at, channel, row, column] == rows[at, 1024 * channel + 32 * row + column]
    assert np.array_equal(pixels.reshape(75, 3072), rows)
    pixels, labels = joined(raw.folds["test"])
    rows, numbers = batch(99, 4)
    assert np.array_equal(pixels.reshape(4, 3072), rows)
    assert labels.tolist() == [number - 1 for number in numbers]
    assert raw.folds["train"].total == 1_281_167 and raw.folds["test"].total == 50_000


def test_files_may_lie_in_folders_below(folder):
    expected = joined(ask(folder).folds["train"])[0]
    for name, chosen in (("Imagenet32_train", TRAIN), ("Imagenet32_val", ["val_data"])):
        (folder / name).mkdir()
        for each in chosen:
            shutil.move(folder / each, folder / name)
    raw = ask(folder)
    assert np.array_equal(joined(raw.folds["train"])[0], expected)
    assert len(joined(raw.folds["test"])[0]) == 4


def test_a_large_batch_comes_in_pieces(folder):
    rows = np.zeros((4100, 3072), np.uint8)
    rows[4099] = 9
    write(folder / "val_data", rows, [1] * 4099 + [1000])
    pieces = list(ask(folder).folds["test"].pieces())
    assert [len(piece.pixels) for piece in pieces] == [4096, 4]
    assert (pieces[1].pixels[3] == 9).all() and pieces[1].labels.tolist() == [0, 0, 0, 999]
    # A piece that is kept does not keep its batch in memory.
    assert all(piece.pixels.base is None or piece.pixels.base.nbytes < rows.nbytes / 2
               for piece in pieces[1:])  # fmt: skip


def test_absent_files_are_all_named(folder):
    for name in ("train_data_batch_2", "train_data_batch_10", "val_data"):
        (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        ask(folder)
    assert str(caught.value).startswith("train_data_batch_2, train_data_batch_10, val_data not in ")


def test_a_file_that_is_there_twice_is_refused(folder):
    (folder / "Imagenet64_val").mkdir()
    shutil.copy(folder / "val_data", folder / "Imagenet64_val")
    with pytest.raises(UserError, match="val_data is there twice"):
        ask(folder)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        joined(ask(folder).folds["test"])
    message = str(caught.value)
    assert message.startswith(str(folder / "val_data")) and "\n" not in message
    return message


ROWS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": [1, 2]}, "has no 'data'"),
        ({"data": ROWS}, "has no 'labels'"),
        ({"data": ROWS, "labels": [0, 1]}, "labels outside 1 to 1000"),
        ({"data": ROWS, "labels": [1, 1001]}, "labels outside 1 to 1000"),
        ({"data": ROWS, "labels": [1]}, "labels of shape (1,)"),
        ({"data": ROWS, "labels": [1.0, 2.0]}, "float64"),
        ({"data": ROWS, "labels": [[1], [2, 3]]}, "damaged or not a batch"),
        ({"data": ROWS.astype(np.float32), "labels": [1, 2]}, "float32"),
        ({"data": np.zeros((2, 12288), np.uint8), "labels": [1, 2]}, "(2, 12288)"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "(0, 3072)"),
        ({"data": [[0] * 3072], "labels": [1]}, "list instead of unsigned bytes"),
        ({"data": np.array([[None] * 3072]), "labels": [1]}, "an array of object"),
        ([1, 2], "damaged or not a batch"),
    ],
)
def test_other_content_is_refused(folder, content, said):
    (folder / "val_data").write_bytes(pickle.dumps(content))
    assert said in refusal(folder)


@pytest.mark.parametrize("keep", [0, 1, 40, 3000, -1])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_truncated_batch_is_named(folder, keep, protocol):
    path = folder / "val_data"
    write(path, *batch(0, 4), protocol=protocol)
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged or not a batch" in refusal(folder)


class Attack:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [os.system, eval])
def test_a_hostile_batch_is_refused_and_not_run(folder, protocol, call):
    trace = folder / "trace"
    text = {os.system: f"touch {trace}", eval: f"open({str(trace)!r}, 'w')"}[call]
    content = {"data": ROWS, "labels": [1, 2], "mean": Attack(call, text)}
    (folder / "val_data").write_bytes(pickle.dumps(content, protocol=protocol))
    message = refusal(folder)
    assert "which is not run" in message and call.__name__ in message
    assert not trace.exists()


@pytest.mark.parametrize("name", ["ndarray.tofile", "load", "core.multiarray.fromfile"])
def test_other_names_of_numpy_are_refused_too(folder, name):
    hostile = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    (folder / "val_data").write_bytes(hostile)
    assert f"asks for 'numpy.{name}'" in refusal(folder)
