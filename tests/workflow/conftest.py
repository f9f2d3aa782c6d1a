"""Real processes that start at once, a real MLflow server, and what a run has come to."""

import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from oodflow.tracking import runs
from oodflow.tracking.journal import Report, read_reports

IMPORTED = (
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "oodflow.workflow.quickstart",
    "oodflow.workflow.reproduce",
    "torch._dynamo",
)
"""What commands import late, and what takes seconds."""


def waited_for(happened: Callable[[], bool], seconds: float = 120) -> bool:
    """Whether something happens within so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@dataclass(frozen=True)
class Forked:
    """A command under way in a process of its own."""

    process: multiprocessing.process.BaseProcess
    workspace: object

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def when(self, happened: Callable[[], bool]) -> None:
        """Wait until something happens; the command must not have ended before."""
        assert waited_for(lambda: happened() or self.process.exitcode is not None)
        assert happened(), self.err

    def ended(self) -> int:
        """Its exit code, or minus the number of the signal that it died of."""
        self.process.join(120)
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def out(self) -> str:
        return (self.workspace.folder / "out.txt").read_text()

    @property
    def err(self) -> str:
        return (self.workspace.folder / "err.txt").read_text()


@pytest.fixture(scope="session")
def fork() -> Iterator[Callable[..., Forked]]:
    """``fork(workspace, words)`` starts a command without the seconds that imports take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    script = str(Path(__file__).with_name("forked.py"))
    started = []

    def start(workspace, words, constants=(), **variables: str) -> Forked:
        command = {
            "words": list(words),
            "folder": str(workspace.folder),
            "environment": workspace.environment(OMP_NUM_THREADS="1", **variables),
            "constants": dict(constants),
        }
        arguments = (script, {"command": command}, "__main__")
        process = context.Process(target=runpy.run_path, args=arguments)
        process.start()
        started.append(process)
        return Forked(process, workspace)

    yield start
    for process in started:
        process.kill()
        process.join()


@dataclass
class Server:
    """A real ``mlflow server`` on a free port, which can be killed and started again."""

    folder: Path
    port: int = 0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers; always on the same store and port."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
        }
        words = [word for option in options.items() for word in option]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert waited_for(self._answers), "the MLflow server does not start"

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return True
        except OSError:
            return False

    def send(self, number: int) -> None:
        """Send a signal to the server and its workers."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def server(blank_workspace, tmp_path_factory) -> Iterator[Server]:
    """A server with an empty store, not started yet. It keeps the artifacts itself."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(blank_workspace.folder / "mlflow.db", folder)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        where = "'mlflow-artifacts:/' || experiment_id"
        database.execute(f"update experiments set artifact_location = {where}")
        database.commit()
    server = Server(folder)
    yield server
    if server.process and server.process.poll() is None:
        server.kill()


@dataclass(frozen=True)
class Trained:
    """What one run came to: its weights, and each metric's values by step, as the store has it."""

    run: runs.RunInfo
    weights: Mapping
    history: Mapping[str, list[tuple[int, float]]]
    times: list[float]
    """When the reports were made, in seconds."""

    def equals(self, other: "Trained") -> None:
        """Assert that weights and histories are the same, bit for bit and in the same order."""
        assert self.weights.keys() == other.weights.keys()
        for name, tensor in other.weights.items():
            assert self.weights[name].equal(tensor), name
        assert self.history == other.history


@pytest.fixture(scope="session")
def trained_run() -> Callable[..., Trained]:
    """``trained_run(store)`` is what the only registered run of seed 7 came to."""

    def look(store) -> Trained:
        [run] = [run for run in runs.find(store, {"seed": "7"}) if run.registered]
        with runs.artifact(store, run.run_id, "checkpoints/model.safetensors") as path:
            weights = load_file(path)
        points = {
            name: store.client.get_metric_history(run.run_id, name)
            for name in run.metrics
            if name.startswith(("train/", "valid/"))
        }
        history = {name: [(each.step, each.value) for each in of] for name, of in points.items()}
        times = [each.timestamp / 1000 for each in points["valid/bpd"]]
        return Trained(run, weights, history, times)

    return look


@pytest.fixture(scope="session")
def state_of() -> Callable[..., Path | None]:
    """``state_of(workspace)`` is the folder of the only run under way there, or None."""
    return lambda workspace: next(
        (file.parent for file in (workspace.folder / ".oodflow").glob("*/lock")), None
    )


@pytest.fixture(scope="session")
def reports_of(state_of) -> Callable[..., list[Report]]:
    """``reports_of(workspace)`` are those in the journal of the only run under way there."""

    def read(workspace) -> list[Report]:
        folder = state_of(workspace)
        return read_reports(folder / "journal.jsonl") if folder else []

    return read
