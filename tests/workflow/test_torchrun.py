"""The command line under torchrun: one run with the numbers of one process, interrupted or not."""

import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from oodflow.data.images import describe, images_of
from oodflow.evaluation.score_table import read_table
from oodflow.evaluation.scoring import score_images
from oodflow.tracking import runs
from oodflow.training.checkpoint import load_model

TINY = ("--depth", "1", "--hidden", "8", "--limit", "64", "--batch-size", "15", "--seeds", "7")
TRAIN = ("train", "--dataset", "sketch-general", *TINY, "--steps", "120", "--report-every", "6")


def under_torchrun(workspace, *words: str) -> subprocess.Popen:
    """Start the command line in two processes."""
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.Popen(
        [sys.executable, *start, "-m", "oodflow", *words],
        cwd=workspace.folder,
        env=workspace.environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(workspace) -> tuple[dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    """Weights of the store's only run, which is registered, and its metrics of each report."""
    store = workspace.store()
    [run] = runs.find(store, {})
    assert run.registered and len(workspace.all_runs()) == 1
    with runs.artifact(store, run.run_id, "checkpoints/model.safetensors") as path:
        weights = load_file(path)
    history = {
        name: [(m.step, m.value) for m in store.client.get_metric_history(run.run_id, name)]
        for name in run.metrics
        if name.startswith(("train/", "valid/"))
    }
    return weights, history


@pytest.mark.long
def test_interrupted_and_resumed_under_torchrun_it_is_the_run_of_one_process(
    blank_workspace, tmp_path
):
    alone = blank_workspace.clone(tmp_path / "alone")
    assert alone.oodflow(*TRAIN).code == 0
    weights, history = result(alone)

    two = blank_workspace.clone(tmp_path / "two")
    process = under_torchrun(two, *TRAIN)
    try:
        deadline = time.monotonic() + 120
        while not any(two.folder.glob(".oodflow/*/training.safetensors")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        # torchrun would kill a process that hangs, after 30 seconds.
        _, err = process.communicate(timeout=25)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "error: interrupted" in err
    [run] = runs.find(two.store(), {})
    assert run.status == "KILLED"

    process = under_torchrun(two, *TRAIN, "--resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("continues at update") == 1
    own_weights, own_history = result(two)
    assert own_weights.keys() == weights.keys()
    own, expected = (
        torch.cat([part[name].double().flatten() for name in weights])
        for part in (own_weights, weights)
    )
    # In float32 Adamax turns the rounding of near-zero gradients into steps of its full size; a
    # mean taken over each process alone would be at 2e-3.
    assert float((own - expected).norm() / expected.norm()) < 5e-4
    assert own_history.keys() == history.keys()
    for name, values in history.items():
        assert [step for step, _ in own_history[name]] == [step for step, _ in values]
        if not name.startswith("valid/auroc"):
            assert dict(own_history[name]) == pytest.approx(dict(values), rel=1e-4), name

    assert_scored_as_by_one_process(two)


def assert_scored_as_by_one_process(workspace) -> None:
    """The run's score table is that of its weights, each image at its place and with its noise."""
    store = workspace.store()
    [run] = runs.find(store, {})
    with runs.artifact(store, run.run_id, "scores/sketch-general-test.parquet") as path:
        table, _ = read_table(path)
    with runs.artifact(store, run.run_id, "checkpoints/model.safetensors") as path:
        model, *_ = load_model(path)
    images = images_of(describe("sketch-general", workspace.data), "test", 64)
    expected = score_images(model, images.pixels, images.labels, device="cpu")
    pd.testing.assert_frame_equal(table, expected, rtol=1e-6)


@pytest.mark.long
def test_an_error_of_the_first_process_ends_the_others(blank):
    process = under_torchrun(blank, *TRAIN, "--batch-size", "1")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "error: 2 processes cannot share a batch of 1; raise batch_size" in err
    assert not blank.all_runs()


def test_other_commands_are_refused_under_torchrun(blank):
    outcome = blank.oodflow("evaluate", WORLD_SIZE="2")
    assert outcome.code == 2
    assert outcome.err == (
        "error: torchrun is for oodflow train and oodflow finetune; leave it out here\n"
    )
