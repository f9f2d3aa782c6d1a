"""MLflow's own settings win: experiment, run, run name; stores that are large, copied or moved."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from conftest import waited_for

from oodflow.errors import UserError
from oodflow.tracking import runs
from oodflow.tracking.database import find_locally, local_artifact
from oodflow.tracking.delivery import monitored
from oodflow.tracking.run_info import sqlite_file
from oodflow.tracking.store import EXPERIMENT, open_store


def experiment_name(store, run_id):
    number = store.client.get_run(run_id).info.experiment_id
    return store.client.get_experiment(number).name


def test_the_experiment_that_a_variable_names_is_taken(blank, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    store = open_store(blank.uri)
    run_id = runs.start(store, "a", {"kind": "train"})
    assert experiment_name(store, run_id) == "mine"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.client.create_experiment("by number"))
    assert experiment_name(store, runs.start(open_store(blank.uri), "b", {})) == "by number"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "987654")
    with pytest.raises(UserError, match="MLFLOW_EXPERIMENT_ID=987654"):
        open_store(blank.uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    assert experiment_name(store, runs.start(open_store(blank.uri), "c", {})) == EXPERIMENT
    # Wherever it is, a run is found.
    assert run_id in {run.run_id for run in runs.find(store, {"kind": "train"})}


def test_a_child_is_in_the_experiment_of_its_parent(blank):
    store = blank.store()
    other = store.client.create_experiment("other")
    parent = store.client.create_run(other).info.run_id
    assert experiment_name(store, runs.start(store, "child", {}, parent)) == "other"


@pytest.mark.parametrize(("given", "kept"), [("mine", True), ("my-run-3", True), (None, False)])
def test_a_name_that_a_person_gave_stays(blank, given, kept):
    store = blank.store()
    made = store.client.create_run(store.experiment_id, run_name=given).info.run_id
    runs.start(store, "ours", {"kind": "train"}, project_run=made)
    assert store.client.get_run(made).info.run_name == (given if kept else "ours")


def test_a_run_id_that_is_left_over_is_refused(blank, monkeypatch):
    store = blank.store()
    assert runs.project_run(store) == ""
    ended, deleted = (runs.start(store, name, {"kind": "train"}) for name in "ab")
    runs.end(store, ended, "FINISHED")
    store.client.delete_run(deleted)
    for run_id in ("0" * 32, ended, deleted):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        with pytest.raises(UserError, match=f"MLFLOW_RUN_ID={run_id}"):
            runs.project_run(store)
    live = store.client.create_run(store.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", live)
    assert runs.project_run(store) == live


def insert(database, table, row):
    names = ",".join(row)
    marks = ",".join("?" * len(row))
    database.execute(f"insert into {table} ({names}) values ({marks})", list(row.values()))


def test_runs_are_found_behind_more_than_1000_newer_experiments_and_runs(blank):
    store = blank.store()
    own = runs.start(store, "own", {"kind": "train"})
    with closing(sqlite3.connect(blank.folder / "mlflow.db")) as database:
        database.row_factory = sqlite3.Row
        experiment = dict(database.execute("select * from experiments").fetchall()[-1])
        run = dict(database.execute("select * from runs").fetchone())
        for i in range(1050):
            later = {"creation_time": experiment["creation_time"] + i + 1}
            later |= {"last_update_time": later["creation_time"]}
            new = {"experiment_id": 1000 + i, "name": f"other {i}"} | later
            insert(database, "experiments", experiment | new)
            new = {"run_uuid": f"{i:032x}", "start_time": run["start_time"] + i + 1}
            insert(database, "runs", run | new | {"experiment_id": 1000 + i})
            tag = {"run_uuid": f"{i:032x}", "key": "oodflow.kind", "value": "train"}
            insert(database, "tags", tag)
        database.commit()
    by_mlflow = [run.run_id for run in runs.find(store, {"kind": "train"})]
    directly = [run.run_id for run in find_locally(store.uri, {"kind": "train"})]
    assert len(by_mlflow) == 1051 and by_mlflow[-1] == own
    assert by_mlflow == directly


@pytest.mark.parametrize("name", ["one", "50%25 off", "a?b#c&d", 'it\'s, "ü" @home'])
@pytest.mark.parametrize("original", ["stays", "is gone"])
def test_a_copied_folder_has_its_own_artifacts(tmp_path, monkeypatch, name, original, capsys):
    first, copy = tmp_path / "first", tmp_path / name
    for folder in (first, tmp_path / "50% off"):
        folder.mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(first)
    store = open_store()
    run_id = runs.start(store, "a", {"kind": "train"})
    runs.log_text(store, run_id, "old", "checkpoints/a.txt")
    shutil.copytree(first, copy)
    if original == "is gone":
        shutil.rmtree(first)
    monkeypatch.chdir(copy)
    store = open_store()
    assert sqlite_file(store.uri) == copy / "mlflow.db"
    assert str(first) in capsys.readouterr().out
    with runs.artifact(store, run_id, "checkpoints/a.txt") as file:
        assert file.read_text() == "old"
    other = runs.start(store, "b", {"kind": "train"})
    runs.log_text(store, other, "new", "checkpoints/a.txt")
    assert local_artifact(store.uri, other, "checkpoints/a.txt").is_relative_to(copy)
    assert len(list(copy.glob("mlruns/*/*/artifacts"))) == 2
    assert not (tmp_path / "50% off" / "mlruns").exists()
    # The second time there is nothing to be said.
    open_store()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["My%20Project", "feature%2Fx", "100%", "what?", "a#b", "tab\tü", "it's", 'q"q']
)
def test_a_store_in_a_folder_of_any_name_is_there_with_its_artifacts(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    for each in (folder, tmp_path / "My Project"):
        each.mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(folder)
    store = open_store()
    run_id = runs.start(store, "a", {"kind": "train"})
    runs.log_text(store, run_id, "text", "checkpoints/a file.txt")
    assert [each.run_id for each in find_locally(store.uri, {})] == [run_id]
    file = local_artifact(store.uri, run_id, "checkpoints/a file.txt")
    assert file.read_text() == "text" and file.is_relative_to(folder)
    assert sorted(each.name for each in folder.iterdir()) == ["mlflow.db", "mlruns"]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, "My Project"])
    assert not list((tmp_path / "My Project").iterdir())


def test_what_the_machine_does_is_logged_where_mlflows_variable_asks_for_it(blank, monkeypatch):
    store = blank.store()
    run_id = runs.start(store, "a run", {"kind": "train"})
    with monitored(store, run_id):
        pass
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    assert not runs.get(store, run_id).metrics
    with monitored(store, run_id):
        assert waited_for(lambda: runs.get(store, run_id).metrics, 30)
    assert "system/cpu_utilization_percentage" in runs.get(store, run_id).metrics
