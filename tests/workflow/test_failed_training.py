"""A training that failed never looks like a success, whatever builds on it."""

import math

import pytest
import torch

from oodflow.tracking import runs
from oodflow.training.checkpoint import load_model, save_model

SMALL = (
    *("--limit", "64", "--steps", "6", "--depth", "1", "--hidden", "4"),
    *("--batch-size", "8", "--report-every", "2"),
)


def versions(workspace):
    return [each.name for each in workspace.store().client.search_model_versions()]


@pytest.mark.parametrize("model", ["glow", "pixelcnn"])
def test_a_training_that_diverged_ends_failed_with_its_counts(blank, model):
    words = ("train", "--dataset", "sketch-general", "--model", model, *SMALL)
    outcome = blank.oodflow(*words, "--lr", "1e6")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "150 validation images" in outcome.err and "5 of 6 updates" in outcome.err
    [run] = runs.find(blank.store(), {"kind": "train"})
    assert run.run_id in outcome.err
    assert run.status == "FAILED" and run.tags["registered"] == "false"
    assert run.metrics["valid/non_finite_images"] == 150
    assert math.isnan(run.metrics["valid/bpd"])
    assert versions(blank) == []


def test_no_auto_takes_it_and_resuming_says_the_same_at_once(trained):
    words = ("finetune", "--dataset", "sketch-shapes", *SMALL, "--lr", "1e6", "--seeds", "3")
    words = (*words, "--hidden", "8")
    store, before = trained.store(), versions(trained)
    first = trained.oodflow(*words)
    again = trained.oodflow(*words, "--resume")
    assert (first.code, again.code) == (1, 1), first.err + again.err
    assert "are allowed" in first.err and again.err == first.err
    [failed] = runs.find(store, {"seed": "3"})
    assert failed.status == "FAILED" and versions(trained) == before
    # What is kept of it is not delivered as a success either.
    assert "failed" in trained.oodflow("runs", "sync", failed.run_id).out
    assert runs.get(store, failed.run_id).status == "FAILED" and versions(trained) == before


def test_a_parent_of_seeds_fails_with_its_seed(blank):
    words = ("train", "--dataset", "sketch-general", *SMALL, "--lr", "1e6", "--seeds", "1,2")
    assert blank.oodflow(*words).code == 1
    assert {run.status for run in runs.find(blank.store(), {})} == {"FAILED"}


@pytest.fixture
def clipped(trained):
    """A registered model whose weights are finite, and none of whose likelihoods is."""
    store = trained.store()
    run = runs.find(store, {"kind": "finetune", "role": "in_distribution"})[0]
    with runs.artifact(store, run.run_id, "checkpoints/model.safetensors") as path:
        model, experiment, _ = load_model(path)
        with torch.no_grad():
            for each in model.parameters():
                each.fill_(3e38)
        save_model(path, model, experiment)
        run_id = runs.start(store, "clipped", run.tags)
        runs.log_artifacts(store, run_id, path.parent, "checkpoints")
    runs.end(store, run_id, "FINISHED")
    return trained, run_id


def test_scores_that_were_all_clipped_have_no_auroc_and_no_detector(clipped):
    workspace, run_id = clipped
    for words in (("evaluate", "--limit", "64", "--run"), ("detector", "build")):
        outcome = workspace.oodflow(*words, run_id)
        assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
        assert "finite likelihood" in outcome.err
    assert not [
        name
        for name in runs.get(workspace.store(), run_id).metrics
        if name.startswith(("auroc/", "aupr/"))
    ]


def test_a_contrast_whose_scores_were_all_clipped_is_refused_too(clipped):
    workspace, run_id = clipped
    subject = runs.find(workspace.store(), {"kind": "finetune", "outlier_loss": "binary"})[-1]
    outcome = workspace.oodflow(
        "evaluate", "--limit", "64", "--run", subject.run_id, "--general", run_id
    )
    assert outcome.code == 2 and run_id in outcome.err and "finite likelihood" in outcome.err
