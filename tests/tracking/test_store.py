"""Opening the store: where it is, that it is made once, and what is said where there is none."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from mlflow import MlflowClient

from oodflow.errors import UserError
from oodflow.tracking import runs
from oodflow.tracking.run_info import tracking_uri
from oodflow.tracking.store import EXPERIMENT, experiment_of, open_store
from oodflow.tracking.views import AUROC, TRIALS, VIEWS


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_the_variable_the_store_is_in_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri() == "http://host:5000"


def test_a_new_store_gets_the_experiment_once(blank):
    first, second = blank.store(), blank.store()
    assert (blank.folder / "mlflow.db").is_file()
    assert first.experiment_id == second.experiment_id
    named = [each.name for each in first.client.search_experiments()]
    assert named.count(EXPERIMENT) == 1


@pytest.mark.long
def test_processes_that_open_a_new_store_at_once_find_the_same_one(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = (
        f"from oodflow.tracking.store import open_store; print(open_store({uri!r}).experiment_id)"
    )
    opening = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ids = [process.communicate(timeout=120)[0].strip() for process in opening]
    assert [process.returncode for process in opening] == [0] * 4
    assert len(set(ids)) == 1 and ids[0]


def test_an_experiment_that_another_process_has_just_made_is_taken(blank):
    class Late(MlflowClient):
        """Looks for the experiment a moment too early, once."""

        looked = False

        def get_experiment_by_name(self, name):
            if not self.looked:
                self.looked = True
                return None
            return super().get_experiment_by_name(name)

    store = blank.store()
    assert experiment_of(Late(store.uri)).experiment_id == store.experiment_id


def test_artifacts_stay_beside_the_store(blank):
    store = blank.store()
    run = store.client.create_run(store.experiment_id)
    assert run.info.artifact_uri.startswith(str(blank.folder))


@pytest.mark.parametrize("retries", [None, "5"])
def test_an_unreachable_server_is_refused_within_seconds(monkeypatch, closed_port, retries):
    if retries is None:
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    uri = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(UserError, match=uri):
        open_store()
    assert time.monotonic() - began < 10

    assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == retries


def test_a_server_that_is_not_mlflow_is_refused(monkeypatch, tmp_path):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(UserError, match="no MLflow store"):
            open_store()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("uri", ["nonsense://x", "foo:bar", "http://"])
def test_a_nonsense_address_is_refused(monkeypatch, tmp_path, uri):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=uri):
        open_store()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["below a file", "a folder", "no database"])
def test_a_file_that_cannot_be_a_store_is_refused_within_seconds(blank, kind):
    """In a process of its own, since mlflow tries again and again for minutes by itself."""
    text = blank.folder / "notes.txt"
    text.write_text("no database, but long enough to be taken for one" * 100)
    files = {"below a file": text / "mlflow.db", "a folder": blank.folder, "no database": text}
    file = files[kind]
    process = blank.process("runs", "list", MLFLOW_TRACKING_URI=f"sqlite:///{file}")
    try:
        _, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("still trying after 30 seconds")
    assert process.returncode == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert str(file) in err


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(blank):
    store = blank.store()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(UserError, match=f"restore --experiment-id {store.experiment_id}"):
        blank.store()
    store.client.restore_experiment(store.experiment_id)
    assert blank.store().experiment_id == store.experiment_id


def test_how_to_see_a_run_names_the_store_the_experiment_and_the_run(blank):
    store = blank.store()
    # `mlflow run` puts its runs into an experiment of its own.
    other = store.client.create_experiment("elsewhere")
    run_id = store.client.create_run(other).info.run_id
    command, address = store.how_to_see(run_id).splitlines()
    assert command == f"mlflow ui --backend-store-uri {blank.uri}"
    assert (
        address
        == f"http://127.0.0.1:5000/#/experiments/{other}/runs/{run_id}?workflowType=machine_learning"
    )
    assert store.how_to_see(run_id, AUROC).endswith(address)
    own = runs.start(store, "a run", {"kind": "finetune"})
    view = f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/{AUROC.link}"
    assert store.how_to_see(own, AUROC).splitlines() == [command, view]


def test_views_are_made_with_the_experiment_and_renewed_unless_somebody_saved_them(blank):
    store = blank.store()

    def tags() -> dict[str, str]:
        return store.client.get_experiment(store.experiment_id).tags

    made = tags()
    keys = {view.key: f"mlflow.sharedViewState.{view.key}" for view in VIEWS}
    assert set(keys.values()) <= set(made)
    # What is current is not written again.
    blank.store()
    assert tags() == made
    older = json.loads(made[keys[AUROC.key]]) | {"name": "of an older version"}
    saved = json.loads(made[keys[TRIALS.key]]) | {"name": "mine", "updatedAt": 1}
    store.client.set_experiment_tag(store.experiment_id, keys[AUROC.key], json.dumps(older))
    store.client.set_experiment_tag(store.experiment_id, keys[TRIALS.key], json.dumps(saved))
    blank.store()
    names = {view.key: json.loads(tags()[keys[view.key]])["name"] for view in VIEWS}
    assert names == {view.key: view.name for view in VIEWS} | {TRIALS.key: "mine"}
