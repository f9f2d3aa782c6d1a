"""Tasks side by side on this machine: each in a process of its own, with its share of the cores.

Two processes with a thread each make 1.3 to 1.8 times the updates of one with two threads, since
the models of the quick preset leave most of a second core idle. How many threads a task has follows
from the plan alone, so that the numbers do not depend on when a worker happens to be free.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
"""New attempts at a task whose worker died."""
MOMENT = 1.0
"""Seconds that :meth:`_LocalWorkers.over` waits at most."""
PATIENCE = 60.0
"""Seconds that interrupted workers have to save their training and end."""
PRELOADED = ("oodflow.plans.worker", "mlflow.store.tracking.sqlalchemy_store")
"""What every worker needs: it is imported once, and each worker is a copy of that process."""


@contextmanager
def on_this_machine(
    session: Session, place: Place, tasks: Sequence[Task], workers: int | None
) -> Iterator[Workers]:
    """So many workers on this machine; for None one a core, and one alone on a GPU.

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
        local = _LocalWorkers(session, place, workers, threads_of(tasks, workers, cores), draw)
        try:
            yield local
        finally:
            local.stop()


def threads_of(tasks: Sequence[Task], workers: int, cores: int) -> dict[str, int]:
    """Threads of each task by its name: the cores, shared among the tasks of the same depth.

    The depth of a task is the number of tasks that have to be done one after the other before it.
    """
    depth: dict[str, int] = {}
    for task in tasks:
        before = {*task.needs.values(), *task.after}
        depth[task.name] = 1 + max((depth[name] for name in before), default=-1)
    side_by_side = Counter(depth.values())
    return {
        name: max(cores // min(workers, side_by_side[level]), 1) for name, level in depth.items()
    }


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
    threads: Mapping[str, int]
    draw: console.Board
    _context: multiprocessing.context.ForkServerContext = field(init=False)
    _running: list[_Running] = field(default_factory=list)
    _done: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def begin(self, task: Task, outcomes: Mapping[str, Outcome]) -> None:
        if task.entry_point == "report":
            # It belongs to this command, which may have been given a run for it.
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
            target=_work, args=(other, self.place, task, outcomes, self.threads[task.name])
        )
        process.start()
        other.close()
        self._running.append(_Running(task, outcomes, process, own, deaths))

    def _heard(self, each: _Running) -> Outcome | None:
        """What a worker says: its progress, or in the end the outcome; None before that."""
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
        """The end of a worker without an outcome: its task begins again, but not for ever."""
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
    """What a worker says last."""

    outcome: Outcome
    lines: str


def _work(
    connection: Connection,
    place: Place,
    task: Task,
    outcomes: Mapping[str, Outcome],
    threads: int,
) -> None:
    """Do a task in a process of its own, which ends when the one that started it does."""
    # Ctrl-C in a terminal is heard by the first process alone, which passes it on once.
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
