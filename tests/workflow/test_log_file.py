"""A training whose output goes to a file, on a machine that may be busy."""

import os

import pytest
import torch

from oodflow import console
from oodflow.workflow import training_run


def test_a_log_file_has_lines_before_the_training_ends(blank, tiny, monkeypatch):
    monkeypatch.setattr(training_run, "SECONDS_BETWEEN_LINES", 0.0)
    outcome = blank.oodflow("train", "--dataset", "sketch-general", *tiny)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("general · ")]
    begun, first, second, *_ = lines
    assert begun.endswith("6 updates")
    assert "update 3 of 6" in first and "update 6 of 6" in second and "bpd" in first


@pytest.mark.parametrize(("threads", "load", "said"), [(2, 9.0, 1), (2, 0.0, 0), (1, 9.0, 0)])
def test_threads_on_a_busy_machine_are_warned_of(monkeypatch, threads, load, said):
    class Here:
        device = torch.device("cpu")

    lines = []
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(console, "say", lines.append)
    training_run._say_where_busy(Here())
    assert len(lines) == said
    assert all("OMP_NUM_THREADS=1" in line for line in lines)
