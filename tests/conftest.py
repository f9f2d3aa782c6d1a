"""Workspaces for the tests of whole commands, real processes and a real MLflow server.

A workspace is a working folder and an MLflow store of its own.
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from oodflow.tracking.run_info import RunInfo

# Before torch is imported: tests run side by side, and what they compute is small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What this machine's packages ship is not there, so that defaults are the same everywhere.
os.environ["XDG_DATA_DIRS"] = "/nonexistent"

ROOT = Path(__file__).parents[1]

TINY = tuple(
    word
    for option in ("depth 1", "hidden 8", "limit 64", "batch-size 16", "steps 6", "report-every 3")
    for word in f"--{option}".split()
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """How ``mlflow run`` ended, what it printed, and the run that it had made."""

    workspace: "Workspace"
    code: int
    text: str
    run_id: str


@dataclass(frozen=True)
class Workspace:
    """A working folder with its MLflow store in SQLite, and the command line in it."""

    folder: Path
    data: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def environment(self, **variables: str) -> dict[str, str]:
        """Environment of a command here; the interpreter of the tests is first in PATH."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OODFLOW_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"MLFLOW_TRACKING_URI": self.uri, "OODFLOW_DATA": str(self.data), "PATH": path}
        return kept | own | {"MLFLOW_DISABLE_TELEMETRY": "true"} | variables

    def oodflow(self, *words: str, **variables: str) -> Outcome:
        """Run the command line in this process, which has torch and mlflow imported already."""
        from oodflow.cli import cli, guarded

        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(self.folder)
            for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
                patch.delenv(name, raising=False)
            for name, value in self.environment(**variables).items():
                patch.setenv(name, value)
            code = guarded(lambda: cli.main(list(words), "oodflow", standalone_mode=False))
        return Outcome(code, out.getvalue(), err.getvalue())

    def process(self, *words: str, **variables: str) -> subprocess.Popen:
        """Start ``python -m oodflow`` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "oodflow", *words],
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def mlflow_run(self, entry: str, **parameters: str) -> Project:
        """``mlflow run . -e ENTRY`` in a copy of the project's files; the package is installed."""
        for name in ("MLproject", "conda.yaml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        known = {run.info.run_id for run in self.all_runs()}
        words = [word for item in parameters.items() for word in ("-P", "=".join(item))]
        start = [sys.executable, "-m", "mlflow", "run", ".", "-e", entry, "--env-manager", "local"]
        done = subprocess.run(
            [*start, *words],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        text = done.stdout + done.stderr
        claimed = re.search(r"run with ID '(\w+)'", text) or re.search(r"\(ID '(\w+)'\)", text)
        assert claimed, text
        assert claimed[1] not in known
        return Project(self, done.returncode, text, claimed[1])

    def all_runs(self) -> list:
        """Every run of the store, in whichever experiment."""
        from mlflow.entities import ViewType

        client = self.store().client
        experiments = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
        return list(client.search_runs(experiments))

    def store(self):
        """The open store, for looking into it through oodflow and mlflow."""
        from oodflow.tracking.store import open_store

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            return open_store()

    def clone(self, folder: Path) -> "Workspace":
        """A copy that can be changed. Its runs get new ids, by which mlflow caches folders."""
        shutil.copytree(self.folder, folder)
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
            ids = [run_id for (run_id,) in database.execute("select run_uuid from runs")]
        new = {run_id: uuid.uuid4().hex for run_id in ids} | {str(self.folder): str(folder)}
        for run_id in ids:
            for place in (*folder.glob(f"mlruns/*/{run_id}"), *folder.glob(f".oodflow/{run_id}")):
                place.rename(place.with_name(new[run_id]))
        # A study in a database of its own names runs as well.
        for file in folder.glob("*.db"):
            with contextlib.closing(sqlite3.connect(file)) as database:
                script = "\n".join(database.iterdump())
            for old, other in new.items():
                script = script.replace(old, other)
            file.unlink()
            with contextlib.closing(sqlite3.connect(file)) as database:
                database.executescript(script)
        return Workspace(folder, self.data)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a training that takes a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)`` is a folder that all processes of a test run share.

    The first of them has it made by ``make(folder)`` while the others wait.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        from oodflow.files import exclusively

        folder, done = shared / name, shared / f"{name}.done"
        with exclusively(shared / f"{name}.lock"):
            if not done.exists():
                # What an attempt that failed has left.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def blank_workspace(made_once) -> Workspace:
    """A store without runs, to be cloned; the data folder is filled by who needs a dataset."""
    data = made_once("data", lambda folder: None)
    return Workspace(made_once("blank", lambda folder: Workspace(folder, data).store()), data)


@pytest.fixture
def blank(blank_workspace, tmp_path) -> Workspace:
    """A store without runs, one for each test."""
    return blank_workspace.clone(tmp_path / "workspace")


@pytest.fixture(scope="session")
def quickstart(blank_workspace, made_once) -> tuple[Workspace, Outcome]:
    """A workspace after a tiny ``oodflow main`` for two seeds, not to be changed; its outcome."""

    def make(folder: Path) -> None:
        workspace = blank_workspace.clone(folder / "workspace")
        outcome = workspace.oodflow("main", "--seeds", "1,2", "--workers", "1", *TINY)
        assert outcome.code == 0, outcome.err
        (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))

    folder = made_once("quickstart", make)
    outcome = Outcome(**json.loads((folder / "outcome.json").read_text()))
    return Workspace(folder / "workspace", blank_workspace.data), outcome


@pytest.fixture
def trained(quickstart, tmp_path) -> Workspace:
    """A copy of the quickstart's workspace, one for each test."""
    return quickstart[0].clone(tmp_path / "workspace")


IMPORTED = (
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "oodflow.plans.quickstart",
    "oodflow.plans.reproduce",
    "torch._dynamo",
    "tuning.command",
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
        return self._printed("out")

    @property
    def err(self) -> str:
        return self._printed("err")

    def _printed(self, name: str) -> str:
        file = self.workspace.folder / f"{name}-{self.process.pid}"
        return file.read_text() if file.exists() else ""


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
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options, or others than the usual ones."""
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.options.get('--static-prefix', '')}"

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
        words = [word for option in (options | self.options).items() for word in option]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert waited_for(self._answers, 240), "the MLflow server does not start"

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

    run: "RunInfo"
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
        from safetensors.torch import load_file

        from oodflow.tracking import runs

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
def reports_of(state_of) -> Callable[..., list]:
    """``reports_of(workspace)`` are those in the journal of the only run under way there."""

    def read(workspace) -> list:
        from oodflow.tracking.journal import read_reports

        folder = state_of(workspace)
        return read_reports(folder / "journal.jsonl") if folder else []

    return read
