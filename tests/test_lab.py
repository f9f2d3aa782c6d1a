"""A lab's infrastructure: PostgreSQL, and on it an MLflow server with passwords, prefix and files.

Run where PostgreSQL is installed. Its data are in a folder of the test; it listens on loopback.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import waited_for

from oodflow.tracking import runs
from oodflow.tracking.store import open_store

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed"),
]
pytest.importorskip("psycopg")

PASSWORD = "not-shown-anywhere-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Lab:
    """Addresses of a lab, and the environment that a member of it sets."""

    database: str
    uri: str

    @property
    def environment(self) -> dict[str, str]:
        login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        return {"MLFLOW_TRACKING_URI": self.uri, **login}


@pytest.fixture(scope="module")
def postgresql():
    """Address of a PostgreSQL server without the name of a database; it refuses to be root's.

    Not in the folders of pytest, which no other user may enter.
    """
    folder, user = Path(tempfile.mkdtemp(prefix="oodflow-postgresql-")), []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    binaries, port = BINARIES[-1].parent, free_port()

    def call(program: str, *words: str) -> None:
        subprocess.run([*user, binaries / program, *words], check=True, cwd="/",
                       stdout=subprocess.DEVNULL)  # fmt: skip

    call("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "lab", "--no-sync")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    call("pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-w", "-o", options, "start")
    for name in ("mlflow", "optuna"):
        call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "lab", name)
    yield f"postgresql://lab@127.0.0.1:{port}"
    call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lab(postgresql, tmp_path_factory):
    """An MLflow server on it: it asks for a password, keeps the files, and has a path prefix."""
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
    )
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"{postgresql}/mlflow", "--static-prefix", "/lab"]
    words += ["--artifacts-destination", f"{folder}/files", "--app-name", "basic-auth"]
    own = {"MLFLOW_AUTH_CONFIG_PATH": f"{folder}/auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    own |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=folder, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    uri = f"http://127.0.0.1:{port}/lab"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200
        except (OSError, urllib.error.URLError):
            return False

    try:
        assert waited_for(answers, 240), (folder / "log").read_text()[-2000:]
        yield Lab(postgresql, uri)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def results(store) -> dict:
    """(kind, dataset, seed) → the metrics of each registered training, without durations."""
    found = runs.find(store, {"registered": "true"})
    trained = [run for run in found if run.tags["kind"] in ("train", "finetune")]
    names = [(run.tags["kind"], run.tags["dataset"], run.tags["seed"]) for run in trained]
    assert max(Counter(names).values()) == 1, names
    return dict(zip(names, (run.metrics for run in trained), strict=True))


@pytest.fixture
def member(lab, monkeypatch):
    """This process as a member of the lab."""
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    return open_store()


def test_a_training_has_the_numbers_of_the_embedded_store_and_shows_no_password(
    lab, member, blank_workspace, tiny, tmp_path
):
    alone, shared = (blank_workspace.clone(tmp_path / name) for name in ("alone", "shared"))
    words = ("train", "--dataset", "sketch-general", *tiny)
    first, second = alone.oodflow(*words), shared.oodflow(*words, **lab.environment)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    found = results(member)
    assert len(found) == 1 and found == results(alone.store())
    assert PASSWORD not in second.out + second.err
    assert f"see it: {lab.uri}/#/experiments/" in second.out
    # The server keeps the files; this folder has none.
    assert not (shared.folder / "mlruns").exists()
    [run] = [run for run in runs.find(member, {"kind": "train"}) if run.registered]
    with runs.artifact(member, run.run_id, "checkpoints/model.safetensors") as file:
        assert file.stat().st_size > 1000


def test_what_the_lab_refuses_is_said_with_its_cure(lab, blank):
    wrong = {"MLFLOW_TRACKING_PASSWORD": "wrong-1"}
    outcome = blank.oodflow("runs", "list", **(lab.environment | wrong))
    assert outcome.code == 2 and "MLFLOW_TRACKING_PASSWORD" in outcome.err
    direct = f"{lab.database}/nothing".replace("lab@", f"lab:{PASSWORD}@")
    outcome = blank.oodflow("runs", "list", MLFLOW_TRACKING_URI=direct)
    assert outcome.code == 2 and "createdb" in outcome.err and PASSWORD not in outcome.err


def test_a_listing_takes_two_seconds_of_a_processor_at_most(lab, member):
    run_id = runs.start(member, "one", {"kind": "many"})
    runs.log_metrics(member, run_id, {f"auroc/set-{i}/raw": 0.5 for i in range(60)})
    import psycopg

    with psycopg.connect(f"{lab.database}/mlflow") as database:
        for table in ("runs", "tags", "latest_metrics"):
            columns = database.execute(
                "select column_name from information_schema.columns where table_name = %s "
                "and table_schema = 'public' and is_generated = 'NEVER'",
                (table,),
            )
            names = [f'"{name}"' for (name,) in columns]
            new = [name if name != '"run_uuid"' else "lpad(g::text, 32, '0')" for name in names]
            database.execute(
                f"insert into {table} ({','.join(names)}) select {','.join(new)} from {table}, "
                "generate_series(1, 99) g where run_uuid = %s",
                (run_id,),
            )
    began = time.process_time()
    found = runs.find(member, {"kind": "many"})
    assert len(found) == 100 and all(len(run.metrics) == 60 for run in found)
    assert time.process_time() - began < 2
