"""Shares of the processes: together all images, each once, in their order and with their noise.

This file is also what torchrun starts: each process then scores with the others and saves its part.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from oodflow.data.images import Images
from oodflow.evaluation.scoring import score_images
from oodflow.models.glow import Glow
from oodflow.training.distributed import broadcast, process_group, rank, world
from oodflow.workflow.sharing import Scoring, score_together

SCORING = Scoring(None, "some", "test", 0)
PROCESSES = 4
COUNTS = (75, 4, 3)
"""Numbers of images: shares of different sizes, one image each, and less than that."""


class OneModel:
    """A session that has one model and one dataset."""

    device = torch.device("cpu")

    def __init__(self, count: int) -> None:
        torch.manual_seed(0)
        self.glow = Glow(1, depth=1, hidden=4)
        pixels = torch.randint(256, (count, 1, 32, 32), dtype=torch.uint8)
        self.all = Images("some", "test", pixels, torch.arange(count), "")

    def images(self, name: str, fold: str, limit: int) -> Images:
        assert (name, fold, limit) == ("some", "test", 0)
        return self.all

    def model(self, run: object) -> SimpleNamespace:
        assert run is None
        return SimpleNamespace(model=self.glow)

    def whole(self) -> pd.DataFrame:
        """The table of all images, scored at once."""
        return score_images(self.glow, self.all.pixels, self.all.labels, device="cpu")


def test_one_process_scores_everything():
    session, done = OneModel(75), []
    table = score_together(session, SCORING, done.append)
    pd.testing.assert_frame_equal(table, session.whole(), rtol=1e-6)
    assert done == sorted(done) and done[-1] == 75


@pytest.fixture(scope="module")
def shares(tmp_path_factory) -> Path:
    """What each of the processes had in the end, for each number of images."""
    folder = tmp_path_factory.mktemp("shares")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    words = [sys.executable, *start, __file__, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("count", COUNTS)
def test_the_shares_are_the_whole_on_the_first_process(shares, count):
    table = pd.read_pickle(shares / f"{count}-0.pickle")
    pd.testing.assert_frame_equal(table, OneModel(count).whole(), rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("count", COUNTS)
def test_the_other_processes_have_an_empty_table(shares, count):
    for number in range(1, PROCESSES):
        assert pd.read_pickle(shares / f"{count}-{number}.pickle").empty


@pytest.mark.long
def test_progress_counts_the_images_of_all_processes(shares):
    for count in COUNTS:
        done = json.loads((shares / f"{count}-progress.json").read_text())
        share = count // PROCESSES
        # All are about as far as the first one is, whose share may be a little smaller.
        assert done == sorted(done)
        assert done[-1:] == ([share * PROCESSES] if share else [])


def score_with_the_others(folder: Path) -> None:
    with process_group(torch.device("cpu")):
        assert world() == PROCESSES
        for count in COUNTS:
            session = OneModel(count)
            if rank():
                scoring = broadcast(None)
                assert scoring == SCORING
                table = score_together(session, scoring)
            else:
                done: list[int] = []
                table = score_together(session, SCORING, done.append)
                (folder / f"{count}-progress.json").write_text(json.dumps(done))
            table.to_pickle(folder / f"{count}-{rank()}.pickle")


if __name__ == "__main__":
    score_with_the_others(Path(sys.argv[1]))
