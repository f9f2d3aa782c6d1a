"""Runs read straight from the database are those that mlflow finds; anything odd is left to it."""

import dataclasses
import math
import sqlite3

import pytest

from oodflow.tracking import runs
from oodflow.tracking.database import find_locally, local_artifact


def plain(run) -> dict:
    """A run's values; of one under way the time goes on, and NaN equals nothing."""
    values = dataclasses.asdict(run)
    if run.status == "RUNNING":
        del values["seconds"]
    return values | {"metrics": {key: repr(value) for key, value in run.metrics.items()}}


@pytest.fixture
def store(blank):
    """Runs of several kinds and states, with tags, parameters and metrics of every sort."""
    store = blank.store()
    parent = runs.start(store, "parent", {"kind": "seeds", "dataset": 'it\'s "one"'})
    child = runs.start(store, "child · ü", {"kind": "train", "dataset": "a", "x": "1"}, parent)
    runs.log_metrics(store, child, {"bpd/a": 3.5, "nan": math.nan, "inf": math.inf})
    runs.log_metrics(store, child, {"bpd/a": 2.5}, step=2)
    runs.log_parameters(store, child, {"model.depth": "4"})
    runs.end(store, child, "FINISHED")
    deleted = runs.start(store, "deleted", {"kind": "train"})
    store.client.delete_run(deleted)
    store.client.create_run(store.experiment_id, run_name="not ours")
    elsewhere = store.client.create_experiment("elsewhere")
    store.client.create_run(elsewhere, run_name="other", tags={"oodflow.kind": "report"})
    gone = store.client.create_experiment("gone")
    store.client.create_run(gone, run_name="lost", tags={"oodflow.kind": "report"})
    store.client.delete_experiment(gone)
    return store


@pytest.mark.parametrize("tags", [{}, {"kind": "train"}, {"kind": "train", "dataset": "a"},
                                  {"dataset": "it's"}, {"kind": "none"}])  # fmt: skip
def test_what_is_found_is_what_mlflow_finds(store, tags):
    found = find_locally(store.uri, tags)
    assert found is not None
    assert list(map(plain, found)) == list(map(plain, runs.find(store, tags)))


def test_an_artifact_is_the_file_that_mlflow_keeps(store):
    [child] = runs.find(store, {"kind": "train"})
    runs.log_text(store, child.run_id, "text", "checkpoints/a file.txt")
    local = local_artifact(store.uri, child.run_id, "checkpoints/a file.txt")
    assert local and local.read_text() == "text"
    assert local_artifact(store.uri, child.run_id, "checkpoints/other.txt") is None
    assert local_artifact(store.uri, "models:/a/1", "checkpoints/a file.txt") is None
    store.client.delete_run(child.run_id)
    assert local_artifact(store.uri, child.run_id, "checkpoints/a file.txt") is None


def test_other_stores_and_other_databases_are_left_to_mlflow(tmp_path):
    other = tmp_path / "other.db"
    sqlite3.connect(other).execute("create table runs (name text)").connection.close()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"not a database at all" * 100)
    for uri in ("http://127.0.0.1:5000", f"sqlite:///{tmp_path}/absent.db", str(tmp_path),
                f"sqlite:///{other}", f"sqlite:///{damaged}"):  # fmt: skip
        assert find_locally(uri, {}) is None
        assert local_artifact(uri, "a", "b") is None
    assert not (tmp_path / "absent.db").exists()
