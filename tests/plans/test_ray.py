"""``oodflow reproduce --engine ray``: real Ray processes on this machine, one of them killed."""

import csv
import os
import re
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

from plans.processes import marked, opened, trainers, two_under_way

from oodflow.errors import UserError
from oodflow.plans.ray_engine import REQUIREMENT, check_store, room
from oodflow.tracking import runs

ROOT = Path(__file__).parents[2]

PLAN = """
title: tiny
seeds: [1]
with: {depth: 1, hidden: 8, limit: 64, batch_size: 16, steps: 6, report_every: 3}
steps:
  - name: general
    entry_point: train
    with: {dataset: sketch-general}
  - name: finetuned
    entry_point: finetune
    with: {steps: 60, report_every: 6}
    each: {dataset: [sketch-shapes, sketch-letters]}
    from: {init: general}
  - name: png
    entry_point: evaluate
    with: {general: png, ood: sketch-digits}
    from: {run: finetuned}
  - name: report
    entry_point: report
"""
WORDS = ("reproduce", "--plan", "plan.yaml")
HERE = (*WORDS, "--workers", "1")
RAY = (*WORDS, "--engine", "ray")


def cloned(workspace, folder):
    """A copy of a workspace with the plan in it."""
    made = workspace.clone(folder)
    (made.folder / "plan.yaml").write_text(PLAN)
    return made


def listening(processes: set[int]) -> set[str]:
    """The addresses at which processes listen for TCP connections."""
    sockets = {str(each) for process in processes for each in opened(process)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                # Groups of four bytes, each in the machine's order; IPv4 is the last one of IPv6.
                word = bytes.fromhex(fields[1].split(":")[0])[-4:]
                found.add(socket.inet_ntoa(int.from_bytes(word, sys.byteorder).to_bytes(4, "big")))
    return found


def rows(store) -> dict[str, dict[str, str]]:
    """Task → row of the newest call's ``tasks.csv``."""
    record = runs.find(store, {"kind": "reproduce"})[0]
    with runs.artifact(store, record.run_id, "tasks.csv") as file:
        return {row["task"]: row for row in csv.DictReader(file.read_text().splitlines())}


def weights(store) -> dict[str, str]:
    """Experiment → digest of its weights; each is there once."""
    found = [run for run in runs.find(store, {}) if run.tags["kind"] in ("train", "finetune")]
    made = {run.tags["spec"]: run.tags["weights"] for run in found if run.registered}
    assert len(made) == len(found)
    return made


@pytest.fixture(scope="module")
def general(blank_workspace, fork, tmp_path_factory):
    """A workspace with the general model."""
    workspace = cloned(blank_workspace, tmp_path_factory.mktemp("general") / "workspace")
    assert fork(workspace, (*HERE, "--only", "general")).ended() == 0
    return workspace


@pytest.fixture(scope="module")
def completed(general, fork, tmp_path_factory):
    """The plan on Ray, one worker killed in the middle: workspace, call, addresses, mark."""
    workspace = cloned(general, tmp_path_factory.mktemp("completed") / "workspace")
    mark = str(workspace.folder)
    call = fork(workspace, RAY, OODFLOW_TEST_MARK=mark)
    call.when(lambda: two_under_way(workspace))
    [killed, _] = trainers(workspace, marked(mark))
    addresses = listening({*marked(mark), call.process.pid})
    os.kill(killed, signal.SIGKILL)
    assert call.ended() == 0, call.err
    return workspace, call, addresses, mark


@pytest.mark.long
def test_a_plan_completes_though_a_worker_is_killed_in_the_middle(completed):
    workspace, call, _, _ = completed
    assert call.err == ""
    assert call.out.count("its worker died") == 1 and "retry 1 of 2" in call.out
    states = {name: row["state"] for name, row in rows(workspace.store()).items()}
    assert len(states) == 6 and set(states.values()) == {"there"}
    kinds = Counter(run.tags["kind"] for run in runs.find(workspace.store(), {}))
    # Two calls of reproduce; the codec is a general model too.
    assert kinds == {"reproduce": 2, "train": 2, "finetune": 2, "evaluate": 2, "report": 1}
    assert "<table" in (workspace.folder / "report" / "report.html").read_text()
    assert not list((workspace.folder / ".oodflow").glob("*"))


@pytest.mark.long
def test_no_number_depends_on_the_engine_or_on_the_killed_worker(completed, general, tmp_path):
    plain = cloned(general, tmp_path / "workspace")
    # Not forked: with another number of threads sums are rounded otherwise.
    call = plain.process(*HERE, "--only", "finetuned", OMP_NUM_THREADS="1")
    _, err = call.communicate(timeout=300)
    assert call.returncode == 0, err
    expected = weights(plain.store())
    found = weights(completed[0].store())
    assert len(expected) == 3 and expected.items() <= found.items()


@pytest.mark.long
def test_a_killed_training_goes_on_at_its_last_report_in_the_same_run(completed):
    """It has every report once, at times before and after the kill."""
    store = completed[0].store()
    for run in runs.find(store, {"kind": "finetune"}):
        points = store.client.get_metric_history(run.run_id, "train/bpd")
        assert [point.step for point in points] == list(range(6, 61, 6))


@pytest.mark.long
def test_tasks_are_done_at_the_same_time(completed):
    first, second = runs.find(completed[0].store(), {"kind": "finetune"})
    assert first.started < second.started + second.seconds
    assert second.started < first.started + first.seconds


@pytest.mark.long
def test_ray_listens_on_this_machine_alone_and_leaves_no_process(completed):
    _, _, addresses, mark = completed
    assert addresses == {"127.0.0.1"}
    assert marked(mark) == set()


@pytest.fixture(scope="module")
def terminated(general, fork, tmp_path_factory):
    """A plan without retries: a worker is killed, then the call gets SIGTERM."""
    workspace = cloned(general, tmp_path_factory.mktemp("terminated") / "workspace")
    longer = PLAN.replace("steps: 60", "steps: 2000")
    (workspace.folder / "plan.yaml").write_text(longer)
    mark = str(workspace.folder)
    call = fork(workspace, (*RAY, "--retries", "0"), OODFLOW_TEST_MARK=mark)
    call.when(lambda: two_under_way(workspace))
    os.kill(trainers(workspace, marked(mark))[0], signal.SIGKILL)
    call.when(lambda: "its worker died" in call.err)
    call.send(signal.SIGTERM)
    return workspace, call, call.ended(), mark


@pytest.mark.long
def test_without_retries_a_dead_worker_is_a_failure_that_stops_no_other(terminated):
    _, call, _, _ = terminated
    failure, _ = call.err.strip().splitlines()
    said = r"error: finetuned · sketch-\w+ · seed 1: its worker died, 1 in all \(WorkerCrashed"
    assert re.match(said, failure)


@pytest.mark.long
def test_sigterm_stops_the_workers_and_marks_what_was_under_way(terminated):
    workspace, call, code, mark = terminated
    assert code == 143
    assert call.err.strip().splitlines()[-1].startswith("error: interrupted")
    status = Counter(run.status for run in runs.find(workspace.store(), {"kind": "finetune"}))
    # Who dies of SIGKILL tells nobody.
    assert status == {"KILLED": 1, "RUNNING": 1}
    assert runs.find(workspace.store(), {"kind": "reproduce"})[0].status == "KILLED"
    assert marked(mark) == set()


@pytest.mark.long
def test_after_it_the_same_command_goes_on(terminated, fork):
    workspace, *_ = terminated
    before = {run.run_id for run in runs.find(workspace.store(), {"kind": "finetune"})}
    call = fork(workspace, HERE)
    call.when(lambda: "continues at update" in call.out)
    call.send(signal.SIGINT)
    assert call.ended() == 130
    assert {run.run_id for run in runs.find(workspace.store(), {"kind": "finetune"})} == before


# Options


@pytest.mark.parametrize(("words", "said"), [
    ("--engine ray --cpus 0", ["cpus must be at least 1"]),
    ("--engine ray --retries -1", ["retries at least 0"]),
    ("--engine ray --gpus 1.5", ["gpus is 1.5", "0.5", "whole number"]),
    ("--engine ray --gpus -1", ["gpus is -1"]),
    ("--engine slurm", ["'slurm'", "process", "ray"]),
    ("--engine ray --ray-address 127.0.0.1:1", ["127.0.0.1:1", "refused", "ray start --head"]),
    ("--engine ray --workers 2", ["workers", "engine process"]),
    ("--gpus 0.5", ["gpus", "--engine ray"]),
    ("--ray-address 127.0.0.1:1", ["ray_address", "--engine ray"]),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line_before_any_run_is_made(blank, words, said):
    (blank.folder / "plan.yaml").write_text(PLAN)
    outcome = blank.oodflow(*WORDS, *words.split())
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert [word for word in said if word not in outcome.err] == [], outcome.err
    assert runs.find(blank.store(), {}) == []


def test_without_ray_the_error_says_how_to_install_it(blank, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (blank.folder / "plan.yaml").write_text(PLAN)
    outcome = blank.oodflow(*RAY)
    assert outcome.code == 2
    assert outcome.err == f'error: engine ray needs Ray; pip install "{REQUIREMENT}"\n'
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nray = ["{REQUIREMENT}"]\n' in project


def test_a_store_in_a_file_is_refused_for_workers_on_other_machines():
    own = os.uname().nodename
    check_store("sqlite:////x/mlflow.db", {own})
    check_store("http://127.0.0.1:5000", {own, "other"})
    for hosts in ({own, "other"}, {"other"}):
        with pytest.raises(UserError, match="mlflow server.*MLFLOW_TRACKING_URI") as error:
            check_store("sqlite:////x/mlflow.db", hosts)
        assert "on other cannot" in str(error.value)


@pytest.mark.parametrize(("resources", "cpus", "gpus", "tasks"), [
    ({"CPU": 8}, 1, 0.0, 8),
    ({"CPU": 8}, 3, 0.0, 2),
    ({"CPU": 8}, 1, 1.0, 0),
    ({"CPU": 8, "GPU": 1}, 1, 0.5, 2),
    ({"CPU": 8, "GPU": 1}, 1, 0.1, 8),
    ({"CPU": 64, "GPU": 1}, 1, 0.1, 10),
    ({"CPU": 64, "GPU": 4}, 1, 0.3, 12),
    ({"CPU": 64, "GPU": 5}, 1, 2.0, 2),
    ({}, 1, 0.0, 0),
])  # fmt: skip
def test_room_for_tasks_counts_cores_and_whole_shares_of_each_gpu(resources, cpus, gpus, tasks):
    assert room(resources, cpus, gpus) == tasks
