"""Claims: of all processes that share a store, on any machines, one at a time has a task in hand.

The store is all that they share, and MLflow has no locks. A claim is a run of kind ``claim``, and
it is enough that a run is found by whoever looks after it was made:

1. make a claim for the task;
2. look for other claims for it;
3. if there are any, delete the own one and come back later; otherwise the task is in hand until
   the claim is deleted.

Of two processes one makes its claim after the other has, looks later still, and finds the other's:
never do both go ahead. No clocks are compared. That both step back can happen; the pauses before
they come back are of random length.

Who dies leaves its claim behind. It holds a lock on a file of its machine, which the system frees
on any death: whoever looks there knows at once, and deletes the claim. Elsewhere its heartbeat
tells, a tag that changes every 10 s. Who sees it unchanged for 60 s, by its own clock and in a
store that answers, takes the holder for dead. So a machine that lives on, but for a minute cannot
reach a store that others reach, loses its claim: this alone makes an experiment be trained twice,
and even then both go on with one and the same run.
"""

import fcntl
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
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.tracking.store import Store, impatient
from oodflow.workflow.run_state import STATE_FOLDER

__all__ = ["PAUSE", "InOtherHands", "Sight", "claimed", "claimed_in_turn", "look"]

HEARTBEAT = 10.0
"""Seconds between two changes of a claim's heartbeat."""
SILENCE = 60.0
"""Seconds of an unchanged heartbeat after which a claim on another machine is void."""
PAUSE = 1.0
"""Seconds between two looks at somebody else's claim."""


class InOtherHands(Exception):
    """Another process has the task in hand; the text says which one."""

    def __init__(self, rival: RunInfo) -> None:
        super().__init__(f"{rival.tags['host']}, process {rival.tags['pid']}")
        self.claim = rival.run_id
        """Id of its claim."""


@contextmanager
def claimed(store: Store, task: str, name: str) -> Iterator[None]:
    """Have the ``task`` in hand for as long as the context lasts; ``name`` is what people read.

    Raises InOtherHands at once where another process has it.
    """
    # Mostly there is a holder or nobody: then no claim is made in vain.
    _step_back_before(_standing(store, task))
    file, handle = _own_lock()
    own = ""
    try:
        own = runs.start(store, f"claim · {name}", _tags(task, file))
        others = [each for each in _standing(store, task) if each.run_id != own]
        if others:
            time.sleep(random.uniform(0, PAUSE))
        _step_back_before(others)
        with _heartbeat(store, own):
            yield
    finally:
        # Where the store is away, the free lock and the silence tell that the claim is void.
        with impatient(), suppress(Exception):
            if own:
                store.client.delete_run(own)
            file.unlink()
        os.close(handle)


@contextmanager
def claimed_in_turn(store: Store, task: str, name: str) -> Iterator[None]:
    """The same for what takes moments: waits for whoever has it in hand."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(store, task, name))
                break
            except InOtherHands as rival:
                _await_end(store, Sight(rival.claim))
        yield


@dataclass(frozen=True)
class Sight:
    """What was seen of somebody else's claim."""

    claim: str
    """Id of its run."""
    heartbeat: str = ""
    silent: float = 0.0
    """Seconds for which the heartbeat was seen unchanged."""
    at: float = 0.0
    """When that was, by :func:`time.monotonic`."""


def look(store: Store, before: Sight) -> Sight | None:
    """Look at a claim again; None once it is given back, or void and deleted."""
    now = time.monotonic()
    try:
        with impatient():
            claim = runs.get(store, before.claim)
    except UserError:
        return None
    except Exception:
        # A store that does not answer says nothing of the holder: these seconds do not count.
        return replace(before, at=now)
    heartbeat = claim.tags["heartbeat"]
    # Who looks seldom may have missed that the store was away.
    unchanged = before.silent + min(now - before.at, HEARTBEAT)
    silent = unchanged if heartbeat == before.heartbeat else 0.0
    alive = _holder_lives(claim)
    if alive is None:
        alive = silent < SILENCE
    if not alive:
        _delete(store, claim)
        return None
    return Sight(claim.run_id, heartbeat, silent, now)


def _await_end(store: Store, sight: Sight | None) -> None:
    while sight:
        time.sleep(PAUSE)
        sight = look(store, sight)


def _step_back_before(others: list[RunInfo]) -> None:
    if others:
        raise InOtherHands(others[0])


def _standing(store: Store, task: str) -> list[RunInfo]:
    """All claims for a task, without those whose holder is known to be dead; these are deleted."""
    found = runs.find(store, {"kind": "claim", "task": task})
    void = [claim for claim in found if _holder_lives(claim) is False]
    for claim in void:
        _delete(store, claim)
    return [claim for claim in found if claim not in void]


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


def _own_lock() -> tuple[Path, int]:
    """A new file that this process has locked before anybody knows of it, and its handle."""
    file = STATE_FOLDER.absolute() / f"{uuid.uuid4().hex}.claim"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_CREAT | os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise ResourceError(f"cannot write {file}: {error.strerror}") from error
    return file, handle


def _holder_lives(claim: RunInfo) -> bool | None:
    """Whether a claim's lock is held; None where that cannot be seen from here."""
    if claim.tags["host"] != socket.gethostname():
        return None
    try:
        handle = os.open(claim.tags["lock"], os.O_RDWR)
    except OSError:
        return None
    try:
        # Shared: several may look at once.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def _delete(store: Store, claim: RunInfo) -> None:
    """Delete a void claim, and its lock where that is on this machine."""
    with suppress(UserError):
        runs.get(store, claim.run_id)
        store.client.delete_run(claim.run_id)
    if claim.tags["host"] == socket.gethostname():
        Path(claim.tags["lock"]).unlink(missing_ok=True)


@contextmanager
def _heartbeat(store: Store, claim: str) -> Iterator[None]:
    """Change the claim's heartbeat again and again for as long as the context lasts."""
    over = threading.Event()

    def beat(count: int) -> None:
        with suppress(Exception):
            runs.set_tags(store, claim, {"heartbeat": str(count)})

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
