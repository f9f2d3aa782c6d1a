"""Runs that differ in their seed alone: nested in a parent with mean and sample deviation.

Nothing is trained: the runs are made with the library.
"""

import statistics

import pandas as pd
import pytest
from registered import add_run

from oodflow.tracking import runs
from oodflow.workflow.seeds import group_seeds

METRICS = {
    "1": {"bpd/sketch-shapes": 3.0, "auroc/sketch-digits/raw": 0.5},
    "2": {"bpd/sketch-shapes": 3.5, "auroc/sketch-digits/raw": 0.75},
    "4": {"bpd/sketch-shapes": 5.0},
}


@pytest.fixture
def store(blank):
    return blank.store()


@pytest.fixture
def seeds(store) -> list[runs.RunInfo]:
    return [added(store, seed) for seed in METRICS]


def added(store, seed: str, **tags) -> runs.RunInfo:
    return runs.get(store, add_run(store, METRICS[seed], seed=seed, **tags))


def children(store, parent: str) -> set[str]:
    return {run.run_id for run in runs.find(store, {}) if run.parent == parent}


def ids(found) -> set[str]:
    return {run.run_id for run in found}


def test_the_parent_has_mean_and_sample_deviation_of_every_metric(store, seeds):
    parent = runs.get(store, group_seeds(store, seeds))
    bits, auroc = [3.0, 3.5, 5.0], [0.5, 0.75]
    # A metric that some seeds do not have is over those that have it.
    assert parent.metrics == {
        "bpd/sketch-shapes/mean": pytest.approx(statistics.mean(bits), abs=1e-12),
        "bpd/sketch-shapes/std": pytest.approx(statistics.stdev(bits), abs=1e-12),
        "auroc/sketch-digits/raw/mean": pytest.approx(statistics.mean(auroc), abs=1e-12),
        "auroc/sketch-digits/raw/std": pytest.approx(statistics.stdev(auroc), abs=1e-12),
    }


def test_the_parent_says_what_it_is_of_and_is_no_run_that_reports_count(store, seeds):
    parent = runs.get(store, group_seeds(store, seeds))
    assert (parent.status, parent.registered, parent.parent) == ("FINISHED", False, "")
    assert parent.name.endswith("seeds 1, 2, 4")
    expected = {
        "kind": "seeds",
        "registered": "false",
        "seeds": "1,2,4",
        "model": "glow",
        "dataset": "sketch-shapes",
        "role": "in_distribution",
        "setting": "unsupervised",
        "outlier_loss": "none",
        "outlier_dataset": "",
        "init": "general",
        "table": "metrics.json",
    }
    # No seed and no hash: it is not one of the trainings.
    assert parent.tags == expected


def test_the_seeds_are_its_children_and_otherwise_as_they_were(store, seeds):
    parent = group_seeds(store, seeds)
    assert children(store, parent) == ids(seeds)
    for before in seeds:
        after = runs.get(store, before.run_id)
        assert (after.tags, after.metrics, after.status, after.registered) == (
            before.tags,
            before.metrics,
            before.status,
            True,
        )


def test_its_table_has_a_row_a_seed(store, seeds):
    parent = group_seeds(store, seeds)
    with runs.artifact(store, parent, "seeds/seeds.csv") as file:
        table = pd.read_csv(file)
    assert table["seed"].tolist() == [1, 2, 4]
    assert table["run_id"].tolist() == [run.run_id for run in seeds]
    assert table["bpd/sketch-shapes"].tolist() == [3.0, 3.5, 5.0]
    assert table["auroc/sketch-digits/raw"].isna().tolist() == [False, False, True]


def test_a_second_call_keeps_the_parent_and_takes_up_new_metrics(store, seeds):
    parent = group_seeds(store, seeds)
    assert group_seeds(store, seeds) == parent
    assert ids(runs.find(store, {"kind": "seeds"})) == {parent}
    # What an evaluation adds, to runs as they were known before it.
    for run, value in zip(seeds, (0.25, 0.5, 0.75), strict=True):
        runs.log_metrics(store, run.run_id, {"auroc/sketch-digits/diff": value})
    assert group_seeds(store, seeds) == parent
    found = runs.get(store, parent).metrics
    assert found["auroc/sketch-digits/diff/mean"] == pytest.approx(0.5, abs=1e-12)
    assert found["auroc/sketch-digits/diff/std"] == pytest.approx(0.25, abs=1e-12)
    assert found["bpd/sketch-shapes/mean"] == pytest.approx(11.5 / 3, abs=1e-12)


def test_runs_of_different_parents_get_one_of_their_own(store, seeds):
    first, second, third = seeds
    one = group_seeds(store, [first, second])
    another = runs.start(store, "another", {"kind": "seeds", "registered": "false"})
    runs.nest(store, third.run_id, another)
    parent = group_seeds(store, seeds)
    assert parent not in {one, another}
    assert children(store, parent) == ids(seeds)
    assert runs.get(store, parent).tags["seeds"] == "1,2,4"


def test_a_seed_that_comes_later_is_grouped_with_the_others(store, seeds):
    few = group_seeds(store, seeds[:2])
    parent = group_seeds(store, seeds)
    assert parent != few and children(store, parent) == ids(seeds)
    assert group_seeds(store, seeds) == parent


def test_a_parent_that_was_deleted_is_made_anew(store, seeds):
    deleted = group_seeds(store, seeds)
    store.client.delete_run(deleted)
    parent = group_seeds(store, seeds)
    assert parent != deleted and children(store, parent) == ids(seeds)
    assert ids(runs.find(store, {"kind": "seeds"})) == {parent}


def test_a_parent_that_is_no_group_of_seeds_is_not_filled(store, seeds):
    """``mlflow run`` nests what a command makes in its own run."""
    other = runs.start(store, "something", {"kind": "analyse", "registered": "false"})
    for run in seeds:
        runs.nest(store, run.run_id, other)
    parent = group_seeds(store, seeds)
    assert parent != other and runs.get(store, other).metrics == {}


def test_other_settings_have_parents_of_their_own(store, seeds):
    binary = [added(store, seed, outlier_loss="binary") for seed in METRICS]
    plain, other = group_seeds(store, seeds), group_seeds(store, binary)
    assert (children(store, plain), children(store, other)) == (ids(seeds), ids(binary))
    assert runs.get(store, other).tags["outlier_loss"] == "binary"


def test_no_lease_is_left(store, seeds):
    group_seeds(store, seeds)
    assert runs.find(store, {"kind": "claim"}) == []
