"""The true cause of a store's failure, with its cure, and nothing secret."""

import http.server
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from mlflow.exceptions import MlflowException

from oodflow.errors import UserError
from oodflow.tracking import runs
from oodflow.tracking.causes import cause, explained
from oodflow.tracking.store import open_store


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """``opened(uri)`` is the line that opening a store there is refused with."""
    monkeypatch.chdir(tmp_path)

    def refuse(uri: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            open_store()
        assert time.monotonic() - began < 15
        line = str(caught.value)
        assert "\n" not in line
        return line

    return refuse


@pytest.fixture
def answering():
    """``answering(code)`` is the address of a server that answers everything with this code."""
    servers = []

    def start(code: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://bob:s3cr3t@127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "said"),
    [(401, ["401", "credentials"]), (403, ["403", "permission"]), (404, ["404"]), (500, ["500"])],
)
def test_what_a_server_answers_is_said_without_the_password(opened, answering, code, said):
    line = opened(answering(code))
    assert [word for word in said if word not in line] == []
    assert "s3cr3t" not in line and "bob" not in line


def test_a_folder_of_runs_is_refused_in_the_words_of_mlflow(opened):
    assert "MLFLOW_ALLOW_FILE_STORE" in opened("./mlruns")


def test_a_driver_that_is_lacking_is_named(opened):
    line = opened("mysql://bob:s3cr3t@127.0.0.1:1/x")
    assert "install the driver that brings the Python module MySQLdb" in line


def test_a_database_that_does_not_answer_is_not_asked_for_minutes(opened):
    pytest.importorskip("psycopg")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = opened(f"postgresql://bob:pa@s3cr3t@127.0.0.1:{port}/x")
    assert "s3cr3t" not in line and "bob" not in line
    assert "efused" in opened(f"postgresql://bob:x@127.0.0.1:{port}/x")


def test_an_older_database_is_to_be_upgraded(opened, blank):
    with sqlite3.connect(blank.folder / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '181f10493468'")
    assert "mlflow db upgrade" in opened(blank.uri)


def test_a_damaged_file_is_called_so(opened, tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database" * 1000)
    assert "not a database" in opened(f"sqlite:///{tmp_path}/x.db")


SETPRIV = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
UNPRIVILEGED = SETPRIV if os.geteuid() == 0 and shutil.which("setpriv") else []
"""Before a command takes root's right to read and write everywhere from it."""


@pytest.mark.long
@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_permission_that_is_lacking_is_not_called_damage(blank, tmp_path, place):
    """In a process without root's right to write everywhere."""
    folder = tmp_path / "closed"
    folder.mkdir()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    if place == "file":
        (folder / "mlflow.db").write_bytes((blank.folder / "mlflow.db").read_bytes())
        (folder / "mlflow.db").chmod(0)
    folder.chmod(0o555)
    try:
        done = subprocess.run(
            [*UNPRIVILEGED, sys.executable, "-m", "oodflow", "runs", "list"],
            env=blank.environment(MLFLOW_TRACKING_URI=uri),
            cwd=folder,
            capture_output=True,
            text=True,
        )
    finally:
        folder.chmod(0o755)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "right to write" in done.stderr and "damage" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("closed", ["checkpoints/model.safetensors", "checkpoints"])
def test_weights_that_may_not_be_read_are_not_called_deleted(trained, closed):
    """In a process without root's right to read everywhere."""
    store = trained.store()
    run = runs.find(store, {"kind": "finetune"})[0]
    place = trained.folder / "mlruns" / store.experiment_id / run.run_id / "artifacts" / closed
    mode = place.stat().st_mode
    place.chmod(0)
    try:
        done = subprocess.run(
            [*UNPRIVILEGED, sys.executable, "-m", "oodflow", "sample", run.run_id],
            env=trained.environment(),
            cwd=trained.folder,
            capture_output=True,
            text=True,
        )
    finally:
        place.chmod(mode)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"{place}: Permission denied" in done.stderr
    assert "deleted" not in done.stderr and "damage" not in done.stderr


def test_a_version_that_holds_no_model_of_ours_is_one_line(trained):
    """As ``mlflow.register_model`` makes them of any folder."""
    store = trained.store()
    report = runs.find(store, {"kind": "report"})[0].run_id
    for name, source, run_id in (
        ("folder", str(trained.folder), None),
        ("figures", f"runs:/{report}/figures", report),
    ):
        store.client.create_registered_model(name)
        store.client.create_model_version(name, source, run_id)
        for command in ("sample", "score", "detect"):
            more = [] if command == "sample" else [str(trained.folder)]
            more += ["--out", "s.csv"] if command == "score" else []
            outcome = trained.oodflow(command, f"models:/{name}/1", *more)
            assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
            known = "holds no" if name == "figures" or command == "detect" else "without a run"
            assert known in outcome.err


def test_a_password_that_a_driver_takes_for_a_host_is_hidden():
    error = Exception('could not translate host name "s3cr3t@db" to address')
    assert "s3cr3t" not in cause(error, "postgresql://bob:a@s3cr3t@db/x")


def test_only_a_failure_of_the_store_is_explained_in_place_of_a_traceback():
    assert "permission" in explained(MlflowException("... failed with error code 403 != 200"))
    assert explained(ValueError("timed out")) == ""
    assert explained(MlflowException("a bug")) == ""
