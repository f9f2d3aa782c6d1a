"""Workspaces for the tests of whole commands: a working folder and an MLflow store of its own."""

import contextlib
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        file = folder / "mlflow.db"
        with contextlib.closing(sqlite3.connect(file)) as database:
            ids = [run_id for (run_id,) in database.execute("select run_uuid from runs")]
            script = "\n".join(database.iterdump()).replace(str(self.folder), str(folder))
        for run_id in ids:
            new = uuid.uuid4().hex
            script = script.replace(run_id, new)
            for place in (*folder.glob(f"mlruns/*/{run_id}"), *folder.glob(f".oodflow/{run_id}")):
                place.rename(place.with_name(new))
        file.unlink()
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.executescript(script)
        return Workspace(folder, self.data)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a training that takes a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def blank_workspace(tmp_path_factory) -> Workspace:
    """A store without runs, to be cloned; the data folder is filled by who needs a dataset."""
    folder = tmp_path_factory.mktemp("blank")
    workspace = Workspace(folder, tmp_path_factory.mktemp("data"))
    workspace.store()
    return workspace


@pytest.fixture
def blank(blank_workspace, tmp_path) -> Workspace:
    """A store without runs, one for each test."""
    return blank_workspace.clone(tmp_path / "workspace")


@pytest.fixture(scope="session")
def quickstart(blank_workspace, tmp_path_factory) -> Iterator[tuple[Workspace, Outcome]]:
    """A workspace after a tiny ``oodflow main`` for two seeds, not to be changed; its outcome."""
    workspace = blank_workspace.clone(tmp_path_factory.mktemp("quickstart") / "workspace")
    outcome = workspace.oodflow("main", "--seeds", "1,2", *TINY)
    assert outcome.code == 0, outcome.err
    yield workspace, outcome


@pytest.fixture
def trained(quickstart, tmp_path) -> Workspace:
    """A copy of the quickstart's workspace, one for each test."""
    return quickstart[0].clone(tmp_path / "workspace")
