"""Threads of the tasks of a plan: they follow from the plan, the workers and the cores alone."""

import pytest

from oodflow.plans.local_workers import threads_of
from oodflow.plans.plan import parse_plan, read_plan
from oodflow.plans.tasks import expand

PLAN = """
title: a tree
seeds: [1, 2, 3]
steps:
  - {name: general, entry_point: train, seeds: 1}
  - {name: tuned, entry_point: finetune, from: {init: general}}
  - {name: own, entry_point: train, with: {dataset: sketch-shapes}, seeds: 2}
  - {name: scores, entry_point: evaluate, from: {run: tuned}, seeds: 1}
  - {name: report, entry_point: report}
"""
DEPTHS = {"general": 0, "own": 0, "tuned": 1, "scores": 2, "report": 3}
SIDE_BY_SIDE = {0: 1 + 2, 1: 3, 2: 1, 3: 1}


def tree():
    return expand(parse_plan("tree.yaml", PLAN))


@pytest.mark.parametrize(
    ("workers", "cores", "threads"),
    [
        # Threads of tasks of each depth: 3, 3, 1 and 1 of them.
        (2, 2, (1, 1, 2, 2)),
        (3, 8, (2, 2, 8, 8)),
        (2, 8, (4, 4, 8, 8)),
        (8, 8, (2, 2, 8, 8)),
        (8, 24, (8, 8, 24, 24)),
        # More workers than cores have a thread each all the same.
        (3, 1, (1, 1, 1, 1)),
        (4, 2, (1, 1, 2, 2)),
    ],
)
def test_the_cores_are_shared_among_the_tasks_of_a_depth(workers, cores, threads):
    found = threads_of(tree(), workers, cores)
    expected = {task.name: threads[DEPTHS[task.step]] for task in tree()}
    assert found == expected and len(found) == sum(SIDE_BY_SIDE.values())


def test_a_task_is_deeper_than_the_deepest_that_it_builds_on():
    """Each step builds on the one before it, and the last but one on the first as well."""
    plan = PLAN.replace("seeds: [1, 2, 3]", "seeds: [1]").replace(
        "{run: tuned}", "{run: tuned, general: general}"
    )
    found = threads_of(expand(parse_plan("tree.yaml", plan)), 4, 4)
    # General and own are side by side, all others alone.
    assert [found[f"{name} · seed 1"] for name in ("general", "own", "tuned")] == [2, 2, 4]
    assert found["scores · tuned · seed 1"] == found["report"] == 4


@pytest.mark.parametrize("name", ["sketch", "paper", "quickstart"])
def test_no_level_of_a_built_in_plan_has_more_threads_than_cores(name):
    tasks = expand(read_plan(name))
    for workers, cores in ((2, 2), (4, 16), (8, 64)):
        found = threads_of(tasks, workers, cores)
        assert set(found) == {task.name for task in tasks}
        assert all(1 <= number <= cores for number in found.values())
        # The same plan has the same threads at any call.
        assert found == threads_of(tuple(tasks), workers, cores)


def test_a_tasks_threads_do_not_depend_on_what_is_done_already():
    """A call that does a part of the plan is given all of its tasks, so this is of the names."""
    tasks = tree()
    whole = threads_of(tasks, 2, 8)
    by_need = sorted(tasks, key=lambda task: DEPTHS[task.step])
    assert threads_of(by_need, 2, 8) == whole
