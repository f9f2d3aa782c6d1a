"""``mlflow run`` on the project: exit codes, run statuses, parameters, and parents of seeds."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from oodflow.tracking import runs

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SEEDS = {"dataset": "sketch-letters", "seeds": "1,2", "steps": "4", "report_every": "2"}
SEEDS |= {"depth": "1", "hidden": "8", "limit": "64", "batch_size": "16"}


@pytest.fixture(scope="module")
def seeds(quickstart, tmp_path_factory):
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("mlflow") / "workspace")
    return workspace.mlflow_run("finetune", **SEEDS)


@pytest.fixture(scope="module")
def store(seeds):
    return seeds.workspace.store()


@pytest.fixture(scope="module")
def children(seeds, store):
    found = runs.find(store, {"dataset": "sketch-letters", "kind": "finetune"})
    whole = (runs.get(store, run.run_id) for run in found)
    return sorted(whole, key=lambda run: run.tags["seed"])


def test_success_is_exit_code_0_and_a_finished_run(seeds, store):
    assert seeds.code == 0, seeds.text
    assert store.client.get_run(seeds.run_id).info.status == "FINISHED"


def test_the_run_that_mlflow_made_is_the_parent_of_a_run_for_each_seed(seeds, store, children):
    parent = runs.get(store, seeds.run_id)
    assert parent.tags["kind"] == "seeds"
    assert parent.tags["dataset"] == "sketch-letters"
    assert [run.tags["seed"] for run in children] == ["1", "2"]
    assert {run.parent for run in children} == {seeds.run_id}
    assert all(run.registered for run in children)


def test_parameters_reach_the_experiment(seeds, store, children):
    assert SEEDS.items() <= store.client.get_run(seeds.run_id).data.params.items()
    for run in children:
        assert run.params["optimisation.steps"] == "4"
        assert run.params["optimisation.report_every"] == "2"
        assert run.params["data.dataset"] == "sketch-letters"
        steps = [m.step for m in store.client.get_metric_history(run.run_id, "train/bpd")]
        assert steps == [2, 4]


def test_the_parent_holds_mean_and_sample_deviation_of_every_metric(seeds, store, children):
    first, second = (runs.get(store, run.run_id).metrics for run in children)
    assert first.keys() == second.keys()
    assert {"bpd/sketch-letters", "auroc/sketch-digits/diff", "auroc/mean/diff"} <= first.keys()
    parent = runs.get(store, seeds.run_id).metrics
    assert parent.keys() == {f"{name}/{end}" for name in first for end in ("mean", "std")}
    for name, value in first.items():
        values = [value, second[name]]
        assert parent[f"{name}/mean"] == pytest.approx(np.mean(values), rel=1e-12, abs=1e-15)
        assert parent[f"{name}/std"] == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-15)


def test_the_parent_has_a_table_of_the_single_seeds(seeds, store, children):
    [path] = runs.list_artifacts(store, seeds.run_id, "seeds")
    with runs.artifact(store, seeds.run_id, path) as local:
        rows = list(csv.DictReader(local.read_text().splitlines()))
    assert [(row["seed"], row["run_id"]) for row in rows] == [
        (run.tags["seed"], run.run_id) for run in children
    ]
    for row, run in zip(rows, children, strict=True):
        numbers = {name: float(row[name]) for name in run.metrics}
        assert numbers == pytest.approx(dict(run.metrics), rel=1e-12)


def test_runs_made_by_mlflow_run_are_among_those_of_the_project(seeds, children):
    """Without --experiment-name mlflow puts its run into its own default experiment."""
    listed = seeds.workspace.oodflow("runs", "list").out
    assert seeds.run_id[:8] in listed
    assert all(run.run_id[:8] in listed for run in children)


def test_a_model_trained_by_mlflow_run_is_found_by_the_next_command(blank, quickstart):
    """``quickstart`` has filled the data folder that both share."""
    tiny = {"depth": "1", "hidden": "8", "limit": "32", "batch_size": "16", "steps": "2"}
    trained = blank.mlflow_run("train", **tiny)
    assert trained.code == 0, trained.text
    words = [f"--{key.replace('_', '-')}={value}" for key, value in tiny.items()]
    outcome = blank.oodflow("finetune", *words)
    assert outcome.code == 0, outcome.err
    [tuned] = runs.find(blank.store(), {"kind": "finetune"})
    assert tuned.tags["init_run"] == trained.run_id


def test_the_report_runs_as_a_project_with_its_defaults(seeds):
    report = seeds.workspace.mlflow_run("report")
    assert report.code == 0, report.text
    run = seeds.workspace.store().client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["oodflow.kind"] == "report"
    assert "sketch-letters" in (seeds.workspace.folder / "report" / "report.md").read_text()


def test_finetuning_before_there_is_a_general_model_fails_with_the_command_that_helps(blank):
    failed = blank.mlflow_run("finetune")
    assert failed.code != 0
    [line] = [line for line in failed.text.splitlines() if line.startswith("error: ")]
    assert "oodflow train --model glow --dataset sketch-general" in line
    assert "Traceback" not in failed.text
    [run] = blank.all_runs()
    assert run.info.run_id == failed.run_id
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("words", [["finetune"], ["finetune", "--init", "own"]])
def test_the_command_that_is_named_makes_what_was_missing(blank, quickstart, words):
    """``quickstart`` has filled the data folder."""
    cheap = ["--limit", "32", "--batch-size", "16", "--steps", "2"]
    wanted = [*words, "--depth", "1", "--hidden", "8", *cheap]
    missing = blank.oodflow(*wanted)
    assert missing.code == 2
    named = re.search(r"oodflow (train .*)", missing.err)
    assert blank.oodflow(*shlex.split(named[1]), *cheap).code == 0
    outcome = blank.oodflow(*wanted)
    assert outcome.code == 0, outcome.err
