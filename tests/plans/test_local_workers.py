"""``oodflow reproduce --workers 2``: real processes side by side, some of them killed.

All have one core, so that each task has one thread, whatever machine this is: with another number
of threads sums are rounded otherwise.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from conftest import waited_for
from plans.processes import marked, trainers, two_under_way

from oodflow.tracking import runs

pytestmark = pytest.mark.long

PLAN = """
title: tiny
seeds: [1, 2]
with: {depth: 1, hidden: 8, limit: 64, batch_size: 16, steps: 6, report_every: 3}
steps:
  - name: general
    entry_point: train
    with: {dataset: sketch-general}
    seeds: 1
  - name: finetuned
    entry_point: finetune
    with: {steps: 60, report_every: 6}
    each: {dataset: [sketch-shapes, sketch-letters]}
    from: {init: general}
  - name: png
    entry_point: evaluate
    with: {general: png, ood: sketch-digits}
    from: {run: finetuned}
    seeds: 1
  - name: report
    entry_point: report
"""
TASKS = 1 + 4 + 2 + 1
TOGETHER = ("--workers", "2")

ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from oodflow.cli import main
main()
"""


@dataclass(frozen=True)
class Call:
    """``oodflow reproduce`` in processes of its own, which are a process group as in a terminal."""

    workspace: object
    process: subprocess.Popen

    @property
    def mark(self) -> str:
        return str(self.workspace.folder)

    def when(self, happened) -> None:
        """Wait until something happens; the call must not have ended before."""
        assert waited_for(lambda: happened() or self.process.poll() is not None)
        assert happened(), self.process.communicate()

    def two_at_work(self) -> list[int]:
        """The processes of two trainings, as soon as each has a checkpoint."""
        self.when(lambda: two_under_way(self.workspace))
        found = trainers(self.workspace, marked(self.mark))
        assert len(found) == 2
        return found

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: the whole group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> tuple[int, str, str]:
        """Exit code and what it has printed."""
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def call():
    """``call(workspace, *words)`` starts the command; what is left in the end is killed."""
    started = []

    def start(workspace, *words: str) -> Call:
        (workspace.folder / "plan.yaml").write_text(PLAN)
        made = subprocess.Popen(
            [sys.executable, "-c", ON_ONE_CORE, "reproduce", "--plan", "plan.yaml", *words],
            cwd=workspace.folder,
            env=workspace.environment(OMP_NUM_THREADS="1", OODFLOW_TEST_MARK=str(workspace.folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(Call(workspace, made))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        for process in marked(each.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def rows(store) -> dict[str, dict[str, str]]:
    """Task → row of the newest call's ``tasks.csv``."""
    record = runs.find(store, {"kind": "reproduce"})[0]
    with runs.artifact(store, record.run_id, "tasks.csv") as file:
        return {row["task"]: row for row in csv.DictReader(file.read_text().splitlines())}


def trainings(store) -> list[runs.RunInfo]:
    return [run for run in runs.find(store, {}) if run.tags["kind"] in ("train", "finetune")]


def results(store) -> dict[str, tuple]:
    """Experiment → weights, metrics and their history; each is there once and registered."""
    found = {}
    for run in trainings(store):
        if run.tags["model"] == "png":
            continue
        assert run.registered and run.tags["spec"] not in found
        curves = {
            name: runs.history(store, run.run_id, name)
            for name in run.metrics
            if name.startswith(("train/", "valid/"))
        }
        found[run.tags["spec"]] = run.tags["weights"], run.metrics, curves
    return found


def comparisons(store) -> dict[tuple[str, str], dict[str, float]]:
    """Dataset and seed → metrics of the comparison with PNG."""
    made = runs.find(store, {"kind": "evaluate"})
    found = {(run.tags["dataset"], run.tags["seed"]): run.metrics for run in made}
    assert len(found) == len(made)
    return found


@pytest.fixture(scope="module")
def alone(blank_workspace, call, tmp_path_factory):
    """The plan done by one process from beginning to end."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("alone") / "workspace")
    code, _, err = call(workspace, "--workers", "1").ended()
    assert (code, err) == (0, "")
    return workspace


@pytest.fixture(scope="module")
def together(blank_workspace, call, tmp_path_factory):
    """The plan done by two, of which one is killed in the middle: workspace, call, what it said."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("together") / "workspace")
    under_way = call(workspace, *TOGETHER)
    killed, _ = under_way.two_at_work()
    os.kill(killed, signal.SIGKILL)
    return workspace, under_way, under_way.ended()


def test_a_plan_completes_though_a_worker_is_killed_in_the_middle(together):
    workspace, _, (code, out, err) = together
    assert (code, err) == (0, "")
    assert out.count("its worker died (exit code -9); retry 1 of 2") == 1
    assert out.count("continues at update") == 1
    states = [row["state"] for row in rows(workspace.store()).values()]
    assert states == ["there"] * TASKS
    assert "<table" in (workspace.folder / "report" / "report.html").read_text()


def test_nothing_is_made_twice(together):
    store = together[0].store()
    kinds = Counter(run.tags["kind"] for run in runs.find(store, {}))
    # The codec is a general model too; each dataset has a parent of its two seeds.
    assert kinds == {
        "reproduce": 1, "train": 2, "finetune": 4, "evaluate": 2, "report": 1, "seeds": 2,
    }  # fmt: skip
    for run in runs.find(store, {"kind": "finetune"}):
        points = store.client.get_metric_history(run.run_id, "train/bpd")
        assert [point.step for point in points] == list(range(6, 61, 6))


def test_no_number_depends_on_the_workers_or_on_the_killed_one(together, alone):
    one, two = alone.store(), together[0].store()
    assert len(results(one)) == 5 and results(two) == results(one)
    assert len(comparisons(one)) == 2 and comparisons(two) == comparisons(one)


def test_seeds_are_nested_in_a_parent_with_the_same_numbers_for_any_workers(together, alone):
    found = []
    for store in (together[0].store(), alone.store()):
        parents = runs.find(store, {"kind": "seeds"})
        found.append({run.tags["dataset"]: run.metrics for run in parents})
        for parent in parents:
            of_it = [run for run in trainings(store) if run.parent == parent.run_id]
            assert {(run.tags["dataset"], run.tags["seed"]) for run in of_it} == {
                (parent.tags["dataset"], seed) for seed in ("1", "2")
            }
    assert found[0] == found[1] and set(found[0]) == {"sketch-shapes", "sketch-letters"}


def test_tasks_are_done_at_the_same_time_by_two_and_in_turn_by_one(together, alone):
    def overlapping(store) -> int:
        made = sorted(runs.find(store, {"kind": "finetune"}), key=lambda run: run.started)
        return sum(b.started < a.started + a.seconds for a, b in zip(made, made[1:], strict=False))

    assert overlapping(together[0].store()) >= 2
    assert overlapping(alone.store()) == 0


def test_workers_end_with_the_command(together):
    workspace, under_way, _ = together
    assert waited_for(lambda: not marked(under_way.mark), 20)
    assert not list((workspace.folder / ".oodflow").glob("*"))


def test_ctrl_c_stops_the_workers_and_the_same_command_goes_on(
    blank_workspace, call, alone, tmp_path
):
    workspace = blank_workspace.clone(tmp_path / "workspace")
    under_way = call(workspace, *TOGETHER)
    under_way.two_at_work()
    under_way.interrupt()
    code, out, err = under_way.ended()
    assert code == 130
    [line] = err.strip().splitlines()
    assert line == "error: interrupted; the same command continues where it was"
    assert "stopping the workers" in out
    assert waited_for(lambda: not marked(under_way.mark), 20)
    store = workspace.store()
    killed = {run.run_id: run.tags["kind"] for run in runs.find(store, {}, status="KILLED")}
    assert Counter(killed.values()) == {"finetune": 2, "reproduce": 1}
    assert runs.find(store, {"kind": "claim"}) == []
    code, out, err = call(workspace, *TOGETHER).ended()
    assert (code, err) == (0, "")
    assert "1 of 8 tasks are done already" in out
    # They go on from the update they were at, in the same runs, to the same numbers.
    assert out.count("continues at update") == 2
    made = {run.run_id for run in trainings(store)}
    assert {run_id for run_id, kind in killed.items() if kind == "finetune"} <= made
    assert results(store) == results(alone.store())


def test_workers_end_where_the_command_is_killed_and_the_same_command_goes_on(
    blank_workspace, call, alone, tmp_path
):
    workspace = blank_workspace.clone(tmp_path / "workspace")
    under_way = call(workspace, *TOGETHER)
    under_way.two_at_work()
    under_way.process.kill()
    under_way.process.communicate()
    assert waited_for(lambda: not marked(under_way.mark), 60)
    store = workspace.store()
    # The workers are interrupted and tell it; who dies of SIGKILL tells nobody.
    status = {run.tags["kind"]: run.status for run in runs.find(store, {})}
    assert (status["finetune"], status["reproduce"]) == ("KILLED", "RUNNING")
    code, out, err = call(workspace, *TOGETHER).ended()
    assert (code, err) == (0, "") and out.count("continues at update") == 2
    assert results(store) == results(alone.store())


@pytest.fixture(scope="module")
def terminated(blank_workspace, call, tmp_path_factory):
    """A worker that dies each time it is begun: what the call said."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("terminated") / "workspace")
    under_way = call(workspace, *TOGETHER, "--only", "general", "--steps", "2000")
    seen: set[int] = set()
    for _ in range(3):
        under_way.when(lambda: set(trainers(workspace, marked(under_way.mark))) - seen)
        [victim] = set(trainers(workspace, marked(under_way.mark))) - seen
        seen.add(victim)
        os.kill(victim, signal.SIGKILL)
    return workspace, under_way.ended()


def test_a_task_whose_worker_dies_again_and_again_is_a_failure(terminated):
    workspace, (code, out, err) = terminated
    assert code == 1
    assert out.count("its worker died") - out.count("in all") == 2
    [failure, last] = err.strip().splitlines()
    expected = "general · seed 1: its worker died, 3 in all (exit code -9)"
    assert failure == f"error: {expected}" and "1 failed of 1 tasks" in last
    assert [row["state"] for row in rows(workspace.store()).values()] == ["failed"]
