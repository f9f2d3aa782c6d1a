"""Gaps of tables become the commands that fill them."""

import re

import pytest
from registered import PARAMS, add_general, add_run

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
