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

from oodflow.tracking import runs

pytestmark = pytest.mark.long

TINY = ("--depth", "1", "--hidden", "8", "--limit", "64", "--batch-size", "16", "--seeds", "7")
TRAIN = ("train", "--dataset", "sketch-general", *TINY, "--steps", "60", "--report-every", "5")
FINETUNE = ("finetune", "--outlier-loss", "binary", *TINY, "--steps", "40", "--report-every", "4")


@pytest.fixture(scope="module")
def uninterrupted(blank_workspace, quickstart, trained_run, tmp_path_factory):
    """Both trainings from beginning to end. The quickstart before has filled the data folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    found = {}
    for start, words in ((blank_workspace, TRAIN), (quickstart[0], FINETUNE)):
        workspace = start.clone(folder / words[0])
        outcome = workspace.oodflow(*words)
        assert outcome.code == 0, outcome.err
        found[words[0]] = trained_run(workspace.store())
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


@pytest.fixture(scope="session")
def stopped(fork):
    """``stopped(workspace, words, moment)`` sends a command a signal at a moment and some seconds.

    What comes back is its exit code and what it said.
    """

    def stop(workspace, words, moment, sign=signal.SIGKILL, delay=0.0):
        command = fork(workspace, words)
        command.when(lambda: moment(workspace))
        time.sleep(delay)
        command.send(sign)
        return command.ended(), command.err

    return stop


def test_killed_before_the_first_report_and_resumed(blank, stopped, uninterrupted, trained_run):
    code, _ = stopped(blank, TRAIN, has_begun)
    assert code == -signal.SIGKILL
    assert updates_done(blank) < 60
    assert blank.oodflow(*TRAIN, "--resume").code == 0
    trained_run(blank.store()).equals(uninterrupted["train"])


def test_killed_twice_at_any_moment_of_a_finetuning_and_resumed(
    trained, stopped, uninterrupted, trained_run
):
    """The second time it is the resumed process that dies. The moments are random ones."""
    times = uninterrupted["finetune"].times
    for after in (4, 20):
        delay = random.uniform(0.0, times[-1] - times[0]) / len(times)
        moment = partial(has_done, after)
        code, _ = stopped(trained, (*FINETUNE, "--resume"), moment, delay=delay)
        assert code == -signal.SIGKILL, f"after {after} updates and {delay} s"
    assert 20 <= updates_done(trained) < 40
    outcome = trained.oodflow(*FINETUNE, "--resume")
    assert outcome.code == 0, outcome.err
    assert "continues at update" in outcome.out
    trained_run(trained.store()).equals(uninterrupted["finetune"])


def test_killed_while_it_is_evaluated_and_resumed(blank, stopped, uninterrupted, trained_run):
    code, _ = stopped(blank, TRAIN, is_evaluated)
    assert code == -signal.SIGKILL
    [run] = runs.find(blank.store(), {"seed": "7"})
    assert not run.registered
    assert blank.oodflow(*TRAIN, "--resume").code == 0
    trained_run(blank.store()).equals(uninterrupted["train"])


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
def interrupted(blank_workspace, fork, uninterrupted, tmp_path_factory) -> Interrupted:
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("interrupted") / "workspace")
    command = fork(workspace, TRAIN)
    command.when(partial(has_done, 5, workspace))
    second = workspace.oodflow(*TRAIN, "--resume")
    [run] = runs.find(workspace.store(), {"seed": "7"})
    command.send(signal.SIGINT)
    return Interrupted(
        workspace, run.run_id, second.code, second.err, run.status, command.ended(), command.err
    )


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
    interrupted, uninterrupted, trained_run, tmp_path
):
    workspace = interrupted.workspace.clone(tmp_path / "workspace")
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    assert "continues at update" in outcome.out
    trained_run(workspace.store()).equals(uninterrupted["train"])
    assert not state_file(workspace)


def test_a_job_that_is_terminated_between_two_reports_loses_no_update(
    blank_workspace, stopped, trained_run, tmp_path
):
    words = [*TRAIN[: TRAIN.index("--steps")], "--steps", "240", "--report-every", "60"]
    whole, ended = (blank_workspace.clone(tmp_path / name) for name in ("whole", "ended"))
    assert whole.oodflow(*words).code == 0
    uninterrupted = trained_run(whole.store())
    delay = 0.4 * (uninterrupted.times[-1] - uninterrupted.times[0]) / 3
    code, err = stopped(ended, words, partial(has_done, 60), signal.SIGTERM, delay)
    assert code == 143
    [line] = err.strip().splitlines()
    assert line.startswith("error: ") and "--resume" in line
    done = updates_done(ended)
    assert 60 < done < 240 and done % 60
    [run] = runs.find(ended.store(), {"seed": "7"})
    assert run.status == "KILLED"
    outcome = ended.oodflow(*words, "--resume")
    assert outcome.code == 0, outcome.err
    assert f"continues at update {done} of 240" in outcome.out
    trained_run(ended.store()).equals(uninterrupted)


def test_a_run_whose_state_was_lost_is_trained_anew_to_the_same_numbers(
    interrupted, uninterrupted, trained_run, tmp_path
):
    workspace = interrupted.workspace.clone(tmp_path / "workspace")
    shutil.rmtree(workspace.folder / ".oodflow")
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    trained_run(workspace.store()).equals(uninterrupted["train"])


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


def test_resuming_a_finished_run_trains_nothing(blank, trained_run):
    assert blank.oodflow(*TRAIN).code == 0
    before = trained_run(blank.store())
    outcome = blank.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0
    assert "already there" in outcome.out
    trained_run(blank.store()).equals(before)
