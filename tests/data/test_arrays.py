"""The array of cleaned Tiny Images: .npy files with known pixels, whole and damaged."""

import os
import pickle
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from oodflow.data import arrays
from oodflow.data.source import Request, in_test_fold
from oodflow.errors import UserError

FACTS = SimpleNamespace(name="tiny300k", channels=3, classes=0)


def write_npy(path, count, cut=0):
    """Format 1.0: magic, version, length of the header, the header, the bytes row by row."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 32, 32, 3), }}"
    header = header.ljust(117) + "\n"
    content = np.random.default_rng(1).bytes(count * 3072)
    with path.open("wb") as stream:
        stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        stream.write(content[: len(content) - cut])
    return content


def ask(path):
    return arrays.read(Request(FACTS, path))


def images(fold):
    return np.concatenate([piece.pixels for piece in fold.pieces()])


def test_pixels_and_folds_over_several_pieces(tmp_path):
    count = 4500
    content = write_npy(tmp_path / "random_images.npy", count)
    raw = ask(tmp_path)
    test = in_test_fold(count)
    for name, chosen in (("train", ~test), ("test", test)):
        pieces = list(raw.folds[name].pieces())
        assert len(pieces) == 2 and all(piece.labels is None for piece in pieces)
        pixels = images(raw.folds[name])
        assert pixels.dtype == np.uint8 and pixels.shape == (chosen.sum(), 3, 32, 32)
        assert len(pixels) == raw.folds[name].total
        originals = np.flatnonzero(chosen).tolist()
        for at in (0, len(originals) // 2, len(originals) - 1):
            start = 3072 * originals[at]
            for row, column, channel in ((0, 0, 0), (0, 1, 2), (31, 30, 1), (7, 21, 0)):
                byte = content[start + 96 * row + 3 * column + channel]
                assert pixels[at, channel, row, column] == byte
        whole = np.frombuffer(content, np.uint8).reshape(-1, 32, 32, 3)[chosen]
        assert np.array_equal(pixels, np.moveaxis(whole, 3, 1))
    # 14 of 71 runs, one of them the last with its 20 images.
    assert raw.folds["test"].total == 13 * 64 + 20


def test_a_file_of_any_name_can_be_given(tmp_path):
    write_npy(tmp_path / "a.npy", 130)
    write_npy(tmp_path / "b.npy", 200)
    assert sum(fold.total for fold in ask(tmp_path / "b.npy").folds.values()) == 200
    with pytest.raises(UserError, match=r"holds 2 \.npy files instead of one"):
        ask(tmp_path)


def test_a_folder_without_an_array_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds 0 \.npy files"):
        ask(tmp_path)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((70, 32, 32, 3), np.float32), "float32 of shape"),
        (np.zeros((70, 3, 32, 32), np.uint8), "(70, 3, 32, 32)"),
        (np.zeros((70, 3072), np.uint8), "(70, 3072)"),
        (np.zeros((), np.uint8), "of shape ()"),
        (np.asfortranarray(np.zeros((70, 32, 32, 3), np.uint8)), "Fortran order"),
        (np.zeros((3, 32, 32, 3), np.uint8), "3 images, too few"),
        (np.zeros((0, 32, 32, 3), np.uint8), "0 images, too few"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, said):
    path = tmp_path / "other.npy"
    np.save(path, array)
    with pytest.raises(UserError) as caught:
        ask(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and said in message and "\n" not in message


@pytest.mark.parametrize("keep", [0, 5, 20, 127, 128, 100_000])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "cut.npy"
    write_npy(path, 100)
    os.truncate(path, keep)
    with pytest.raises(UserError) as caught:
        ask(tmp_path)
    assert str(caught.value).startswith(f"{path} is not a whole .npy file of numbers")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "objects.npy", tmp_path / "trace"
    np.save(path, np.array([Attack(trace)], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"objects\.npy is not a whole"):
        ask(path)
    path.write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(UserError, match=r"objects\.npy is not a whole"):
        ask(path)
    assert not trace.exists()


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.npy is not a whole"):
        ask(tmp_path / "absent.npy")


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.npy"
    write_npy(path, 200)
    raw = ask(path)
    os.truncate(path, 3072)
    with pytest.raises(UserError, match="became shorter"):
        images(raw.folds["test"])
