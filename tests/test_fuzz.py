"""Command lines made at random: whatever is given, an exit code and no traceback."""

import random
import shlex

import numpy as np
import pytest
from PIL import Image

from oodflow.entry_points import ENTRY_POINTS
from oodflow.options import options_of

pytestmark = pytest.mark.long

SEED, LINES = 21, 300

LEFT_OUT = {"main", "reproduce", "bench", "serve"}
"""Commands of which a valid line takes minutes."""

WORDS = (
    *("", " ", "-1", "0", "1", "2", "1e6", "nan", "inf", "1e999", "0x10", "1,2", ",", "1,,2", "²"),
    *("auto", "none", "own", "True", "no", "null", "glow", "png", "sketch-shapes", "cifar10"),
    *("../..", "/", "/proc/self/mem", "/dev/null", "~", "*", "%s", "{}", "a=b", "models:/x/1"),
    *("models:/", "models:/x@y", "folder:", "folder:/nowhere", "folder:.?resize=x", "sqlite:///"),
    *("http://u:p@127.0.0.1:1", "journal:", "é", "\u202e", "x" * 300, "--", "-h", "'", '"', "\n"),
)
TINY = {"steps": 1, "depth": 1, "hidden": 4, "limit": 16, "batch_size": 8, "trials": 1}


@pytest.fixture
def files(blank) -> list[str]:
    """Odd files in the working folder: damaged, empty, of another kind, or none at all."""
    folder = blank.folder / "odd"
    (folder / "empty").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "fine.png")
    whole = (folder / "fine.png").read_bytes()
    contents = {"cut.png": whole[:40], "none.png": b"", "text.png": b"text", "plan.yaml": b"a: [",
                "zip.zip": b"PK\x03\x04", "pickle.pt": b"\x80\x04.", "x.safetensors": b"\xff" * 64,
                "out.csv": b"a,b\n", "with space%20?.png": whole}  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "loop").symlink_to(folder / "loop")
    return [str(each) for each in (*sorted(folder.iterdir()), folder, folder / "absent.png")]


def line_of(draw: random.Random, files: list[str]) -> list[str]:
    """A command with some of its options, their values valid, odd, or of another option."""
    name = draw.choice(sorted(ENTRY_POINTS.keys() - LEFT_OUT))
    options = list(options_of(ENTRY_POINTS[name].options))
    words = name.split()
    for each in options:
        values = [*WORDS, *files, *(str(choice) for choice in each.choices)]
        if each.argument:
            words += draw.choices(values, k=draw.choice((0, 1, 1, 1, 2)))
        elif each.name in TINY and draw.random() < 0.8:
            words += [f"--{each.flag}", str(TINY[each.name])]
        elif draw.random() < 3 / len(options):
            words += [f"--{each.flag}", draw.choice(values)]
    if draw.random() < 0.05:
        words += [draw.choice(WORDS)]
    return words


def test_no_command_line_ends_in_a_traceback(blank, files):
    draw = random.Random(SEED)
    wrong = []
    for _ in range(LINES):
        words = line_of(draw, files)
        outcome = blank.oodflow(*words)
        if "Traceback" in outcome.out + outcome.err or outcome.code not in (0, 1, 2):
            last = outcome.err.strip().splitlines()[-1:]
            wrong.append((outcome.code, shlex.join(words), *last))
    assert not wrong, "\n".join(map(str, wrong))
