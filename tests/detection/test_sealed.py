"""Folders from anywhere: what was changed, is unknown or leads out is refused, and nothing runs."""

import hashlib
import json
import os
import pickle
import shutil

import pytest

from oodflow.detection.detector import Detector
from oodflow.detection.sealed import folder_digest
from oodflow.errors import UserError


@pytest.fixture
def folder(detector, tmp_path):
    path = tmp_path / "detector"
    detector.save(path)
    return path


class Bomb:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        Detector.from_folder(folder)
    assert "\n" not in str(caught.value)


def reseal(folder, **facts):
    """What an attacker can do: facts that fit the files there are now."""
    known = json.loads((folder / "detector.json").read_text())
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name in known["files"]
    }
    (folder / "detector.json").write_text(json.dumps({**known, "files": files, **facts}))


@pytest.mark.parametrize(
    "name", ["in_distribution.safetensors", "general.safetensors", "calibration.parquet"]
)
def test_one_changed_byte_is_noticed(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, f"{name} was changed")


def test_files_that_are_absent_are_noticed(folder):
    (folder / "general.safetensors").unlink()
    refused(folder, "general.safetensors is not both there")
    (folder / "detector.json").unlink()
    refused(folder, "has no detector.json")
    refused(folder / "nowhere", "there is no such folder")


@pytest.mark.parametrize("name", ["model.pkl", "python_model.pkl", ".hidden", "weights.pt", "sub"])
def test_files_that_no_detector_has_are_refused_and_not_run(folder, tmp_path, name):
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(folder, f"'{name}' is not a file of a detector")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["general.safetensors", "calibration.parquet"])
def test_a_pickle_under_the_name_of_a_file_is_not_run(folder, tmp_path, name):
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    reseal(folder)
    refused(folder, name)
    assert not (tmp_path / "ran").exists()


def test_links_are_refused_even_to_the_right_content(folder, tmp_path):
    file = folder / "general.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused(folder, "is a link or a folder")
    file.unlink()
    file.mkdir()
    refused(folder, "is a link or a folder")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "detector.json"])
def test_names_that_lead_out_are_refused(folder, name):
    facts = json.loads((folder / "detector.json").read_text())
    facts["files"][name] = "0" * 64
    (folder / "detector.json").write_text(json.dumps(facts))
    refused(folder, "is not a file of a detector")


@pytest.mark.parametrize(
    "facts",
    [
        {"models": {"in_distribution": "0", "../x": "0"}},
        {"models": {}},
        {"models": 3},
        {"preprocessing": {"channels": 3, "surprise": 1}},
        {"preprocessing": {"channels": 3, "resize": "many"}},
        {"preprocessing": [3]},
        {"calibration": None},
        {"score": "raw"},
        {"score": ["diff"]},
        {"format": 99},
        {"files": []},
    ],
)
def test_facts_that_make_no_sense_are_refused_in_one_line(folder, facts):
    reseal(folder, **facts)
    refused(folder, "detector|score")


def test_weights_in_the_wrong_role_are_noticed(folder):
    a, b = folder / "in_distribution.safetensors", folder / "general.safetensors"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    reseal(folder)
    refused(folder, "holds other weights")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "null", '{"a": 1}', " " * (2 << 20)])
def test_what_is_no_json_is_refused(folder, text):
    (folder / "detector.json").write_text(text)
    refused(folder, "detector.json")


def test_the_digest_stands_for_the_whole_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_digest(folder) == folder_digest(tmp_path / "copy")
    (folder / "calibration.parquet").write_bytes(b"other")
    reseal(folder)
    assert folder_digest(folder) != folder_digest(tmp_path / "copy")
