"""Training while a real MLflow server is away: nothing waits, nothing is lost, nothing is twice."""

import itertools
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from oodflow.tracking import runs
from oodflow.tracking.store import open_store

pytestmark = pytest.mark.long

OPTIONS = ("--depth", "1", "--hidden", "8", "--limit", "64", "--batch-size", "16", "--seeds", "7")
TRAIN = ("train", "--dataset", "sketch-general", *OPTIONS, "--steps", "600", "--report-every", "5")
SHORT = {("oodflow.tracking.delivery", "LAST_WAIT"): 2.0}
"""The minute that the end of a training waits for the store, made shorter."""
HASTY = {
    ("oodflow.tracking.store", "FAIL_FAST"): {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
    }
}
"""Requests are given up that a stopped server finds in its queue and carries out later."""
LACKING = 5
"""Reports that are made while the server is away, at least."""


@pytest.fixture(scope="module")
def always_there(blank_workspace, tmp_path_factory, trained_run):
    """The training with its store at hand from beginning to end."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("there") / "workspace")
    outcome = workspace.oodflow(*TRAIN)
    assert outcome.code == 0, outcome.err
    return trained_run(workspace.store())


@pytest.fixture(scope="module")
def survived(server, fork, blank_workspace, reports_of, trained_run, tmp_path_factory):
    """A training whose server was stopped, went on, was killed, and was started again.

    Also the times between which it was away.
    """
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("survived") / "workspace")
    server.start()
    command = fork(workspace, TRAIN, HASTY, MLFLOW_TRACKING_URI=server.uri)
    away = []
    for leave, come_back in (
        (lambda: server.send(signal.SIGSTOP), lambda: server.send(signal.SIGCONT)),
        (server.kill, server.start),
    ):
        seen = len(reports_of(workspace))
        command.when(lambda seen=seen: len(reports_of(workspace)) >= seen + 3)
        leave()
        gone, seen = time.time(), len(reports_of(workspace))
        command.when(lambda seen=seen: len(reports_of(workspace)) > seen + LACKING)
        # Longer than a request is waited for, so that some are given up.
        time.sleep(1.5)
        away.append((gone, time.time()))
        come_back()
    assert command.ended() == 0, command.err
    return trained_run(open_store(server.uri)), away


def test_the_training_does_not_pause_while_the_server_is_away(survived):
    trained, away = survived
    for gone, back in away:
        meanwhile = [made for made in trained.times if gone < made < back]
        assert len(meanwhile) >= LACKING
        assert max(b - a for a, b in itertools.pairwise(meanwhile)) < 5


def test_every_metric_of_every_report_arrives_once_and_in_order(survived, always_there):
    trained, _ = survived
    steps = list(range(5, 601, 5))
    for name, points in trained.history.items():
        assert [step for step, _ in points] == steps, name
    trained.equals(always_there)


@pytest.fixture(scope="module")
def abandoned(server, survived, fork, blank_workspace, reports_of, tmp_path_factory):
    """A training whose server was killed for good, its exit code and what it said."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("abandoned") / "workspace")
    command = fork(workspace, TRAIN, SHORT, MLFLOW_TRACKING_URI=server.uri)
    command.when(lambda: len(reports_of(workspace)) >= 3)
    server.kill()
    return workspace, command.ended(), command.err


def test_a_server_that_is_gone_for_good_is_one_line_and_exit_code_1(abandoned, server, state_of):
    workspace, code, err = abandoned
    folder = state_of(workspace)
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    for said in (server.uri, f".oodflow/{folder.name}", f"oodflow runs sync {folder.name}"):
        assert said in err


def test_weights_and_all_reports_are_kept(abandoned, always_there, state_of, reports_of):
    workspace, *_ = abandoned
    weights = load_file(state_of(workspace) / "checkpoints" / "model.safetensors")
    assert all(weights[name].equal(tensor) for name, tensor in always_there.weights.items())
    assert [report.step for report in reports_of(workspace)] == list(range(5, 601, 5))


def test_sync_delivers_them_to_a_new_store_as_if_it_had_been_there(
    abandoned, always_there, blank_workspace, tmp_path, trained_run, reports_of, state_of
):
    left, *_ = abandoned
    workspace = blank_workspace.clone(tmp_path / "workspace")
    shutil.copytree(left.folder / ".oodflow", workspace.folder / ".oodflow")
    reports = reports_of(workspace)
    outcome = workspace.oodflow("runs", "sync")
    assert outcome.code == 0, outcome.err
    delivered = trained_run(workspace.store())
    delivered.equals(always_there)
    assert delivered.times == [report.time / 1000 for report in reports]
    for fact in ("name", "tags", "params", "commit", "status"):
        assert getattr(delivered.run, fact) == getattr(always_there.run, fact), fact
    # Evaluation included: every number of the run is the same.
    assert delivered.run.metrics == always_there.run.metrics
    assert inputs(workspace.store(), delivered.run) == inputs_of_a_plain_run(workspace)
    assert not state_of(workspace)
    assert "nothing to deliver" in workspace.oodflow("runs", "sync").out


def inputs(store, run) -> set[tuple[str, str]]:
    found = store.client.get_run(run.run_id).inputs.dataset_inputs
    return {(each.dataset.name, each.dataset.digest) for each in found}


def inputs_of_a_plain_run(workspace) -> set[tuple[str, str]]:
    """Those of the same training for one update, in the same store."""
    words = [word if word != "600" else "1" for word in TRAIN]
    assert workspace.oodflow(*words).code == 0
    store = workspace.store()
    return inputs(store, runs.find(store, {"seed": "7"})[0])
