"""A store, a study and an interrupted training that an earlier version made are still used.

They were recorded at commit 8c94f1d with tiny models on three folders of images. A folder's name
is its path, so they are unpacked where they were made.
"""

import shutil
import tarfile
from pathlib import Path

import optuna
import pytest

from oodflow.experiment import spec_hash
from oodflow.tracking import runs
from oodflow.training.checkpoint import load_model

ARCHIVE = Path(__file__).parents[1] / "recorded" / "before-typed-options.tar.gz"
PLACE = Path("/tmp/oodflow-recorded")

GENERAL = "41dbf82112394b068acaf86b70d30a5c"
SEEDS = ("e6c5f9e49de04b429f4d9b4705edd133", "35d7e2baed1c44069187f0aeda6ee9bc")
STUDY = "93bb3211f28c45b0a838c9e0b0b77ed9"
INTERRUPTED = "02cbaa9a5d17420d92252e9055a56726"

SMALL = ["--depth", "1", "--hidden", "4", "--batch-size", "8", "--report-every", "3"]
FINETUNE = ["finetune", "--dataset", "folder:inliers", "--init", GENERAL, "--general", GENERAL]
OUTLIERS = ["--outlier-dataset", "folder:general?role=general"]


@pytest.fixture(scope="module")
def recorded(blank_workspace, tmp_path_factory):
    """The recorded working folder, whose store is its ``mlflow.db``.

    It is unpacked once: mlflow would hold on to the files of a store that is replaced.
    """
    shutil.rmtree(PLACE, ignore_errors=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(PLACE, filter="data")
    yield type(blank_workspace)(PLACE, tmp_path_factory.mktemp("data"))
    shutil.rmtree(PLACE)


def test_its_runs_are_listed_and_their_hashes_are_those_of_today(recorded):
    outcome = recorded.oodflow("runs", "list")
    assert outcome.code == 0, outcome.err
    assert "11 runs" in outcome.out
    store = recorded.store()
    found = [run for run in runs.find(store, {"registered": "true"}) if "weights" in run.tags]
    assert {run.run_id for run in found} == {GENERAL, *SEEDS}
    for run in found:
        with runs.artifact(store, run.run_id, "checkpoints/model.safetensors") as file:
            _, experiment, digest = load_model(file)
        assert (spec_hash(experiment), digest) == (run.tags["spec"], run.tags["weights"])
        assert runs.resolve(store, runs.model_uri(store, run.run_id)).run_id == run.run_id


def test_a_finished_training_of_it_is_not_made_again(recorded):
    words = [*FINETUNE, "--outlier-loss", "binary", *OUTLIERS, *SMALL, "--steps", "6"]
    outcome = recorded.oodflow(*words, "--seeds", "1,2", "--resume")
    assert outcome.code == 0, outcome.err
    for run_id in SEEDS:
        assert f"already there, run {run_id}" in outcome.out


def test_its_interrupted_training_goes_on_in_the_same_run(recorded):
    outcome = recorded.oodflow(*FINETUNE, *SMALL, "--steps", "300", "--seeds", "9", "--resume")
    assert outcome.code == 0, outcome.err
    assert "continues at update " in outcome.out
    run = runs.get(recorded.store(), INTERRUPTED)
    assert run.registered
    steps = runs.history(recorded.store(), INTERRUPTED, "train/bpd")
    assert list(steps) == list(range(3, 301, 3))


def test_its_study_goes_on(recorded):
    words = ["tune", "--dataset", "folder:inliers", "--init", GENERAL, "--general", GENERAL]
    words += [*OUTLIERS, *SMALL, "--steps", "6", "--images", "8", "--study", "recorded"]
    outcome = recorded.oodflow(*words, "--trials", "3")
    assert outcome.code == 0, outcome.err
    study = optuna.load_study(study_name="recorded", storage=f"sqlite:///{PLACE}/optuna.db")
    assert len(study.trials) == 3
    assert study.user_attrs["mlflow_run"] == STUDY
    trials = runs.find(recorded.store(), {"kind": "trial"})
    assert {run.parent for run in trials} == {STUDY}


def test_it_is_reported(recorded):
    outcome = recorded.oodflow("report")
    assert outcome.code == 0, outcome.err
    assert "4 registered training runs" in outcome.out


def test_its_versions_are_still_scored_and_made_a_detector_of(recorded):
    """They have no model that mlflow could load, but all that oodflow needs."""
    store = recorded.store()
    uri = runs.model_uri(store, SEEDS[0])
    assert "checkpoints/MLmodel" not in runs.list_artifacts(store, SEEDS[0], "checkpoints")
    outcome = recorded.oodflow("score", uri, "inliers", "--out", "scores.csv")
    assert outcome.code == 0, outcome.err
    assert (PLACE / "scores.csv").read_text().count("\n") > 8
    refused = recorded.oodflow("detect", uri, "inliers")
    assert refused.code == 2 and f"{uri} holds no detector" in refused.err
    outcome = recorded.oodflow("detector", "build", uri)
    assert outcome.code == 0, outcome.err
    made = runs.find(store, {"kind": "detector"})[0]
    outcome = recorded.oodflow("detect", made.run_id, "inliers", "--alpha", "0.5")
    assert outcome.code == 0, outcome.err
