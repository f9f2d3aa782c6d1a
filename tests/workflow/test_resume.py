"""Training that is interrupted at any moment and resumed: the same weights, each number once.

The interrupted processes are real ones, ended with SIGKILL and SIGINT. What they were to become is
known from runs that nobody interrupted.
"""

import random
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from oodflow.tracking import runs

TINY = ("--depth", "1", "--hidden", "8", "--limit", "64", "--batch-size", "16", "--seeds", "7")
TRAIN = ("train", "--dataset", "sketch-general", *TINY, "--steps", "60", "--report-every", "5")
FINETUNE = ("finetune", "--outlier-loss", "binary", *TINY, "--steps", "40", "--report-every", "4")


@dataclass(frozen=True)
class Trained:
    """What one run came to: its weights, and each metric's values by step as they were logged."""

    weights: dict
    history: dict[str, list[tuple[int, float]]]


def result(workspace) -> Trained:
    store = workspace.store()
    [run] = [run for run in runs.find(store, {"seed": "7"}) if run.registered]
    with runs.artifact(store, run.run_id, "checkpoints/model.safetensors") as path:
        weights = load_file(path)
    history = {
        name: [(m.step, m.value) for m in store.client.get_metric_history(run.run_id, name)]
        for name in run.metrics
        if name.startswith(("train/", "valid/"))
    }
    return Trained(weights, history)


def assert_same(resumed: Trained, uninterrupted: Trained) -> None:
    assert resumed.weights.keys() == uninterrupted.weights.keys()
    for name, tensor in uninterrupted.weights.items():
        assert resumed.weights[name].equal(tensor), name
    assert resumed.history == uninterrupted.history


@pytest.fixture(scope="module")
def uninterrupted(blank_workspace, quickstart, tmp_path_factory) -> dict[str, Trained]:
    """Both trainings from beginning to end. The quickstart before has filled the data folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    found = {}
    for start, words in ((blank_workspace, TRAIN), (quickstart[0], FINETUNE)):
        workspace = start.clone(folder / words[0])
        outcome = workspace.oodflow(*words)
        assert outcome.code == 0, outcome.err
        found[words[0]] = result(workspace)
    return found


# Moments


def state_file(workspace) -> Path | None:
    return next((workspace.folder / ".oodflow").glob("*/training.safetensors"), None)


def updates_done(workspace) -> int:
    """Updates in the state file, -1 where there is none. It is replaced whole, never half."""
    file = state_file(workspace)
    if file is None:
        return -1
    try:
        with safe_open(file, framework="np") as state:
            return int(state.metadata()["step"])
    except FileNotFoundError:
        return -1


def has_done(updates: int, workspace) -> bool:
    return updates_done(workspace) >= updates


def has_begun(workspace) -> bool:
    return any((workspace.folder / ".oodflow").glob("*/lock"))


def is_evaluated(workspace) -> bool:
    """The training is over and its weights are an artifact."""
    return any(workspace.folder.glob("mlruns/*/*/artifacts/checkpoints/model.safetensors"))


def stopped(workspace, words, moment, sign=signal.SIGKILL, delay=0.0):
    """Start a command, send a signal at a moment and some seconds; its exit code and stderr."""
    process = workspace.process(*words)
    try:
        deadline = time.monotonic() + 120
        while not moment(workspace):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(sign)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


def test_killed_before_the_first_report_and_resumed(blank, uninterrupted):
    code, _ = stopped(blank, TRAIN, has_begun)
    assert code == -signal.SIGKILL
    assert updates_done(blank) < 60
    assert blank.oodflow(*TRAIN, "--resume").code == 0
    assert_same(result(blank), uninterrupted["train"])


def test_killed_twice_at_any_moment_of_a_finetuning_and_resumed(trained, uninterrupted):
    """The second time it is the resumed process that dies. The moments are random ones."""
    for after in (4, 20):
        delay = random.uniform(0.0, 0.15)
        moment = partial(has_done, after)
        code, _ = stopped(trained, (*FINETUNE, "--resume"), moment, delay=delay)
        assert code == -signal.SIGKILL, f"after {after} updates and {delay} s"
    assert 20 <= updates_done(trained) < 40
    outcome = trained.oodflow(*FINETUNE, "--resume")
    assert outcome.code == 0, outcome.err
    assert "goes on at update" in outcome.out
    assert_same(result(trained), uninterrupted["finetune"])


def test_killed_while_it_is_evaluated_and_resumed(blank, uninterrupted):
    code, _ = stopped(blank, TRAIN, is_evaluated)
    assert code == -signal.SIGKILL
    [run] = runs.find(blank.store(), {"seed": "7"})
    assert not run.registered
    assert blank.oodflow(*TRAIN, "--resume").code == 0
    assert_same(result(blank), uninterrupted["train"])


@dataclass(frozen=True)
class Interrupted:
    """A training under way that met a second process and then Ctrl-C."""

    workspace: object
    run_id: str
    second_code: int
    second_err: str
    status_after_second: str
    code: int
    err: str


@pytest.fixture(scope="module")
def interrupted(blank_workspace, uninterrupted, tmp_path_factory) -> Interrupted:
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("interrupted") / "workspace")
    seen = {}

    def second_process_tries(workspace) -> bool:
        if updates_done(workspace) < 5:
            return False
        second = workspace.oodflow(*TRAIN, "--resume")
        [run] = runs.find(workspace.store(), {"seed": "7"})
        seen.update(
            run_id=run.run_id,
            second_code=second.code,
            second_err=second.err,
            status_after_second=run.status,
        )
        return True

    code, err = stopped(workspace, TRAIN, second_process_tries, signal.SIGINT)
    return Interrupted(workspace, **seen, code=code, err=err)


def test_a_second_process_on_the_same_run_is_refused(interrupted):
    assert interrupted.second_code == 2
    assert interrupted.second_err.startswith("error: ")
    assert interrupted.second_err.count("\n") == 1
    assert interrupted.run_id in interrupted.second_err


def test_a_refused_second_process_leaves_the_run_as_it_is(interrupted):
    assert interrupted.status_after_second == "RUNNING"


def test_ctrl_c_is_exit_code_130_one_line_and_a_killed_run(interrupted):
    assert interrupted.code == 130
    # Before it click ends the terminal's line with the ^C.
    [line] = interrupted.err.strip().splitlines()
    assert line.startswith("error: interrupted") and "--resume" in line
    [run] = runs.find(interrupted.workspace.store(), {"seed": "7"})
    assert run.status == "KILLED"


def test_a_run_stopped_by_ctrl_c_is_resumed_to_the_same_numbers(
    interrupted, uninterrupted, tmp_path
):
    workspace = interrupted.workspace.clone(tmp_path / "workspace")
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    assert "goes on at update" in outcome.out
    assert_same(result(workspace), uninterrupted["train"])
    assert not state_file(workspace)


def test_a_job_that_is_terminated_between_two_reports_loses_no_update(blank_workspace, tmp_path):
    words = [*TRAIN[: TRAIN.index("--steps")], "--steps", "400", "--report-every", "100"]
    whole, ended = (blank_workspace.clone(tmp_path / name) for name in ("whole", "ended"))
    assert whole.oodflow(*words).code == 0
    moment = partial(has_done, 100)
    code, err = stopped(ended, words, moment, signal.SIGTERM, delay=0.2)
    assert code == 143
    [line] = err.strip().splitlines()
    assert line.startswith("error: ") and "--resume" in line
    done = updates_done(ended)
    assert 100 < done < 400 and done % 100
    [run] = runs.find(ended.store(), {"seed": "7"})
    assert run.status == "KILLED"
    outcome = ended.oodflow(*words, "--resume")
    assert outcome.code == 0, outcome.err
    assert f"goes on at update {done} of 400" in outcome.out
    assert_same(result(ended), result(whole))


def test_a_run_whose_state_was_lost_is_trained_anew_to_the_same_numbers(
    interrupted, uninterrupted, tmp_path
):
    workspace = interrupted.workspace.clone(tmp_path / "workspace")
    shutil.rmtree(workspace.folder / ".oodflow")
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    assert_same(result(workspace), uninterrupted["train"])


def test_a_damaged_state_is_refused_in_one_line(interrupted, tmp_path):
    workspace = interrupted.workspace.clone(tmp_path / "workspace")
    file = state_file(workspace)
    for damaged in (file, *file.parent.glob("training.previous.safetensors")):
        damaged.write_bytes(damaged.read_bytes()[:-100])
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert "training.safetensors" in outcome.err


def test_without_resume_the_same_command_makes_another_run(interrupted, tmp_path):
    workspace = interrupted.workspace.clone(tmp_path / "workspace")
    assert workspace.oodflow(*TRAIN).code == 0
    statuses = [run.status for run in runs.find(workspace.store(), {"seed": "7"})]
    assert statuses == ["FINISHED", "KILLED"]


def test_resuming_a_finished_run_trains_nothing(blank_workspace, uninterrupted, tmp_path):
    workspace = blank_workspace.clone(tmp_path / "workspace")
    assert workspace.oodflow(*TRAIN).code == 0
    before = result(workspace)
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0
    assert "already there" in outcome.out
    assert_same(result(workspace), before)
