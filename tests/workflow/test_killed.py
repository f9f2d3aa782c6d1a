"""Processes that die at any moment, are terminated, or find the disk full: nothing starts anew.

The processes are real ones, the moments random. OODFLOW_TEST_KILLS=20 kills twenty instead of four.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from oodflow.tracking import runs

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("OODFLOW_TEST_KILLS", "4"))
OPTIONS = ("--depth", "1", "--hidden", "8", "--limit", "64", "--batch-size", "16", "--seeds", "7")
# A report every other update: half of the time goes into checkpoints and logging.
TRAIN = ("train", "--dataset", "sketch-general", *OPTIONS, "--steps", "40", "--report-every", "2")
REPORTS = 20


@pytest.fixture(scope="module")
def uninterrupted(blank_workspace, fork, trained_run, tmp_path_factory):
    """The training from beginning to end in one process."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("whole") / "workspace")
    command = fork(workspace, TRAIN)
    assert command.ended() == 0, command.err
    return trained_run(workspace.store())


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_at_a_random_moment_and_resumed(
    blank, fork, uninterrupted, state_of, reports_of, trained_run, kill
):
    """The moments are spread over the whole life of a run, up to its evaluation."""
    chance = random.Random(kill)
    after = REPORTS * kill // max(KILLS - 1, 1)
    delay = chance.uniform(0, uninterrupted.times[-1] - uninterrupted.times[0]) / REPORTS
    command = fork(blank, TRAIN)
    command.when(lambda: state_of(blank) and len(reports_of(blank)) >= after)
    time.sleep(delay)
    command.send(signal.SIGKILL)
    # The last moments may come too late.
    assert command.ended() in ((-signal.SIGKILL, 0) if after == REPORTS else (-signal.SIGKILL,))
    outcome = blank.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    trained_run(blank.store()).equals(uninterrupted)
    assert not state_of(blank)


# Terminated


@pytest.fixture(scope="module")
def terminated(blank_workspace, fork, reports_of, tmp_path_factory):
    """A workspace whose training got SIGTERM after some checkpoints, and the ended process."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("terminated") / "workspace")
    command = fork(workspace, TRAIN)
    command.when(lambda: len(reports_of(workspace)) >= 5)
    command.send(signal.SIGTERM)
    return workspace, command.ended(), command.err


def test_sigterm_is_exit_code_143_one_line_and_a_killed_run(terminated):
    workspace, code, err = terminated
    assert code == 143
    [line] = err.strip().splitlines()
    assert line.startswith("error: interrupted") and "--resume" in line
    [run] = runs.find(workspace.store(), {"seed": "7"})
    assert run.status == "KILLED"


def test_sigterm_of_a_command_that_says_itself_that_it_was_interrupted(fork, blank, state_of):
    words = ("reproduce", "--plan", "quickstart", "--seeds", "7", "--depth", "1", "--hidden", "8")
    command = fork(blank, (*words, "--limit", "64", "--batch-size", "16", "--steps", "2000"))
    command.when(lambda: state_of(blank))
    command.send(signal.SIGTERM)
    assert command.ended() == 143, command.err
    assert {run.status for run in runs.find(blank.store(), {})} == {"KILLED"}


def copy_of(terminated, tmp_path):
    workspace, *_ = terminated
    return workspace.clone(tmp_path / "workspace")


def test_a_terminated_run_is_resumed_to_the_same_numbers(
    terminated, uninterrupted, trained_run, tmp_path
):
    workspace = copy_of(terminated, tmp_path)
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    assert "continues at update" in outcome.out
    trained_run(workspace.store()).equals(uninterrupted)


def test_a_run_under_way_moves_to_another_store_and_goes_on_there(
    terminated, blank_workspace, uninterrupted, trained_run, reports_of, tmp_path
):
    left = copy_of(terminated, tmp_path)
    workspace = blank_workspace.clone(tmp_path / "elsewhere")
    shutil.copytree(left.folder / ".oodflow", workspace.folder / ".oodflow")
    reports = reports_of(workspace)
    outcome = workspace.oodflow("runs", "sync")
    assert outcome.code == 0, outcome.err
    assert "--resume continues" in outcome.out
    [run] = runs.find(workspace.store(), {"seed": "7"})
    assert run.status == "KILLED"
    there = workspace.store().client.get_metric_history(run.run_id, "valid/bpd")
    assert [each.step for each in there] == [report.step for report in reports]
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert f"continues at update {reports[-1].step - 2}" in outcome.out or (
        f"continues at update {reports[-1].step}" in outcome.out
    )
    trained_run(workspace.store()).equals(uninterrupted)


def test_without_its_store_a_state_here_is_named_before_all_begins_anew(
    terminated, blank_workspace, state_of, tmp_path
):
    left = copy_of(terminated, tmp_path)
    workspace = blank_workspace.clone(tmp_path / "elsewhere")
    shutil.copytree(left.folder / ".oodflow", workspace.folder / ".oodflow")
    run_id = state_of(workspace).name
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert f"oodflow runs sync {run_id}" in outcome.out


# Damaged files


def test_a_newest_checkpoint_cut_short_falls_back_to_the_one_before(
    terminated, uninterrupted, state_of, trained_run, tmp_path
):
    workspace = copy_of(terminated, tmp_path)
    newest = state_of(workspace) / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    [said] = [line for line in outcome.out.splitlines() if "damaged" in line]
    assert "training.safetensors" in said and "previous checkpoint" in said
    assert "continues at update" in outcome.out and "beginning" not in outcome.out
    trained_run(workspace.store()).equals(uninterrupted)


def test_a_journal_cut_short_is_written_on(
    terminated, uninterrupted, state_of, trained_run, tmp_path
):
    workspace = copy_of(terminated, tmp_path)
    with (state_of(workspace) / "journal.jsonl").open("a") as file:
        file.write('{"step": 9')
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    trained_run(workspace.store()).equals(uninterrupted)


def test_a_checkpoint_without_its_journal_is_refused_in_one_line(terminated, state_of, tmp_path):
    workspace = copy_of(terminated, tmp_path)
    (state_of(workspace) / "journal.jsonl").unlink()
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert "journal.jsonl" in outcome.err and "remove .oodflow/" in outcome.err


# A full disk


@pytest.fixture
def small_disk(blank):
    """A workspace whose state is on a disk of its own; yields what gives that so many bytes."""
    place = blank.folder / ".oodflow"
    place.mkdir()

    def mount(size: int, *options: str) -> None:
        choice = ",".join((*options, f"size={size}"))
        command = ["mount", "-t", "tmpfs", "-o", choice, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")

    mounted = iter(itertools.chain([()], itertools.repeat(("remount",))))
    yield blank, lambda size: mount(size, *next(mounted))
    subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_after_space_is_made(
    small_disk, terminated, uninterrupted, state_of, reports_of, trained_run
):
    workspace, give = small_disk
    state = (state_of(terminated[0]) / "training.safetensors").stat().st_size
    # Two checkpoints and little besides: it is the third that finds no space.
    give(int(2.9 * state))
    outcome = workspace.oodflow(*TRAIN)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for said in ("training.safetensors: No space left", "checkpoint", "kept", "--resume"):
        assert said in outcome.err
    assert [report.step for report in reports_of(workspace)] == [2, 4, 6]
    [run] = runs.find(workspace.store(), {"seed": "7"})
    assert run.status == "FAILED"
    again = workspace.oodflow(*TRAIN, "--resume")
    assert again.code == 1 and "continues at update 4" in again.out
    give(20 * state)
    outcome = workspace.oodflow(*TRAIN, "--resume")
    assert outcome.code == 0, outcome.err
    assert "continues at update 4" in outcome.out
    trained_run(workspace.store()).equals(uninterrupted)
