"""A training whose output goes to a file, on a machine that may be busy."""

import os
import subprocess
import sys
import time

import pytest
import torch

from oodflow import console
from oodflow.models import device
from oodflow.workflow import training_run


def test_a_log_file_has_lines_before_the_training_ends(blank, tiny, monkeypatch):
    monkeypatch.setattr(training_run, "SECONDS_BETWEEN_LINES", 0.0)
    outcome = blank.oodflow("train", "--dataset", "sketch-general", *tiny)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("general · ")]
    begun, first, second, *_ = lines
    assert begun.endswith("6 updates")
    assert "update 3 of 6" in first and "update 6 of 6" in second and "bpd" in first


@pytest.mark.parametrize(("threads", "others", "said"), [(2, 1, 1), (2, 0, 0), (1, 1, 0)])
def test_threads_on_a_busy_machine_are_warned_of(monkeypatch, threads, others, said):
    class Here:
        device = torch.device("cpu")

    lines = []
    monkeypatch.setattr(device, "_computing_now", lambda: others + 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(console, "say", lines.append)
    training_run._say_where_busy(Here())
    assert len(lines) == said
    assert all("OMP_NUM_THREADS=1" in line for line in lines)


def test_what_computes_now_is_counted():
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        time.sleep(0.5)
        assert device._computing_now() >= 2
        words = device.busy(torch.device("cpu"), os.cpu_count())
        assert words.startswith("this machine is busy (")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert device.busy(torch.device("cuda"), 1000) == ""
