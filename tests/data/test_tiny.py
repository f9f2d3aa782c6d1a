"""80 Million Tiny Images: a sparse file of the true length with records written byte by byte."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from oodflow.data import tiny
from oodflow.data.source import Request
from oodflow.errors import UserError

RECORDS = 79_302_017
FACTS = SimpleNamespace(name="tiny", channels=3, classes=0)


def value(record, row, column, channel):
    return (7 * record + 3 * row + 5 * column + 11 * channel) % 251 + 1


def write_record(path, record):
    content = bytearray(3072)
    for channel in range(3):
        for column in range(32):
            for row in range(32):
                content[row + 32 * column + 1024 * channel] = value(record, row, column, channel)
    with path.open("r+b") as stream:
        stream.seek(3072 * record)
        stream.write(content)


def expected(record):
    return [
        [[value(record, row, column, channel) for column in range(32)] for row in range(32)]
        for channel in range(3)
    ]


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "tiny_images.bin"
    path.touch()
    os.truncate(path, RECORDS * 3072)
    yield path
    path.unlink()


def images(fold):
    return np.concatenate([piece.pixels for piece in fold.pieces()])


def ask(path, *exclude):
    return tiny.read(Request(FACTS, path, exclude=exclude))


def test_the_subset_holds_the_records_of_seeded_runs_in_the_order_of_the_file(whole):
    runs = tiny.chosen_runs(10)
    assert len(set(runs.tolist())) == 10 and (np.diff(runs) > 0).all()
    assert runs.min() >= 0 and 64 * (runs.max() + 1) <= RECORDS
    first, last = 64 * int(runs[0]), 64 * int(runs[-1]) + 63
    marked = [first, first + 1, first + 63, 64 * int(runs[4]) + 17, last]
    for record in marked:
        write_record(whole, record)
    raw = tiny.read_subset(whole, 10, ())
    assert {name: fold.total for name, fold in raw.folds.items()} == {"train": 512, "test": 128}
    found = {name: images(fold) for name, fold in raw.folds.items()}
    assert found["train"].shape == (512, 3, 32, 32) and found["train"].dtype == np.uint8
    seen = {name: np.flatnonzero(pixels.any((1, 2, 3))) for name, pixels in found.items()}
    # Train and test together, each in the order of the file, hold the marked records alone.
    assert sum(map(len, seen.values())) == len(marked)
    by_content = [found[name][at] for name in found for at in seen[name]]
    for record in marked:
        wanted = np.array(expected(record))
        assert sum(np.array_equal(wanted, each) for each in by_content) == 1
    starts = found["train"] if found["train"][0].any() else found["test"]
    assert np.array_equal(starts[:2], np.array([expected(first), expected(first + 1)]))
    assert not starts[2].any()


def test_neighbours_are_in_one_fold_and_every_call_gives_the_same(whole):
    runs = tiny.chosen_runs(10)
    for run in runs.tolist():
        for record in (64 * run, 64 * run + 63):
            write_record(whole, record)
    raw = tiny.read_subset(whole, 10, ())
    for fold in raw.folds.values():
        runs_of_fold = images(fold).reshape(-1, 64, 3072)
        assert (runs_of_fold[:, 0].any(1) & runs_of_fold[:, 63].any(1)).all()
    again = tiny.read_subset(whole, 10, ())
    assert np.array_equal(images(raw.folds["test"]), images(again.folds["test"]))
    assert np.array_equal(images(raw.folds["test"]), images(raw.folds["test"]))


def test_a_million_images_of_which_the_last_lie_near_the_end_of_the_file(whole):
    runs = tiny.chosen_runs(15_625)
    assert 64 * runs[-1] > 0.999 * RECORDS
    raw = ask(whole.parent)
    assert {name: fold.total for name, fold in raw.folds.items()} == {
        "train": 800_000,
        "test": 200_000,
    }
    # The last run of the test fold is among the last 40 of both folds.
    for run in runs[-40:].tolist():
        write_record(whole, 64 * run + 5)
    count, tail = 0, np.empty((0, 3, 32, 32), np.uint8)
    for piece in raw.folds["test"].pieces():
        count, tail = count + len(piece.pixels), piece.pixels
        assert piece.labels is None and len(piece.pixels) <= 4096
    assert count == 200_000
    candidates = [np.array(expected(64 * run + 5)) for run in runs[-40:].tolist()]
    assert any(np.array_equal(tail[-64 + 5], each) for each in candidates)
    assert not tail[-64 + 6].any()


def test_excluded_records_are_left_out_and_nothing_else_moves(whole, tmp_path):
    runs = tiny.chosen_runs(10)
    first = 64 * int(runs[0])
    for record in range(first, first + 4):
        write_record(whole, record)
    lists = tmp_path / "cifar10.txt", tmp_path / "cifar100.txt"
    # Numbers count from 1; 0 is unknown; a record outside the subset changes nothing.
    lists[0].write_text(f"{first + 1 + 1}\n{RECORDS}\n")
    lists[1].write_text(f"0\n{first + 1 + 1}\n\n {first + 3 + 1} \n0\n")
    before, after = tiny.read_subset(whole, 10, ()), tiny.read_subset(whole, 10, lists)
    name = next(name for name in before.folds if images(before.folds[name])[0].any())
    other = {"train": "test", "test": "train"}[name]
    kept = np.delete(images(before.folds[name]), [1, 3], axis=0)
    assert np.array_equal(images(after.folds[name]), kept)
    assert after.folds[name].total == before.folds[name].total - 2 == len(kept)
    assert np.array_equal(kept[1], np.array(expected(first + 2)))
    assert after.folds[other].total == before.folds[other].total


def test_an_empty_list_and_the_first_and_last_record_can_be_excluded(whole, tmp_path):
    path = tmp_path / "list.txt"
    for content in ("", "1\n", f"{RECORDS}"):
        path.write_text(content)
        assert tiny.read_subset(whole, 10, (path,)).folds["train"].total == 512


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("5\nfive\n", 2),
        ("-1\n", 1),
        (f"0\n\n{RECORDS + 1}\n", 3),
        ("1.5", 1),
        ("9" * 5000, 1),
    ],
)
def test_a_bad_line_names_its_file_and_number(whole, tmp_path, content, line):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        ask(whole, path)
    message = str(caught.value)
    assert message.startswith(f"{path} line {line}: ")
    assert "\n" not in message and len(message) < 300


def test_an_unreadable_list_is_named(whole, tmp_path):
    with pytest.raises(UserError, match="absent.txt cannot be read"):
        ask(whole, tmp_path / "absent.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="binary is not a text file"):
        ask(whole, tmp_path / "binary")


def test_nothing_left_after_the_exclusions_is_an_error(whole, tmp_path):
    path = tmp_path / "list.txt"
    numbers = [64 * run + i + 1 for run in tiny.chosen_runs(2).tolist() for i in range(64)]
    path.write_text("\n".join(map(str, numbers)))
    with pytest.raises(UserError, match="nothing of the train fold"):
        tiny.read_subset(whole, 2, (path,))


@pytest.mark.parametrize("size", [0, 5, RECORDS * 3072 - 1, RECORDS * 3072 + 1])
def test_a_file_of_another_size_is_refused(tmp_path, size):
    path = tmp_path / "tiny_images.bin"
    path.touch()
    os.truncate(path, size)
    with pytest.raises(UserError) as caught:
        ask(tmp_path)
    assert str(caught.value) == (
        f"{path} has {size} bytes instead of 243615796224: incomplete or not tiny_images.bin"
    )


def test_a_folder_without_the_file_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read .*tiny_images\.bin is needed"):
        ask(tmp_path)
    with pytest.raises(UserError, match="is needed"):
        ask(Path(tmp_path / "elsewhere.bin"))


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(whole):
    raw = tiny.read_subset(whole, 10, ())
    os.truncate(whole, 1000)
    with pytest.raises(UserError, match="became shorter"):
        images(raw.folds["train"])
