"""Gaps of tables become the commands that fill them."""

import re

import pytest
from registered import OODS, PARAMS, add_general, add_run

from oodflow.entry_points import ENTRY_POINTS
from oodflow.options import options_of
from oodflow.tracking.registry import read_registry
from reports.contents import all_tables
from reports.missing import missing_commands

RAW = {"auroc/sketch-digits/raw": 0.5, "auroc/sketch-letters/raw": 0.5,
       "auroc/sketch-scenes/raw": 0.5, "bpd/sketch-shapes": 4.0}  # fmt: skip


@pytest.fixture
def store(blank):
    return blank.store()


def missing(store, published: bool = False) -> list[str]:
    registry = read_registry(store)
    return missing_commands(all_tables(registry, published), registry)


def with_score(score: str) -> dict[str, float]:
    return RAW | {f"auroc/{ood}/{score}": 0.6 for ood in ("sketch-digits", "sketch-letters",
                                                          "sketch-scenes")}  # fmt: skip


def test_a_full_store_lacks_nothing(store):
    add_run(store, {**RAW, "bpd/sketch-shapes": 4.0})
    assert missing(store) == []


def test_a_gap_of_diff_outlier_names_what_it_builds_on_in_order(store):
    general = add_general(store)
    model = with_score("diff") | {f"auroc/{ood}/diff_outlier": 0.7 for ood in
                                  ("sketch-digits", "sketch-letters", "sketch-scenes")}  # fmt: skip
    for seed in ("4", "7"):
        add_run(store, model, seed=seed, general_run=general, general_outlier_run=general)
    add_run(store, RAW, dataset="sketch-letters", general_run=general, seed="4")
    commands = [line for line in missing(store) if "sketch-digits" not in line]
    assert commands[-1] == "oodflow evaluate"
    [diff] = [line for line in commands if "--outlier-dataset sketch-letters" in line]
    assert diff == (
        "oodflow finetune --dataset sketch-general --model glow --preset quick --outlier-loss "
        "binary --outlier-dataset sketch-letters --seeds 4,7"
    )
    # What is there is not made again.
    assert not [line for line in commands if line.startswith("oodflow train")]


def test_options_are_those_of_the_runs_beside_the_gap(store):
    params = PARAMS | {"model.depth": "1", "model.hidden": "8", "data.limit": "64",
                       "optimisation.batch_size": "16", "optimisation.steps": "6"}  # fmt: skip
    general = add_general(store)
    for loss in ("none", "binary"):
        add_run(store, RAW, params, outlier_loss=loss, general_run=general, seed="5")
    add_run(store, RAW, params, dataset="sketch-letters", general_run=general, seed="5")
    [line] = [line for line in missing(store) if "binary" in line]
    assert line == (
        "oodflow finetune --dataset sketch-letters --model glow --preset quick --depth 1 "
        "--hidden 8 --batch-size 16 --limit 64 --steps 6 --outlier-loss binary --seeds 5"
    )


ALL_SCORES = ("raw", "last_scale", "diff", "diff_outlier")


def of_all_scores(dataset: str = "sketch-shapes", without: str = "") -> dict[str, float]:
    """AUROCs of all scores against the outlier datasets of one, and its BPD."""
    found = {f"auroc/{ood}/{score}": 0.7 for ood in OODS[dataset] for score in ALL_SCORES}
    return {name: value for name, value in found.items() if not without or without not in name} | {
        f"bpd/{dataset}": 4.0
    }


def test_seeds_that_a_training_lacks_are_named_and_no_others(store):
    general = add_general(store, seed="1")
    contrasts = {"general_run": general, "general_outlier_run": general}
    for seed in ("1", "2", "3"):
        add_run(store, of_all_scores(), seed=seed, **contrasts)
        add_general(store, seed=seed, kind="finetune", init="general", outlier_loss="binary",
                    outlier_dataset="sketch-shapes")  # fmt: skip
    add_run(store, of_all_scores(), seed="2", outlier_loss="binary", **contrasts)
    lines = [line for line in missing(store) if "--dataset sketch-shapes" in line]
    assert lines == [
        "oodflow finetune --dataset sketch-shapes --model glow --preset quick --outlier-loss "
        "binary --seeds 1,3"
    ]
    # With them there, nothing of this dataset is left.
    for seed in ("1", "3"):
        add_run(store, of_all_scores(), seed=seed, outlier_loss="binary", **contrasts)
    assert not [line for line in missing(store) if "sketch-shapes" in line]
    assert "oodflow evaluate" not in missing(store)


def test_one_seed_a_training_is_no_gap(store):
    for loss in ("none", "binary"):
        add_run(store, RAW, outlier_loss=loss)
    assert missing(store) == []


@pytest.mark.parametrize("lacking", ["row", "dataset", "every number", "seed"])
def test_numbers_that_only_an_evaluation_lacks(store, lacking):
    """All trainings are there; a row of the table, all its rows, the table, or a seed's number."""
    general = add_general(store)
    contrasts = {"general_run": general, "general_outlier_run": general}
    if lacking != "every number":
        add_run(store, of_all_scores(without="scenes" if lacking == "row" else ""), **contrasts)
    if lacking in ("dataset", "seed", "every number"):
        own = {"dataset": {"dataset": "sketch-letters"}, "seed": {"seed": "2"}}.get(lacking, {})
        add_run(store, {}, **own)
    commands = missing(store)
    assert commands[-1] == "oodflow evaluate"
    # Nothing that is there is trained again.
    dataset = "sketch-letters" if lacking == "dataset" else "sketch-shapes"
    assert not [line for line in commands if f"finetune --dataset {dataset} " in line]
    if lacking != "dataset":
        assert not [line for line in commands if "oodflow train" in line]


def test_a_bpd_alone_that_is_lacking_needs_an_evaluation(store):
    for dataset in ("sketch-shapes", "sketch-letters"):
        numbers = {f"auroc/{ood}/raw": 0.5 for ood in OODS[dataset]}
        add_run(store, numbers | ({"bpd/sketch-letters": 4.0} if "letters" in dataset else {}),
                dataset=dataset)  # fmt: skip
    add_general(store)
    commands = [line for line in missing(store) if "sketch-digits" not in line]
    assert commands == ["oodflow evaluate"]


def test_every_model_of_a_family_needs_its_own_seeds(store):
    for seed in ("1", "2"):
        add_run(store, RAW, seed=seed)
    add_run(store, RAW, model="pixelcnn", seed="1")
    assert missing(store) == []


def test_an_empty_store_lacks_the_papers_runs_in_an_order_that_works(store):
    commands = missing(store, published=True)
    kinds = [line.split()[1] for line in commands]
    assert kinds[0] == "datasets" and kinds[-1] == "evaluate"
    place = {line: number for number, line in enumerate(commands)}
    general = "oodflow train --dataset tiny300k --model glow --preset paper --seeds 1"
    plain = "oodflow finetune --dataset cifar10 --model glow --preset paper --seeds 1,2,3"
    [contrast] = [line for line in commands if "--outlier-dataset cifar10 " in line]
    binary = [line for line in commands if "cifar10 " in line and "binary --s" in line]
    assert len(binary) == 2 and any("--supervised true" in line for line in binary)
    assert place[general] < place[plain] < place[contrast] < min(place[line] for line in binary)
    assert "oodflow datasets prepare cifar10 --download" in commands
    assert (
        "oodflow train --dataset svhn --model wide-resnet --preset paper --seeds 1,2,3" in commands
    )
    # MRI: the paper prints means alone, which no command fills by itself.
    assert not [line for line in commands if "brats" in line]
    for line in commands:
        name = line.split()[1]
        if name in ENTRY_POINTS:
            options = options_of(ENTRY_POINTS[name].options)
            known = {f"--{each.name.replace('_', '-')}" for each in options}
            assert set(re.findall(r"--[a-z-]+", line)) <= known
