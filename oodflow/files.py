"""Files that processes share: locks, files replaced as a whole, folders that are synced."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "STATE_FOLDER",
    "caller_of_mlflow_run",
    "exclusively",
    "is_locked",
    "replaced",
    "sync_folder",
]

STATE_FOLDER = Path(".oodflow")
"""In the working folder: the state of unfinished runs, studies and leases on this machine."""


@contextmanager
def exclusively(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, or of a file, which is created where it is absent.

    The system frees it when its holder dies. Without ``wait``, BlockingIOError is raised at once
    where another process holds it. Raises OSError where the file cannot be created.
    """
    if path.is_dir():
        handle = os.open(path, os.O_RDONLY)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; OSError where there is no such file.

    Several processes may ask at once.
    """
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def replaced(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a sibling file to write; at the end it is synced and takes the place of ``path``.

    So the name holds the old content or the new, never a part of it. Where ``previous`` is given,
    the old content moves to that name; a crash between the two renamings leaves it there alone. An
    error leaves the old file as it is. One process at a time writes to a name. Raises OSError where
    nothing can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if previous and path.exists():
            path.replace(previous)
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renamings in a folder durable: until then they are in memory only."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


SHELLS = {"bash", "sh", "dash", "zsh", "nice", "env"}
"""Programs that may stand between ``mlflow run`` and the command that it runs."""

GIVEN_BY_MLFLOW = {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"}


def caller_of_mlflow_run() -> Path | None:
    """The working folder in which a person has called ``mlflow run``; None outside of that.

    A command of a project begins in the project's own folder. From a git address that is a clone
    which is forgotten, with all that is written there. Only Linux says where the caller is.
    """
    if not (os.environ.keys() >= GIVEN_BY_MLFLOW and Path("MLproject").is_file()):
        return None
    process = os.getppid()
    try:
        while (place := Path("/proc", str(process))) and process > 1:
            if (place / "comm").read_text().strip() not in SHELLS:
                called = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
                names = [Path(word).name for word in called[:3]]
                ours = any(name.startswith(("mlflow", "python")) for name in names)
                return (place / "cwd").readlink() if ours else None
            process = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass
    return None
