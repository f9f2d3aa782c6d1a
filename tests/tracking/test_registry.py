"""Which runs a report counts: registered, finished, alike in settings, the newest of a seed."""

import time

import numpy as np
import pytest
from registered import PARAMS, add_general, add_run, aurocs

from oodflow.tracking import runs
from oodflow.tracking.registry import read_registry
from reports.collect import auroc_frame, bpd_frame, comparison_frame


@pytest.fixture
def store(blank):
    return blank.store()


def counted(store) -> set[tuple[str, float]]:
    """(seed, AUROC against digits of the raw score) of all that enters the table."""
    frame = auroc_frame(read_registry(store), "glow", "sketch")
    frame = frame[(frame["ood"] == "sketch-digits") & (frame["score"] == "raw")]
    return set(zip(frame["seed"], frame["auroc"], strict=True))


def later() -> None:
    # Two runs of the same millisecond have no order.
    time.sleep(0.005)


def test_only_registered_finished_runs_that_were_not_deleted_count(store):
    metric = "auroc/sketch-digits/raw"
    add_run(store, {metric: 0.5}, seed="1")
    add_run(store, {metric: 0.1}, seed="2", registered="false")
    for seed, status in enumerate(["FAILED", "KILLED", "RUNNING"], start=3):
        run_id = add_run(store, {metric: 0.1}, seed=str(seed))
        store.client.update_run(run_id, status=status)
    store.client.delete_run(add_run(store, {metric: 0.1}, seed="6"))
    assert counted(store) == {(1, 0.5)}
    assert read_registry(store).notes == ()


def test_of_a_seed_the_newest_counts_and_the_report_says_so(store):
    metric = "auroc/sketch-digits/raw"
    for value in (0.1, 0.2, 0.3):
        add_run(store, {metric: value}, seed="1")
        later()
    add_run(store, {metric: 0.4}, seed="2")
    assert counted(store) == {(1, 0.3), (2, 0.4)}
    assert read_registry(store).notes == ("2 older runs of the same seeds not counted",)


def test_seeds_of_other_settings_are_not_mixed_in(store):
    metric = "auroc/sketch-digits/raw"
    for seed in (1, 2):
        add_run(store, {metric: 0.5}, seed=str(seed))
    later()
    # Newer, but of one seed only, with another depth; whether by a seed of its own or a known one.
    add_run(store, {metric: 0.9}, PARAMS | {"model.depth": "8"}, seed="3")
    assert counted(store) == {(1, 0.5), (2, 0.5)}
    assert read_registry(store).notes == ("1 run of other settings than most not counted",)
    later()
    add_run(store, {metric: 0.8}, PARAMS | {"model.depth": "8"}, seed="1")
    # Two seeds each: now the newer settings win.
    assert counted(store) == {(3, 0.9), (1, 0.8)}
    assert read_registry(store).notes == (
        "2 runs of other settings with as many seeds not counted (model.depth)",
    )


DEEPER = PARAMS | {"model.depth": "8"}
ONE = {"auroc/sketch-digits/raw": 0.5}


@pytest.mark.parametrize("params", [PARAMS, DEEPER], ids=["newer", "older"])
def test_with_one_seed_the_settings_of_the_trainings_beside_it_count(store, params):
    """Both settings have one seed; that of the outlier loss decides, whichever is newer."""
    first, second = (PARAMS, DEEPER) if params == PARAMS else (DEEPER, PARAMS)
    for value, each in ((0.1, first), (0.2, second)):
        add_run(store, {"auroc/sketch-digits/raw": value}, each)
        later()
    # As long as the training is alone the newer one counts.
    assert counted(store) == {(1, 0.2)}
    add_run(store, {"auroc/sketch-digits/raw": 0.3}, PARAMS, outlier_loss="binary")
    registry = read_registry(store)
    assert counted(store) == {(1, 0.1 if params == PARAMS else 0.2), (1, 0.3)}
    assert {run.params["model.depth"] for run in registry.training} == {"4"}
    assert registry.notes == (
        "1 run of other settings with as many seeds not counted (model.depth)",
    )


def test_trainings_with_the_same_choice_of_settings_choose_the_same(store):
    """Alone, the plain model would have the deeper one, the outlier loss the other."""
    for loss, params in (("none", PARAMS), ("binary", DEEPER), ("none", DEEPER),
                         ("binary", PARAMS)):  # fmt: skip
        add_run(store, ONE, params, outlier_loss=loss)
        later()
    assert {run.params["model.depth"] for run in read_registry(store).training} == {"4"}


def test_settings_that_cannot_agree_are_said(store):
    for seed in ("1", "2"):
        add_run(store, ONE, seed=seed)
    add_run(store, ONE, DEEPER, outlier_loss="binary")
    # Another dataset has as many epochs and so another number of updates, which is no difference.
    longer = PARAMS | {"optimisation.steps": "90"}
    add_run(store, {"auroc/sketch-digits/raw": 0.5}, longer, dataset="sketch-letters")
    assert read_registry(store).notes == (
        "runs differ: model.depth of glow on sketch datasets, init general: 4 in 3, 8 in 1",
    )
    add_run(store, ONE, longer, outlier_loss="margin")
    assert read_registry(store).notes == (
        "runs differ: model.depth of glow on sketch datasets, init general: 4 in 4, 8 in 1",
        "runs differ: optimisation.steps of glow on sketch-shapes, init general: 0 in 3, 90 in 1",
    )


@pytest.mark.parametrize("params", [PARAMS, DEEPER], ids=["alike", "of other settings"])
def test_a_newer_run_without_numbers_removes_nothing(store, params):
    add_run(store, ONE)
    later()
    for seed in ("1", "2"):
        # Interrupted in its evaluation, or never evaluated.
        add_run(store, {"bpd/sketch-shapes": 4.0} if seed == "1" else {}, params, seed=seed)
    assert counted(store) == {(1, 0.5)}
    notes = read_registry(store).notes
    count = 1 if params == PARAMS else 2
    assert notes == (
        f"{count} newer run{'s' * (count > 1)} not counted before an evaluation: oodflow evaluate",
    )


def test_a_parameter_outside_the_settings_does_not_part_runs(store):
    for seed in ("1", "2"):
        add_run(store, {"auroc/sketch-digits/raw": 0.5},
                PARAMS | {"experiment.seed": seed, "experiment.init": seed}, seed=seed)  # fmt: skip
    assert len(counted(store)) == 2


@pytest.mark.parametrize("fate", ["deleted", "unregistered"])
def test_a_ratio_to_a_lost_general_model_leaves_the_table(store, fate):
    general, other = add_general(store), add_general(store, seed="2")
    metrics = aurocs(np.random.default_rng(0), "sketch-shapes")
    add_run(store, metrics, general_run=general, general_outlier_run=other)
    frame = auroc_frame(read_registry(store), "glow", "sketch")
    assert {"raw", "diff", "diff_outlier"} <= set(frame["score"])
    if fate == "deleted":
        store.client.delete_run(general)
    else:
        runs.set_tags(store, general, {"registered": "false"})
    frame = auroc_frame(read_registry(store), "glow", "sketch")
    assert set(frame["score"]) == {"raw", "scale1", "scale2", "last_scale", "diff_outlier"}
    left = {f"auroc/{ood}/{score}": auroc for ood, score, auroc in
            frame[["ood", "score", "auroc"]].itertuples(index=False)}  # fmt: skip
    assert left == {name: metrics[name] for name in left} and len(left) == 15


def test_outlier_datasets_of_the_users_own_stay_outside_the_means(store):
    metrics = {"auroc/sketch-digits/raw": 0.5, "auroc/photos-1a2b3c/raw": 0.7}
    add_run(store, metrics)
    registry = read_registry(store)
    assert set(auroc_frame(registry, "glow", "sketch")["ood"]) == {"sketch-digits"}
    further = auroc_frame(registry, "glow", "sketch", further=True)
    assert set(further["ood"]) == {"photos-1a2b3c"}
    add_run(store, {"auroc/svhn/raw": 0.5, "auroc/celeba/raw": 0.7}, dataset="cifar10")
    registry = read_registry(store)
    assert set(auroc_frame(registry, "glow", "natural")["ood"]) == {"svhn"}
    assert set(auroc_frame(registry, "glow", "natural", further=True)["ood"]) == {"celeba"}


def test_an_evaluation_counts_while_its_model_does(store):
    metric = "auroc/sketch-digits/"
    model = add_run(
        store, {metric + "raw": 0.5, metric + "diff": 0.6}, general_run=add_general(store)
    )
    tags = {"kind": "evaluate", "inlier_fold": "test", "general_model": "png"}
    add_run(store, {metric + "diff": 0.7}, evaluated=model, **tags)
    later()
    add_run(store, {metric + "diff": 0.8, metric + "general": 0.1}, evaluated=model, **tags)
    frame = comparison_frame(read_registry(store), "sketch", "test")
    assert dict(zip(frame["general"], frame["auroc"], strict=True)) == {
        "png": 0.8,
        "png alone": 0.1,
        "none": 0.5,
        "glow": 0.6,
    }
    store.client.delete_run(model)
    assert comparison_frame(read_registry(store), "sketch", "test").empty


def test_bits_per_dimension_are_by_family_of_datasets(store):
    add_general(store)
    add_run(store, {"bpd/sketch-shapes": 4.5, "bpd/sketch-digits": 9.0})
    add_run(store, {"bpd/sketch-shapes": 4.7}, init="scratch", kind="train")
    frame = bpd_frame(read_registry(store), "glow", "sketch")
    found = {(row.dataset, row.kind): row.bpd for row in frame.itertuples()}
    assert found == {
        ("sketch-digits", "general"): 3.0,
        ("sketch-shapes", "general"): 5.0,
        ("sketch-letters", "general"): 5.1,
        ("sketch-shapes", "finetuned"): 4.5,
        ("sketch-shapes", "scratch"): 4.7,
    }
    assert bpd_frame(read_registry(store), "glow", "natural").empty
