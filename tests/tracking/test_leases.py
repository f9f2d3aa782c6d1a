"""Claims: several processes on one store, some of which die; each experiment is made once."""

import random
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from oodflow.tracking import leases, runs
from oodflow.tracking.leases import LeaseTaken, Sighting, leased, leased_in_turn, observe

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
    each: {dataset: [sketch-shapes, sketch-letters]}
    from: {init: general}
  - name: png
    entry_point: evaluate
    with: {general: png, ood: sketch-digits}
    from: {run: finetuned}
    seeds: 1
"""
TASKS = 7
SOON = {("oodflow.plans.engine", "PAUSE"): 0.1}
"""Looks at the other's claim ten times a second."""


def written(workspace) -> tuple[str, ...]:
    """The command that carries out the plan."""
    (workspace.folder / "plan.yaml").write_text(PLAN)
    return ("reproduce", "--plan", "plan.yaml")


def left_over(workspace) -> list:
    """Claims that are still in the store, and files in the state folder."""
    found = runs.find(workspace.store(), {"kind": "claim"})
    return [*found, *(workspace.folder / ".oodflow").glob("*")]


@pytest.fixture
def here(blank, monkeypatch):
    """A store, with its folder as the working folder."""
    monkeypatch.chdir(blank.folder)
    return blank


# Plans


@pytest.fixture(scope="module")
def shared(blank_workspace, fork, tmp_path_factory):
    """A plan after two calls that began at the same moment, and the two."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("shared") / "workspace")
    # Each prints to its own folder; the state folder is the working folder's.
    other = replace(workspace, folder=workspace.folder.with_name("other"))
    other.folder.mkdir()
    words, variables = written(workspace), {"MLFLOW_TRACKING_URI": workspace.uri}
    written(other)
    calls = [fork(each, words, SOON, **variables) for each in (workspace, other)]
    return workspace, calls, [call.ended() for call in calls]


@pytest.mark.long
def test_two_calls_at_the_same_moment_make_every_experiment_once(shared):
    workspace, calls, codes = shared
    assert codes == [0, 0], [call.err for call in calls]
    made = runs.find(workspace.store(), {})
    kinds = Counter(run.tags["kind"] for run in made)
    # The second general model is the codec. Both finetuned models have a parent over their seeds.
    assert kinds == {"reproduce": 2, "train": 2, "finetune": 4, "evaluate": 2, "seeds": 2}
    trainings = [run for run in made if run.tags["kind"] in ("train", "finetune")]
    assert len({run.tags["spec"] for run in trainings}) == 6
    assert all(run.registered for run in trainings)
    assert not left_over(workspace) and not list((workspace.folder.parent / "other").glob(".o*/*"))


@pytest.mark.long
def test_two_calls_share_the_work(shared):
    workspace, calls, _ = shared
    done = [call.out.count(": done in ") for call in calls]
    assert sum(done) == TASKS and min(done) >= 1
    assert "is working on it" in calls[0].out + calls[1].out
    for record in runs.find(workspace.store(), {"kind": "reproduce"}):
        with runs.artifact(workspace.store(), record.run_id, "tasks.csv") as file:
            rows = file.read_text().splitlines()[1:]
        assert len(rows) == TASKS and all(",there," in row for row in rows)


@pytest.mark.long
def test_who_waits_goes_on_at_once_when_the_other_dies(blank, fork, reports_of):
    words = (*written(blank), "--only", "general", "--steps", "60", "--workers", "1")
    first = fork(blank, words)
    first.when(lambda: len(reports_of(blank)) >= 2)
    second = fork(blank, words, SOON)
    second.when(lambda: "is working on it" in second.out)
    assert f"process {first.process.pid}" in second.out
    first.send(signal.SIGKILL)
    before = time.monotonic()
    assert second.ended() == 0, second.err
    assert time.monotonic() - before < leases.SILENCE / 2
    assert "continues at update" in second.out
    [run] = runs.find(blank.store(), {"kind": "train"})
    assert run.registered and not left_over(blank)


# Claims


def test_of_many_at_once_one_at_a_time_has_the_task(here, monkeypatch):
    monkeypatch.setattr(leases, "PAUSE", 0.1)
    store, start = here.store(), threading.Barrier(4)
    inside: list[int] = []
    crowds: list[int] = []

    def work(number: int) -> None:
        start.wait()
        for _ in range(3):
            while True:
                try:
                    with leased(store, "task", "task"):
                        inside.append(number)
                        time.sleep(0.05)
                        crowds.append(len(inside))
                        inside.remove(number)
                        break
                except LeaseTaken:
                    time.sleep(random.uniform(0, 0.1))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crowds == [1] * 12
    assert not left_over(here)


def test_a_claim_is_for_its_task_alone_and_names_its_holder(here):
    store = here.store()
    with leased(store, "a", "task a"), leased(store, "b", "task b"):
        names = [run.name for run in runs.find(store, {"kind": "claim"})]
        assert sorted(names) == ["lease · task a", "lease · task b"]
        with pytest.raises(LeaseTaken, match=socket.gethostname()), leased(store, "a", ""):
            pass
    with leased(store, "a", "task a"):
        pass


def test_a_claim_is_given_back_on_an_interruption(here):
    with pytest.raises(KeyboardInterrupt), leased(here.store(), "a", "task a"):
        raise KeyboardInterrupt
    assert not left_over(here)


def test_who_takes_turns_waits(here, monkeypatch):
    monkeypatch.setattr(leases, "PAUSE", 0.05)
    store, order = here.store(), []

    def second() -> None:
        with leased_in_turn(store, "a", "task a"):
            order.append("second")

    with leased(store, "a", "task a"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def elsewhere(store) -> str:
    """A claim that another machine has made."""
    tags = {"kind": "claim", "task": "a", "host": "elsewhere", "pid": "1", "lock": "/nowhere"}
    return runs.start(store, "claim", {**tags, "heartbeat": "0"})


def watched(store, sight: Sighting, seconds: float) -> Sighting | None:
    """Look at a claim for some seconds, until it is void."""
    end = time.monotonic() + seconds
    while sight and time.monotonic() < end:
        time.sleep(0.05)
        sight = observe(store, sight)
    return sight


def test_a_claim_of_another_machine_is_void_after_its_silence_and_not_before(here, monkeypatch):
    monkeypatch.setattr(leases, "SILENCE", 1.0)
    store = here.store()
    claim = elsewhere(store)
    sight = watched(store, Sighting(claim), 0.6)
    assert sight and sight.silent > 0.3
    runs.set_tags(store, claim, {"heartbeat": "1"})
    sight = watched(store, sight, 0.6)
    assert sight and sight.silent < 0.6
    with pytest.raises(LeaseTaken, match="elsewhere, process 1"), leased(store, "a", ""):
        pass
    assert watched(store, sight, 10) is None
    with leased(store, "a", ""):
        pass


def test_seconds_in_which_the_store_is_away_or_nobody_looked_do_not_count(here):
    store = here.store()
    sight = observe(store, Sighting(elsewhere(store)))
    gone = replace(store, client=MlflowClient("http://127.0.0.1:9"))
    long_ago = replace(sight, at=sight.at - 1000)
    during = observe(gone, long_ago)
    assert during and during.silent == 0 and during.at > sight.at
    after = observe(store, during)
    assert after and after.silent < 5
    unwatched = observe(store, long_ago)
    assert unwatched and unwatched.silent == leases.HEARTBEAT


def test_a_lock_that_is_held_counts_more_than_silence(here, monkeypatch):
    monkeypatch.setattr(leases, "SILENCE", 0.0)
    store = here.store()
    with leased(store, "a", "task a"):
        [claim] = runs.find(store, {"kind": "claim"})
        sight = watched(store, Sighting(claim.run_id), 0.3)
        assert sight and sight.silent > 0
    assert observe(store, sight) is None


def test_the_heartbeat_changes_while_a_claim_is_held(here, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT", 0.05)
    store = here.store()
    with leased(store, "a", "task a"):
        [claim] = runs.find(store, {"kind": "claim"})
        end = time.monotonic() + 30
        while runs.get(store, claim.run_id).tags["heartbeat"] in ("0", "1", "2"):
            assert time.monotonic() < end
