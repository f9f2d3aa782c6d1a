"""``oodflow runs sync``: runs whose training is over, finished in their store or in another one.

The runs are those of processes that were killed as soon as they had their weights. That the store
was away before that is the matter of test_server_away.py.
"""

import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from oodflow.errors import UserError
from oodflow.tracking import runs
from oodflow.tracking.journal import RECORD_FILE, read_record
from oodflow.workflow.run_state import locked
from oodflow.workflow.sync import _named

pytestmark = pytest.mark.long

OPTIONS = ("--depth", "1", "--hidden", "8", "--limit", "64", "--batch-size", "16", "--seeds", "7")
STEPS = ("--steps", "6", "--report-every", "3")
FINETUNE = ("finetune", "--outlier-loss", "binary", *OPTIONS, *STEPS)


def killed_with_weights(fork, state_of, workspace, words) -> None:
    """Run a training in a process that dies while it evaluates; until then the run is its own."""
    command = fork(workspace, words)

    def has_delivered() -> bool:
        folder = state_of(workspace)
        place = f"mlruns/*/{folder.name if folder else ''}/artifacts/checkpoints/*"
        return bool(folder) and any(workspace.folder.glob(place))

    command.when(has_delivered)
    with (
        pytest.raises(UserError, match=f"{state_of(workspace).name}.* another process"),
        locked(state_of(workspace)),
    ):
        pass
    command.send(signal.SIGKILL)
    assert command.ended() == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(quickstart, tmp_path_factory, trained_run):
    """The finetuning from beginning to end."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("whole") / "workspace")
    outcome = workspace.oodflow(*FINETUNE)
    assert outcome.code == 0, outcome.err
    return trained_run(workspace.store())


@pytest.fixture(scope="module")
def left(fork, state_of, quickstart, tmp_path_factory):
    """A workspace with what a killed finetuning has left."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("left") / "workspace")
    killed_with_weights(fork, state_of, workspace, FINETUNE)
    return workspace


def moved(left, other):
    """Another workspace with what the killed process has left in the first."""
    shutil.copytree(left.folder / ".oodflow", other.folder / ".oodflow", dirs_exist_ok=True)
    return other


def facts(run) -> tuple:
    """All that does not name other runs."""
    tags = {name: value for name, value in run.tags.items() if not name.endswith("_run")}
    return run.name, run.status, tags, run.params, run.metrics


def test_a_run_is_finished_in_its_own_store_with_the_numbers_of_an_uninterrupted_one(
    left, whole, trained_run, state_of, tmp_path
):
    workspace = left.clone(tmp_path / "workspace")
    run_id = state_of(workspace).name
    outcome = workspace.oodflow("runs", "sync", run_id[:8])
    assert outcome.code == 0, outcome.err
    found = trained_run(workspace.store())
    found.equals(whole)
    assert facts(found.run) == facts(whole.run)
    assert found.run.run_id == run_id
    assert found.run.tags["general_run"] == found.run.tags["init_run"]
    assert not state_of(workspace)


def test_resuming_finishes_it_as_well_and_trains_nothing(left, whole, trained_run, tmp_path):
    workspace = left.clone(tmp_path / "workspace")
    outcome = workspace.oodflow(*FINETUNE, "--resume")
    assert outcome.code == 0, outcome.err
    assert "continues at update 6 of 6" in outcome.out
    trained_run(workspace.store()).equals(whole)


def test_in_another_store_the_general_model_of_the_same_experiment_is_found(
    left, quickstart, whole, trained_run, tmp_path
):
    workspace = moved(left, quickstart[0].clone(tmp_path / "workspace"))
    outcome = workspace.oodflow("runs", "sync")
    assert outcome.code == 0, outcome.err
    found = trained_run(workspace.store())
    found.equals(whole)
    assert facts(found.run) == facts(whole.run)
    general = runs.get(workspace.store(), found.run.tags["general_run"])
    assert general.tags["role"] == "general" and general.registered


def test_without_its_general_model_a_run_waits_with_its_weights_in_the_store(
    left, blank, whole, state_of
):
    workspace = moved(left, blank)
    outcome = workspace.oodflow("runs", "sync")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert "general model" in outcome.err
    [run] = runs.find(workspace.store(), {"seed": "7"})
    assert run.tags["weights"] == whole.run.tags["weights"] and not run.registered
    assert state_of(workspace).name == run.run_id


def test_a_run_that_nothing_is_kept_of_is_refused(left):
    outcome = left.oodflow("runs", "sync", "0" * 32)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1


def test_a_kept_run_is_named_by_its_id_its_beginning_or_its_name(left, state_of, monkeypatch):
    monkeypatch.chdir(left.folder)
    kept = state_of(left)
    name = read_record(kept / RECORD_FILE).name
    for reference in (kept.name, kept.name[:8], name):
        assert _named([kept.name], reference) == kept.name
    other = kept.name[:8] + "0" * 24
    with pytest.raises(UserError, match="2 runs are kept of run"):
        _named([kept.name, other], kept.name[:8])


def test_a_run_in_the_hands_of_another_process_is_left_alone(left, state_of, tmp_path):
    workspace = left.clone(tmp_path / "workspace")
    run_id = state_of(workspace).name
    with locked(state_of(workspace)):
        assert workspace.oodflow("runs", "sync", run_id).code == 2
        outcome = workspace.oodflow("runs", "sync")
    assert outcome.code == 1 and run_id in outcome.err
    assert runs.get(workspace.store(), run_id).status == "RUNNING"


def test_a_damaged_record_is_refused_and_the_others_are_delivered(
    left, trained_run, state_of, tmp_path
):
    workspace = left.clone(tmp_path / "workspace")
    other = workspace.folder / ".oodflow" / ("0" * 32)
    other.mkdir()
    (other / "run.json").write_text(json.dumps({"name": "half"}))
    outcome = workspace.oodflow("runs", "sync")
    assert outcome.code == 1
    assert "run.json" in outcome.err and outcome.err.count("\n") == 1
    assert trained_run(workspace.store()).run.registered


def test_without_its_images_a_run_is_delivered_and_evaluated_where_they_are(
    blank, fork, state_of, trained_run, tmp_path
):
    photos = blank.folder / "photos"
    photos.mkdir()
    for number in range(100):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    dataset = ("--dataset", "folder:photos?role=general")
    killed_with_weights(fork, state_of, blank, ("train", *dataset, *OPTIONS, *STEPS))
    away = photos.rename(blank.folder / "away")
    (tmp_path / "data").mkdir()
    outcome = blank.oodflow("runs", "sync", OODFLOW_DATA=str(tmp_path / "data"))
    assert outcome.code == 0, outcome.err
    assert "not evaluated" in outcome.out and "oodflow runs sync" in outcome.out
    [run] = runs.find(blank.store(), {"seed": "7"})
    assert run.status == "KILLED" and "weights" in run.tags
    away.rename(photos)
    assert blank.oodflow("runs", "sync").code == 0
    assert trained_run(blank.store()).run.run_id == run.run_id
