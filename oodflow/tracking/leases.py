"""Leases: of all processes that share a store, on any machines, one at a time works on a task.

The store is all that they share, and MLflow has no locks. A lease is a run of kind ``claim``. The
protocol needs only that a search finds every run that was made before the search began:

1. make a lease on the task;
2. look for other leases on it;
3. if there are any, delete the own one and come back later; otherwise the task is leased until
   the lease is deleted.

Of two processes, one makes its lease later than the other, looks after that, and finds the other's
lease: the two never both go ahead. No clocks are compared. Both may step back; the pauses before
they come back are of random length.

A process that dies leaves its lease behind. The lease holds a lock on a file of its machine, which
the system frees when the process dies: processes there see it at once and delete the lease. Other
machines see the heartbeat, a tag that changes every 10 s. A process that sees it unchanged for
60 s, by its own clock and in a store that answers, takes the holder for dead. So a machine that is
alive, but for a minute cannot reach a store that others reach, loses its lease. Only then can an
experiment be trained twice, and even then both processes continue the same run.
"""

import itertools
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from oodflow.errors import ResourceError, UserError
from oodflow.files import STATE_FOLDER, exclusively, is_locked
from oodflow.tracking import runs
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store, failing_fast

__all__ = ["PAUSE", "LeaseTaken", "Sighting", "leased", "leased_in_turn", "observe"]

HEARTBEAT = 10.0
"""Seconds between two changes of a lease's heartbeat."""
SILENCE = 60.0
"""Seconds of an unchanged heartbeat after which a lease on another machine is void."""
PAUSE = 1.0
"""Seconds between two looks at another process's lease."""


class LeaseTaken(Exception):
    """Another process holds the lease on the task; the text says which one."""

    def __init__(self, rival: RunInfo) -> None:
        super().__init__(f"{rival.tags['host']}, process {rival.tags['pid']}")
        self.lease = rival.run_id
        """Id of its run."""


@contextmanager
def leased(store: Store, task: str, name: str) -> Iterator[None]:
    """Hold the lease on ``task`` for as long as the context lasts; ``name`` is what people read.

    Raises LeaseTaken at once where another process holds it.
    """
    # Usually a holder is seen before a lease is made in vain.
    _step_back_before(_standing(store, task))
    with _own_lock() as file:
        own = ""
        try:
            own = runs.start(store, f"lease · {name}", _tags(task, file))
            others = [each for each in _standing(store, task) if each.run_id != own]
            if others:
                time.sleep(random.uniform(0, PAUSE))
            _step_back_before(others)
            with _heartbeat(store, own):
                yield
        finally:
            # Where the store is away, the free lock and the missing heartbeat show that it is void.
            with failing_fast(), suppress(Exception):
                if own:
                    store.client.delete_run(own)
                file.unlink()


@contextmanager
def leased_in_turn(store: Store, task: str, name: str) -> Iterator[None]:
    """Hold the lease for a short task; waits until its holder gives it back."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(leased(store, task, name))
                break
            except LeaseTaken as rival:
                _await_end(store, Sighting(rival.lease))
        yield


@dataclass(frozen=True)
class Sighting:
    """What was last seen of another process's lease."""

    lease: str
    """Id of its run."""
    heartbeat: str = ""
    silent: float = 0.0
    """Seconds for which the heartbeat was seen unchanged."""
    at: float = 0.0
    """When that was, by :func:`time.monotonic`."""


def observe(store: Store, before: Sighting) -> Sighting | None:
    """Look at a lease again; None once it is given back, or void and deleted."""
    now = time.monotonic()
    try:
        with failing_fast():
            lease = runs.get(store, before.lease)
    except UserError:
        return None
    except Exception:
        # A store that does not answer shows nothing about the holder: these seconds do not count.
        return replace(before, at=now)
    heartbeat = lease.tags["heartbeat"]
    # With rare looks the store may have been away unnoticed.
    unchanged = before.silent + min(now - before.at, HEARTBEAT)
    silent = unchanged if heartbeat == before.heartbeat else 0.0
    alive = _holder_lives(lease)
    if alive is None:
        alive = silent < SILENCE
    if not alive:
        _delete(store, lease)
        return None
    return Sighting(lease.run_id, heartbeat, silent, now)


def _await_end(store: Store, seen: Sighting | None) -> None:
    while seen:
        time.sleep(PAUSE)
        seen = observe(store, seen)


def _step_back_before(others: list[RunInfo]) -> None:
    if others:
        raise LeaseTaken(others[0])


def _standing(store: Store, task: str) -> list[RunInfo]:
    """All leases on a task, without those whose holder is known to be dead; these are deleted."""
    found = runs.find(store, {"kind": "claim", "task": task})
    void = [lease for lease in found if _holder_lives(lease) is False]
    for lease in void:
        _delete(store, lease)
    return [lease for lease in found if lease not in void]


def _tags(task: str, lock: Path) -> dict[str, str]:
    return {
        "kind": "claim",
        "task": task,
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "lock": str(lock),
        "heartbeat": "0",
        "registered": "false",
    }


@contextmanager
def _own_lock() -> Iterator[Path]:
    """A new file that this process has locked before others can know of it."""
    file = STATE_FOLDER.absolute() / f"{uuid.uuid4().hex}.claim"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusively(file))
        except OSError as error:
            raise ResourceError(f"cannot write {file}: {error.strerror}") from error
        yield file


def _holder_lives(lease: RunInfo) -> bool | None:
    """Whether a lease's lock is held; None where that cannot be seen from here."""
    if lease.tags["host"] != socket.gethostname():
        return None
    try:
        return is_locked(Path(lease.tags["lock"]))
    except OSError:
        return None


def _delete(store: Store, lease: RunInfo) -> None:
    """Delete a void lease, and its lock where that is on this machine."""
    with suppress(UserError):
        runs.get(store, lease.run_id)
        store.client.delete_run(lease.run_id)
    if lease.tags["host"] == socket.gethostname():
        Path(lease.tags["lock"]).unlink(missing_ok=True)


@contextmanager
def _heartbeat(store: Store, lease: str) -> Iterator[None]:
    """Change the lease's heartbeat again and again for as long as the context lasts."""
    over = threading.Event()

    def beat(count: int) -> None:
        with suppress(Exception):
            runs.set_tags(store, lease, {"heartbeat": str(count)})

    def keep_beating() -> None:
        for count in itertools.count(1):
            if over.wait(HEARTBEAT):
                return
            # A request may hang for minutes; the next one must not wait for it.
            threading.Thread(target=beat, args=(count,), daemon=True).start()

    threading.Thread(target=keep_beating, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()
