"""Shares of the processes: together all images, each once, in their order and with their noise."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from oodflow.data.images import Images
from oodflow.evaluation.scoring import score_images
from oodflow.models.glow import Glow
from oodflow.workflow import sharing
from oodflow.workflow.sharing import Scoring, score_together

SCORING = Scoring(None, "some", "test", 0)


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
        return SimpleNamespace(model=self.glow)


@pytest.mark.parametrize(("count", "processes"), [(75, 1), (75, 2), (75, 7), (3, 5)])
def test_the_shares_are_the_whole(monkeypatch, count: int, processes: int) -> None:
    session, said, shares = OneModel(count), [], []
    monkeypatch.setattr(sharing, "world", lambda: processes)
    monkeypatch.setattr(sharing, "broadcast", said.append)
    # The first process comes last: then it has what the others have made.
    monkeypatch.setattr(sharing, "gather", lambda own: [own, *shares] if own is not None else [])
    for number in reversed(range(processes)):
        monkeypatch.setattr(sharing, "rank", lambda number=number: number)
        if number:
            with monkeypatch.context() as patch:
                patch.setattr(sharing, "gather", lambda own: shares.insert(0, own) or [])
                score_together(session, SCORING)
        else:
            done: list[int] = []
            table = score_together(session, SCORING, done.append)
    assert said == [SCORING]
    if count > processes:
        assert done[-1] <= count and processes * -(-count // processes) >= done[-1]
    images = session.all
    expected = score_images(session.glow, images.pixels, images.labels, device="cpu")
    pd.testing.assert_frame_equal(table, expected, rtol=1e-6)
