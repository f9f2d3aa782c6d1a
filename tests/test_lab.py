"""A lab's infrastructure: PostgreSQL, and on it an MLflow server with passwords, prefix and files.

Run where PostgreSQL is installed. Its data are in a folder of the test; it listens on loopback.
"""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from conftest import TINY, Server, waited_for
from plans.processes import marked, trainers
from werkzeug.security import generate_password_hash

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


@dataclass
class Lab(Server):
    """The lab's MLflow server, and the environment that a member of the lab sets."""

    database: str = ""

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
    folder = tmp_path_factory.mktemp("lab")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
    )
    options = {
        "--backend-store-uri": f"{postgresql}/mlflow",
        "--static-prefix": "/lab",
        "--app-name": "basic-auth",
    }
    own = {"MLFLOW_AUTH_CONFIG_PATH": f"{folder}/auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    server = Lab(folder, options, own, database=postgresql)
    try:
        server.start()
        # Each request is checked against the hash: MLflow's own costs 0.1 s of a processor.
        cheap = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")
        with contextlib.closing(sqlite3.connect(folder / "auth.db")) as accounts, accounts:
            accounts.execute("update users set password_hash = ?", (cheap,))
        yield server
    finally:
        server.kill()


def results(store, among: Collection[str] | None = None) -> dict:
    """(kind, dataset, seed) → the metrics of each registered training, or of those ``among`` it."""
    found = runs.find(store, {"registered": "true"})
    found = [run for run in found if among is None or run.run_id in among]
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
    assert f"\n{lab.uri}/#/experiments/" in second.out
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


LONGER = ("--seeds", "7", "--steps", "240", "--report-every", "20")
TRAIN = ("train", "--dataset", "sketch-general", *TINY, *LONGER)
LEFT = {("oodflow.tracking.delivery", "LAST_WAIT"): 1.0}
"""The minute that the end of a training waits for the store, made shorter."""


@pytest.fixture(scope="module")
def away(lab, blank_workspace, fork, reports_of, tmp_path_factory):
    """A training whose server is killed for good, and the same one with the embedded store."""
    folder = tmp_path_factory.mktemp("away")
    gone, whole = (blank_workspace.clone(folder / name) for name in ("gone", "whole"))
    assert whole.oodflow(*TRAIN).code == 0
    command = fork(gone, TRAIN, LEFT, **lab.environment)
    command.when(lambda: len(reports_of(gone)) >= 1)
    lab.kill()
    try:
        assert command.ended() == 1
        assert "oodflow runs sync" in command.err and PASSWORD not in command.err
    finally:
        lab.start()
    return gone, whole


def test_a_run_made_while_the_server_was_gone_is_delivered_to_it_or_to_an_embedded_store(
    lab, member, away, blank_workspace, trained_run, tmp_path
):
    gone, whole = away
    expected = trained_run(whole.store())
    assert len(expected.history["train/bpd"]) == 12
    embedded = blank_workspace.clone(tmp_path / "embedded")
    shutil.copytree(gone.folder / ".oodflow", embedded.folder / ".oodflow")
    for workspace, store, variables in (
        (embedded, embedded.store(), {}),
        (gone, member, lab.environment),
    ):
        outcome = workspace.oodflow("runs", "sync", **variables)
        assert outcome.code == 0, outcome.err
        found = trained_run(store)
        found.equals(expected)
        assert found.run.metrics == expected.run.metrics
        assert not list(workspace.folder.glob(".oodflow/*/run.json"))


def test_a_run_of_an_embedded_store_is_delivered_to_the_lab(
    lab, member, blank, fork, state_of, tmp_path
):
    words = [word if word != "7" else "8" for word in TRAIN]
    command = fork(blank, words)
    # It dies while it is evaluated: its weights are there, and it is not registered.
    command.when(lambda: any(blank.folder.glob("mlruns/*/*/artifacts/checkpoints/*")))
    command.send(signal.SIGKILL)
    assert command.ended() == -signal.SIGKILL and state_of(blank)
    kept = blank.clone(tmp_path / "kept")
    for workspace, variables in ((kept, {}), (blank, lab.environment)):
        outcome = workspace.oodflow("runs", "sync", **variables)
        assert outcome.code == 0, outcome.err
    [[one], [other]] = (
        [run for run in runs.find(store, {"seed": "8"}) if run.registered]
        for store in (kept.store(), member)
    )
    assert one.metrics == other.metrics and one.tags["weights"] == other.tags["weights"]


TUNE = ("tune", *TINY, "--images", "16", "--steps", "60", "--report-every", "20", "--trials", "12")


def test_four_workers_of_a_study_on_postgresql_of_which_two_are_killed(
    lab, member, blank_workspace, fork, tmp_path
):
    words = ("train", "--dataset", "sketch-general", *TINY)
    workspace = blank_workspace.clone(tmp_path / "workspace")
    assert workspace.oodflow(*words, **lab.environment).code == 0
    storage = f"{lab.database}/optuna".replace("://", "+psycopg://")
    words = (*TUNE, "--storage", storage, "--study", "shared")
    workers = [fork(workspace, words, **lab.environment) for _ in range(4)]
    for number, victim in enumerate(workers[:2], 1):
        victim.when(lambda number=number: len(runs.find(member, {"kind": "trial"})) >= 3 * number)
        victim.send(signal.SIGKILL)
        assert victim.ended() == -signal.SIGKILL
    for worker in workers[2:]:
        assert worker.ended() == 0, worker.err
    study = optuna.load_study(study_name="shared", storage=storage)
    ended = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
    lost = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert len(ended) == 12 and len(lost) + 12 == len(study.trials) and len(lost) <= 2
    assert len({tuple(trial.params.values()) for trial in ended}) == 12
    # A worker may die when it has drawn the first of a trial's two parameters.
    for each in lost:
        assert any(each.params.items() <= trial.params.items() for trial in ended)
    [parent] = runs.find(member, {"kind": "tune"})
    best = max(trial.value for trial in ended if trial.state.name == "COMPLETE")
    assert parent.registered and parent.metrics["tune/best_auroc"] == best
    trials = {run.tags["trial"]: run for run in runs.find(member, {"kind": "trial"})}
    for trial in ended:
        assert trials[str(trial.number)].parent == parent.run_id
        if trial.state.name == "COMPLETE":
            assert trials[str(trial.number)].metrics["tune/auroc"] == trial.value


PLAN = """
title: shared
seeds: [1, 2, 3]
with: {depth: 1, hidden: 4, limit: 64, batch_size: 16, steps: 6, report_every: 3}
steps:
  - name: general
    entry_point: train
    with: {dataset: sketch-general}
    seeds: 1
  - name: finetuned
    entry_point: finetune
    with: {steps: 200, report_every: 20}
    each: {dataset: [sketch-shapes, sketch-letters]}
    from: {init: general}
"""


def killed_one(place) -> bool:
    """Kill one worker of the call there that has a training with a checkpoint; whether it had."""
    if any(place.folder.glob(".oodflow/*/training.safetensors")):
        for victim in trainers(place, marked(str(place.folder)))[:1]:
            os.kill(victim, signal.SIGKILL)
            return True
    return False


def test_six_workers_of_one_plan_of_which_two_are_killed(lab, member, blank_workspace, tmp_path):
    alone, *places = (blank_workspace.clone(tmp_path / name) for name in ("alone", "one", "two"))
    for place in (alone, *places):
        (place.folder / "plan.yaml").write_text(PLAN)
    words = ("reproduce", "--plan", "plan.yaml", "--workers")
    outcome = alone.oodflow(*words, "1")
    assert (outcome.code, outcome.err) == (0, "")
    before = {run.run_id for run in runs.find(member, {})}
    cores, calls = sorted(os.sched_getaffinity(0)), []
    for number, place in enumerate(places):
        # On one core each task has one thread; with more of them sums are rounded otherwise.
        start = ["taskset", "--cpu-list", str(cores[number % len(cores)]), sys.executable]
        mark = {"OODFLOW_TEST_MARK": str(place.folder), "OMP_NUM_THREADS": "1"}
        call = subprocess.Popen(
            [*start, "-m", "oodflow", *words, "3"],
            cwd=place.folder, env=place.environment(**mark, **lab.environment),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        calls.append(call)
    try:
        for place, call in zip(places, calls, strict=True):
            assert waited_for(lambda p=place, c=call: killed_one(p) or c.poll() is not None, 300)
        said = [call.communicate(timeout=300) for call in calls]
    finally:
        for place in places:
            for process in marked(str(place.folder)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    assert [(call.returncode, err) for call, (_, err) in zip(calls, said, strict=True)] == [
        (0, ""), (0, ""),
    ]  # fmt: skip
    assert ["its worker died (exit code -9)" in out for out, _ in said] == [True, True]
    made = [run for run in runs.find(member, {}) if run.run_id not in before]
    # What a killed worker has begun goes on where its state is, or is made anew by the other call.
    assert sum(not run.registered for run in made if run.tags["kind"] == "finetune") <= 2
    kinds = Counter(run.tags["kind"] for run in made)
    assert kinds["seeds"] == 2 and not kinds["claim"]
    one, other = results(alone.store()), results(member, {run.run_id for run in made})
    assert len(one) == 7 and other == one
