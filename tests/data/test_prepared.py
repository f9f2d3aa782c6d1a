"""The prepared form: streams in, arrays out, whole or not there, one process at a time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from oodflow.data import prepared, sketch
from oodflow.data.images import describe, load, prepare
from oodflow.data.prepared import digest_of, keep
from oodflow.data.source import Fold, Piece, Raw
from oodflow.errors import UserError


def test_the_digest_is_plain_sha256_of_header_and_bytes():
    header = b'{"shape": [1, 1, 2, 2], "labels": true}'
    content = header + bytes([7] * 4) + (5).to_bytes(8, "little")
    parts = iter([bytes([7] * 3), bytes([7])]), iter([(5).to_bytes(8, "little")])
    assert digest_of((1, 1, 2, 2), *parts) == hashlib.sha256(content).hexdigest()[:16]
    assert digest_of((1, 1, 2, 2), iter([bytes([7] * 4)]), None) != digest_of(
        (1, 1, 2, 2), iter([bytes([7] * 4)]), iter([])
    )


def test_the_digest_of_a_prepared_fold_is_that_of_its_content(small, tmp_path):
    loaded = load("sketch-shapes", "train", tmp_path)
    pixels, labels = loaded.pixels.numpy().tobytes(), loaded.labels.numpy().tobytes()
    assert loaded.digest == digest_of((60, 3, 32, 32), iter([pixels]), iter([labels]))


def test_a_dataset_is_made_once_then_opened(small, tmp_path, monkeypatch):
    first = load("sketch-shapes", "train", tmp_path)
    assert {each.name for each in (tmp_path / "prepared" / "sketch-shapes").iterdir()} == {
        "train.npy", "train-labels.npy", "test.npy", "test-labels.npy", "facts.json",
    }  # fmt: skip
    monkeypatch.setattr(sketch, "read", None)
    again = load("sketch-shapes", "train", tmp_path)
    assert again.digest == first.digest
    assert np.array_equal(load("sketch-shapes", "train", tmp_path, 7).pixels, first.pixels[:7])
    ready = describe("sketch-shapes", tmp_path)
    assert (ready.facts.train_size, ready.facts.test_size, ready.facts.classes) == (60, 40, 10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [0, 1])
def test_loaded_pixels_can_be_changed_without_changing_the_file(small, tmp_path, limit):
    first = load("sketch-digits", "test", tmp_path, limit)
    first.pixels.zero_()
    assert load("sketch-digits", "test", tmp_path, limit).pixels.any()


@pytest.mark.parametrize("name", ["train.npy", "train-labels.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:20],
        lambda whole: b"",
        lambda whole: b"not a numpy file at all",
        lambda whole: whole.replace(b"(60,", b"(59,"),
        lambda whole: whole.replace(b"<i8", b"<f8").replace(b"|u1", b"|i1"),
    ],
)
def test_a_damaged_file_is_named_and_can_be_made_anew(small, tmp_path, name, damage):
    load("sketch-shapes", "train", tmp_path)
    file = tmp_path / "prepared" / "sketch-shapes" / name
    whole = file.read_bytes()
    assert damage(whole) != whole
    file.write_bytes(damage(whole))
    with pytest.raises(UserError) as caught:
        load("sketch-shapes", "train", tmp_path)
    made_by = "oodflow datasets prepare sketch-shapes"
    assert str(caught.value) == f"{file} is damaged; make it again: {made_by}"
    prepare("sketch-shapes", tmp_path)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"folds": 3}'])
def test_damaged_facts_are_named(small, tmp_path, text):
    load("sketch-shapes", "train", tmp_path)
    file = tmp_path / "prepared" / "sketch-shapes" / "facts.json"
    file.write_text(text)
    with pytest.raises(UserError, match="facts.json is damaged; make it again"):
        load("sketch-shapes", "train", tmp_path)


def test_an_interrupted_preparation_leaves_what_was_there(small, tmp_path, monkeypatch):
    before = load("sketch-shapes", "train", tmp_path)

    def stop(request):
        def pieces():
            yield Piece(np.zeros((5, 3, 32, 32), np.uint8))
            raise KeyboardInterrupt

        return Raw({"train": Fold(10, pieces)})

    monkeypatch.setattr(sketch, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare("sketch-shapes", tmp_path)
    assert not list((tmp_path / "prepared").glob("*.part"))
    assert load("sketch-shapes", "train", tmp_path).digest == before.digest


@pytest.mark.long
def test_a_killed_preparation_leaves_no_data_and_the_next_one_makes_them(tmp_path):
    code = (
        "import sys; from pathlib import Path; from oodflow.data.images import prepare; "
        "prepare('sketch-scenes', Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    unfinished = tmp_path / "prepared" / ".sketch-scenes.part" / "train.npy"
    try:
        until = time.monotonic() + 60
        while not (unfinished.exists() and unfinished.stat().st_size > 100_000):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert unfinished.exists() and not (tmp_path / "prepared" / "sketch-scenes").exists()
    test = load("sketch-scenes", "test", tmp_path)
    assert np.array_equal(test.pixels, sketch.generate("sketch-scenes", "test", 1000)["pixels"])
    assert not unfinished.exists()


@pytest.mark.long
def test_processes_that_start_together_prepare_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from oodflow.data.images import load; "
        "print(load('sketch-digits', 'test', Path(sys.argv[1])).digest)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {process.communicate()[0] for process in processes}
    assert len(digests) == 1 and all(process.returncode == 0 for process in processes)


def test_a_folder_that_cannot_be_written_is_the_users_error(small, tmp_path):
    (tmp_path / "prepared").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written .*data_dir"):
        load("sketch-shapes", "train", tmp_path)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece(np.zeros((2, 1, 32, 32), np.uint8)), "instead of"),
        (Piece(np.zeros((2, 3, 32, 32), np.float32)), "holds float32"),
        (Piece(np.zeros((2, 3, 32, 32), np.uint8), np.zeros(1, np.int64)), "2 images but 1 labels"),
        (Piece(np.zeros((0, 3, 32, 32), np.uint8)), "has no image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, piece, message):
    facts = prepared.Dataset(
        "odd", "outlier", 3, 0, 0, 2, True, (), (), "odd", "", "folder"
    )  # fmt: skip
    raw = Raw({"test": Fold(2, lambda: iter([piece]))})
    with pytest.raises(UserError, match=message):
        keep(facts, tmp_path, "", lambda: raw, lambda: 0, lambda: True, lambda done, total: None)
    assert not (tmp_path / "prepared" / "odd").exists()


def test_what_an_older_version_prepared_of_a_folder_stays_as_it_is(tmp_path):
    """Its folds were chosen otherwise, and models were trained on them: new files remake it."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(photos / f"{i}.png")
    name = f"folder:{photos}"
    folder = describe(name, tmp_path).folder
    for file in folder.glob("*-files.json"):
        file.unlink()
    facts = json.loads((folder / "facts.json").read_text())
    del facts["notes"]
    # One image more in the test fold than the rule of today puts there.
    test, train = (np.load(folder / f"{fold}.npy") for fold in ("test", "train"))
    for fold, pixels in (("test", np.concatenate([test, train[:1]])), ("train", train[1:])):
        np.save(folder / f"{fold}.npy", pixels)
        digest = digest_of(pixels.shape, iter([pixels.tobytes()]), None)
        facts["folds"][fold] |= {"count": len(pixels), "digest": digest}
    (folder / "facts.json").write_text(json.dumps(facts))
    old = load(name, "test", tmp_path)
    assert len(old.pixels) == len(test) + 1 and old.files is None
    assert old.digest == facts["folds"]["test"]["digest"]
    Image.new("RGB", (32, 32)).save(photos / "new.png")
    now = load(name, "test", tmp_path)
    assert (
        now.files is not None and len(load(name, "train", tmp_path).pixels) + len(now.pixels) == 13
    )
