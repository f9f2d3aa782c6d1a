"""Tasks side by side on this machine: each in a process of its own, with its share of the cores.

Two processes with one thread each make 1.3 to 1.8 times the updates of one process with two, since
the models of the quick preset leave most of a second core idle, and a thread that waits for another
one on a busy machine waits long. The number of threads follows from the machine and the number of
workers alone, so that results do not depend on when a worker happens to be free.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from oodflow import console
from oodflow.errors import UserError
from oodflow.plans.engine import FAILED, Outcome, Workers, attempt, in_this_process
from oodflow.plans.tasks import Task
from oodflow.plans.worker import Place, work
from oodflow.workflow.session import Session

__all__ = ["on_this_machine", "threads_of"]

MOST = 8
"""Workers that ``auto`` starts at most: more cores become threads of the tasks."""
RETRIES = 2
"""Further attempts at a task whose worker died."""
MOMENT = 1.0
"""Seconds that :meth:`_LocalWorkers.over` waits at most."""
PATIENCE = 60.0
"""Seconds that interrupted workers have to save their training and end."""
PRELOADED = (
    "git",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "oodflow.plans.worker",
    # torch's optimisers import it when the first one is made, which takes seconds.
    "torch._dynamo",
)
"""Modules that every worker needs: they are imported once, and workers are forked from there."""


@contextmanager
def on_this_machine(session: Session, place: Place, workers: int | None) -> Iterator[Workers]:
    """So many workers on this machine; for None one per core (at most 8), and one on a GPU.

    A single worker is this process. Raises UserError for a number below 1.
    """
    cores = len(os.sched_getaffinity(0))
    if workers is None:
        workers = 1 if session.device.type != "cpu" else min(cores, MOST)
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    if workers == 1:
        with in_this_process(session) as alone:
            yield alone
        return
    with console.board() as draw:
        local = _LocalWorkers(session, place, workers, threads_of(workers, cores), draw)
        try:
            yield local
        finally:
            local.stop()


def threads_of(workers: int, cores: int) -> int:
    """Threads of each worker: an equal share of the cores, the same whatever else is under way.

    >>> threads_of(2, 2), threads_of(8, 32), threads_of(4, 2)
    (1, 4, 1)
    """
    return max(cores // workers, 1)


@dataclass(frozen=True)
class _Running:
    """A task under way."""

    task: Task
    outcomes: Mapping[str, Outcome]
    process: BaseProcess
    connection: Connection
    deaths: int


@dataclass
class _LocalWorkers:
    session: Session
    place: Place
    size: int
    threads: int
    draw: console.Board
    _context: multiprocessing.context.ForkServerContext = field(init=False)
    _running: list[_Running] = field(default_factory=list)
    _done: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def begin(self, task: Task, outcomes: Mapping[str, Outcome]) -> None:
        if task.entry_point == "report":
            # The report belongs to this command, for which `mlflow run` may have made a run.
            self._done.append(attempt(self.session, task, outcomes))
            return
        self._start(task, {name: outcomes[name] for name in task.needs.values()}, 0)

    def over(self) -> list[Outcome]:
        done, self._done = self._done, []
        if done:
            return done
        ready = wait([each.connection for each in self._running], MOMENT)
        for each in [each for each in self._running if each.connection in ready]:
            if outcome := self._heard(each):
                done.append(outcome)
        return done

    def stop(self) -> None:
        """Interrupt what is under way, as Ctrl-C would, and wait until it has been saved."""
        for each in self._running:
            if each.process.pid and each.process.is_alive():
                os.kill(each.process.pid, signal.SIGINT)
        if self._running:
            console.say("stopping the workers")
        for each in self._running:
            each.process.join(PATIENCE)
        self._running.clear()

    def _start(self, task: Task, outcomes: Mapping[str, Outcome], deaths: int) -> None:
        own, other = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(other, self.place, task, outcomes, self.threads)
        )
        process.start()
        other.close()
        self._running.append(_Running(task, outcomes, process, own, deaths))

    def _heard(self, each: _Running) -> Outcome | None:
        """Read a worker's messages: its progress is shown, its outcome is returned; None before."""
        name = each.task.name
        try:
            said = each.connection.recv()
        except (EOFError, OSError):
            return self._died(each)
        if not isinstance(said, _Finished):
            self.draw(name, *said)
            return None
        self._forget(each)
        for line in said.lines.splitlines():
            console.say(line)
        return said.outcome

    def _forget(self, each: _Running) -> None:
        self._running.remove(each)
        self.draw(each.task.name)
        each.process.join()
        each.connection.close()

    def _died(self, each: _Running) -> Outcome | None:
        """A worker has ended without an outcome: its task is tried again, a few times at most."""
        self._forget(each)
        deaths, code = each.deaths + 1, each.process.exitcode
        if deaths > RETRIES:
            reason = f"its worker died, {deaths} in all (exit code {code})"
            return Outcome(each.task, FAILED, reason=reason)
        console.say(
            f"{each.task.name}: its worker died (exit code {code}); retry {deaths} of {RETRIES}"
        )
        self._start(each.task, each.outcomes, deaths)
        return None


@dataclass(frozen=True)
class _Finished:
    """The last message of a worker."""

    outcome: Outcome
    lines: str


def _work(
    connection: Connection,
    place: Place,
    task: Task,
    outcomes: Mapping[str, Outcome],
    threads: int,
) -> None:
    """Run a task in a process of its own, which ends when the process that started it ends."""
    # Ctrl-C in a terminal is handled by the first process only, which passes it on once.
    os.setsid()
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines), console.listening(lambda *said: connection.send(said)):
        try:
            outcome = work(place, task, outcomes)
        except KeyboardInterrupt:
            os._exit(130)
    with contextlib.suppress(OSError):
        connection.send(_Finished(outcome, lines.getvalue()))


def _end_with_parent(connection: Connection) -> None:
    """Interrupt this process once nobody is at the other end any more."""
    with contextlib.suppress(EOFError, OSError):
        # Nothing is ever sent to a worker: this waits for the end.
        connection.recv()
    os.kill(os.getpid(), signal.SIGINT)
