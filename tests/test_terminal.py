"""Commands in real terminals of 80 and 140 columns: nothing is cut that a person needs whole."""

import fcntl
import itertools
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.table import Table

from oodflow import console
from oodflow.tracking import runs

WIDTHS = (80, 140)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves the cursor or gives a colour."""


def in_terminal(workspace, width: int, *words: str) -> list[str]:
    """Lines that Python writes to a terminal of so many columns; all drawings of a bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    kept = {k: v for k, v in workspace.environment(TERM="xterm").items() if k != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=workspace.folder, env=kept, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        # How Linux says that the other side is closed.
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0, seen.decode()
    return [CONTROL.sub("", line) for line in re.split(r"[\r\n]+", seen.decode())]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_of_runs_has_whole_ids_numbers_and_addresses(width, quickstart):
    workspace, _ = quickstart
    lines = in_terminal(workspace, width, "-m", "oodflow", "runs", "list")
    for run in runs.find(workspace.store(), {}):
        [row] = [line for line in lines if f" {run.run_id[:8]} " in line]
        own = run.metrics.get(f"bpd/{run.tags.get('dataset')}")
        assert own is None or f" {own:.3f} " in row
        means = {
            name.split("/")[2]: value
            for name, value in run.metrics.items()
            if re.fullmatch(r"auroc/mean/\w+(/mean)?", name)
        }
        if means:
            best = max(means, key=means.get)
            assert f" {100 * means[best]:.1f} {best} " in row
        assert (" registered " in row) == run.registered
    assert workspace.uri in lines
    assert all(len(line) <= width for line in lines if line != workspace.uri)
    assert not any("…" in line for line in lines)
    # What is left out where there is no room is said.
    assert any("not shown: " in line and "--json" in line for line in lines) == (width == 80)
    assert any(" started " in line for line in lines) == (width == 140)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_name_of_a_dataset_is_cut_in_their_list(width, blank):
    lines = in_terminal(blank, width, "-m", "oodflow", "datasets", "list")
    [row] = [line for line in lines if " imagenet32 " in line and "│" in line]
    assert " 1,281,167 " in row and " 50,000 " in row
    assert all(len(line) <= width for line in lines if line.startswith(("│", "┃")))
    assert not any("…" in line for line in lines)


BAR = """
import time
from oodflow.console import progress
with progress("glow · sketch-shapes · from general · [binary] against sketch-general", 300) as to:
    for step in range(290, 297):
        to(step, lambda: "epoch 19  7.644 bpd")
        time.sleep(0.21)
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_the_line_of_a_training_keeps_its_numbers(width, blank):
    lines = in_terminal(blank, width, "-c", BAR)
    drawn = [line for line in lines if "bpd" in line]
    assert drawn
    for line in drawn:
        assert len(line) <= width
        assert re.match(r"glow · .*29\d/300 .*left  epoch 19  7\.644 bpd *$", line), line
        # Only where there is room for it the name is whole.
        assert ("[binary] against sketch-general " in line) == (width == 140)
        assert ("…" in line) == (width == 80)


@pytest.mark.long
def test_a_training_in_80_columns_cuts_nothing(trained):
    words = ("--dataset", "sketch-shapes", "--depth", "1", "--hidden", "8", "--limit", "64",
             "--batch-size", "16", "--steps", "100", "--report-every", "50")  # fmt: skip
    lines = in_terminal(trained, 80, "-m", "oodflow", "train", *words)
    [address] = [line for line in lines if line.startswith("http://127.0.0.1:5000/#/")]
    assert re.search(r"/runs/[0-9a-f]{32}(\?workflowType=\w+)?$", address)
    table = [line for line in lines if line.startswith(("│", "┃"))]
    assert table and not any("…" in line for line in table)
    assert all(len(line) <= 80 for line in table)
    drawn = [line for line in lines if re.search(r"\b\d+/100\b", line)]
    # A bar may be drawn several times before there is a number.
    numbered = [*itertools.dropwhile(lambda line: "bpd" not in line, drawn)]
    assert numbered and all(line.rstrip().endswith("bpd") for line in numbered)


def test_lines_end_between_words_unless_there_is_something_to_copy(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    console.say("a run of 0123456789abcdef0123456789abcdef ended")
    assert capsys.readouterr().out == "a run of\n0123456789abcdef0123456789abcdef\nended\n"
    for line in ("see it: http://127.0.0.1:5000/#/experiments/1", "do: oodflow runs list and more"):
        console.say(line)
        assert capsys.readouterr().out == f"{line}\n"


def test_a_table_loses_nothing_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    table = Table("file", "digest")
    table.add_row("a/long/path/of/an/image.png", "0123456789abcdef")
    console.show(table)
    out = CONTROL.sub("", capsys.readouterr().out)
    assert "…" not in out and all(len(line) <= 30 for line in out.splitlines())
    cells = [re.split("[┃│]", line) for line in out.splitlines() if line.startswith("│")]
    joined = ["".join(cell[number].strip() for cell in cells) for number in (1, 2)]
    assert joined == ["a/long/path/of/an/image.png", "0123456789abcdef"]


def test_json_of_runs_and_datasets_is_for_other_programs(quickstart):
    workspace, _ = quickstart
    store = workspace.store()
    listed = json.loads(workspace.oodflow("runs", "list", "--json").out)
    assert {each["run_id"] for each in listed} == {run.run_id for run in runs.find(store, {})}
    [first, *_] = (each for each in listed if each["tags"]["kind"] == "finetune")
    shown = json.loads(workspace.oodflow("runs", "show", first["run_id"], "--json").out)
    assert "checkpoints/model.safetensors" in shown.pop("artifacts")
    # The datasets that it read are looked up for one run alone.
    assert shown.pop("images") and first.pop("images") == {}
    assert shown == first
    assert runs.get(store, first["run_id"]).metrics == first["metrics"]
    assert json.loads(workspace.oodflow("runs", "list", "--dataset", "none", "--json").out) == []
    datasets = json.loads(workspace.oodflow("datasets", "list", "--json").out)
    sizes = {each["name"]: (each["train_size"], each["present"]) for each in datasets}
    assert sizes["sketch-shapes"] == (20_000, True) and sizes["cifar10"] == (50_000, False)


def test_what_json_has_no_number_for_is_null(capsys):
    console.say_json({"a": [float("nan"), 1.5], "b": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": None}
