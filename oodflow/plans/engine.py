"""Runs the tasks of a plan, each after those it depends on, and skips those already done.

Tasks are run by :class:`Workers`: by this process, one after the other, by processes beside it
(:mod:`oodflow.plans.local_workers`), or on a cluster (:mod:`oodflow.plans.ray_engine`). Any number
of callers may run plans on one store at the same time: a task that another process holds the lease
of is deferred until that process has ended it.
"""

import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from oodflow import console
from oodflow.console import duration
from oodflow.errors import ResourceError, UserError
from oodflow.plans.costs import cost, kind_of, known_costs, units
from oodflow.plans.task_runs import (
    EACH_TIME,
    INTERRUPTED,
    MISSING,
    THERE,
    absent_datasets,
    identity,
    locate,
    run_task,
)
from oodflow.plans.tasks import SUBJECT, TRAINING, Task, with_runs
from oodflow.tracking import runs
from oodflow.tracking.leases import PAUSE, LeaseTaken, Sighting, leased, observe
from oodflow.tracking.store import Store
from oodflow.workflow.seeds import group_seeds
from oodflow.workflow.session import Session, computing
from oodflow.workflow.training_plan import device_name

__all__ = [
    "ABSENT",
    "FAILED",
    "WAITING",
    "Outcome",
    "Workers",
    "attempt",
    "carry_out",
    "in_this_process",
    "look_up",
    "survey",
]

WAITING, ABSENT, FAILED = "waiting", "absent", "failed"

LEASED = "leased"
"""State of a task whose lease another process holds: it is tried again before the plan ends."""


@dataclass(frozen=True)
class Outcome:
    """The state of a task, before or after it was run."""

    task: Task
    state: str
    """there, interrupted, missing, each time, waiting, absent, failed or leased."""
    run_id: str = ""
    """The task's run; for a leased task the run of the lease."""
    reason: str = ""
    """One line that says why it is waiting, absent or failed, or missing and bound to fail.

    For a leased task it names the holder; for one that is there, that another process made it.
    """
    details: str = ""
    """The traceback of a failure that is not the user's."""
    mendable: bool = False
    """Whether the user can fix the failure: the input was wrong."""


class Workers(Protocol):
    """Something that runs tasks."""

    @property
    def size(self) -> int:
        """How many tasks run at once."""
        ...

    def begin(self, task: Task, outcomes: Mapping[str, Outcome]) -> None:
        """Start a task whose dependencies are done."""
        ...

    def over(self) -> list[Outcome]:
        """The outcomes of tasks that have ended; waits for one, but not for long."""
        ...


def survey(session: Session, tasks: Iterable[Task]) -> dict[str, Outcome]:
    """The state of each task, by its name; nothing is trained."""
    outcomes: dict[str, Outcome] = {}
    for task in tasks:
        outcomes[task.name] = look_up(session, task, outcomes)
    return outcomes


def look_up(session: Session, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """The state of a task, given the states of its dependencies."""
    absent = absent_datasets(session, task)
    if absent:
        reason = "; ".join(f"{name}: {how}" for name, how in absent.items())
        return Outcome(task, ABSENT, reason=reason)
    lacking = [name for name in task.needs.values() if outcomes[name].state != THERE]
    if lacking:
        return Outcome(task, WAITING, reason=f"builds on {', '.join(dict.fromkeys(lacking))}")
    try:
        found = locate(_session_of(session, task), with_runs(task, _run_ids(task, outcomes)))
    except Exception as error:
        # The worker that runs the task meets the error again and reports it as the failure.
        return Outcome(task, MISSING, reason=_one_line(error))
    return Outcome(task, found.state, found.run_id)


def attempt(session: Session, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """Run a task whose dependencies are done; any failure but an interruption is an outcome."""
    try:
        return _done(session, task, outcomes)
    except UserError as error:
        mendable = error.exit_code == UserError.exit_code
        return Outcome(task, FAILED, reason=_one_line(error), mendable=mendable)
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        return Outcome(task, FAILED, reason=reason, details=traceback.format_exc())


@dataclass
class _ThisProcess:
    """Runs each task within ``begin``, one at a time."""

    session: Session
    size: int = 1
    _done: list[Outcome] = field(default_factory=list)

    def begin(self, task: Task, outcomes: Mapping[str, Outcome]) -> None:
        self._done.append(attempt(self.session, task, outcomes))

    def over(self) -> list[Outcome]:
        return [self._done.pop()]


@contextmanager
def in_this_process(session: Session) -> Iterator[Workers]:
    """This process as the only worker."""
    yield _ThisProcess(session)


def carry_out(
    session: Session,
    tasks: Sequence[Task],
    workers: Workers,
    wanted: Collection[str] | None = None,
    *,
    keep_going: bool = True,
) -> dict[str, Outcome]:
    """Run the tasks that are not done yet, in order; returns the outcome of each, by its name.

    Only the tasks named in ``wanted`` are run. Tasks that depend on a failed one are not run;
    without ``keep_going`` its error is raised. At the end, trainings that differ only in their seed
    are nested in a parent run with their mean and standard deviation.
    """
    outcomes = survey(session, tasks)
    known = known_costs(session.store, device_name(session.device))
    chosen = [task for task in tasks if wanted is None or task.name in wanted]
    places = {task.name: f"[{n}/{len(chosen)}]" for n, task in enumerate(chosen, 1)}
    # Finished tasks stay finished; the others may be done meanwhile, here or elsewhere.
    left = {task.name: task for task in chosen if outcomes[task.name].state != THERE}
    if len(left) < len(chosen):
        console.say(f"{len(chosen) - len(left)} of {len(chosen)} tasks are done already")
    begin = time.monotonic()
    started: dict[str, float] = {}
    rivals: dict[str, Sighting] = {}
    while left:
        rivals = {
            name: now for name, seen in rivals.items() if (now := observe(session.store, seen))
        }
        for task in tuple(left.values()):
            if len(started) >= workers.size:
                break
            if task.name in rivals or not _may_begin(task, left, started):
                continue
            outcomes[task.name] = look_up(session, task, outcomes)
            if outcomes[task.name].state not in (MISSING, INTERRUPTED, EACH_TIME):
                del left[task.name]
                continue
            seconds, unknown = cost(left.values(), known)
            times = _times(time.monotonic() - begin, seconds / workers.size, unknown)
            console.say(f"{places[task.name]} {task.entry_point} · {task.name}{times}")
            started[task.name] = time.monotonic()
            workers.begin(task, outcomes)
        if not started and rivals:
            time.sleep(PAUSE)
        for outcome in workers.over() if started else ():
            name, task = outcome.task.name, outcome.task
            seconds = time.monotonic() - started.pop(name)
            if outcome.state == LEASED:
                console.say(f"{name}: {outcome.reason} is working on it; it is tried again later")
                rivals[name] = Sighting(outcome.run_id)
                continue
            outcomes[name] = outcome
            del left[name]
            if outcome.state == FAILED:
                if not keep_going:
                    _raise(outcome)
                console.error(f"{name}: {outcome.reason}")
            elif outcome.reason:
                console.say(f"{name}: {outcome.reason}")
            else:
                # A report ends with how to see it, and nothing is to come after that.
                if task.entry_point != "report":
                    console.say(f"{name}: done in {duration(seconds)}")
                known[kind_of(task)] = seconds / units(task)
    _group_seeds(session.store, tasks, outcomes)
    return outcomes


def _group_seeds(store: Store, tasks: Iterable[Task], outcomes: Mapping[str, Outcome]) -> None:
    """Make a parent run with mean and deviation for each setting that has several seeds."""
    settings: dict[tuple[str, ...], list[str]] = {}
    for task in tasks:
        outcome = outcomes[task.name]
        if task.entry_point in TRAINING and outcome.state == THERE:
            setting = (task.step, *(f"{name}={value}" for name, value in task.each.items()))
            settings.setdefault(setting, []).append(outcome.run_id)
    for run_ids in settings.values():
        if len(run_ids) > 1:
            group_seeds(store, [runs.get(store, run_id) for run_id in run_ids])


def _raise(failed: Outcome) -> NoReturn:
    """The error behind a failed task."""
    if failed.details:
        raise RuntimeError(f"{failed.task.name} failed\n{failed.details}")
    raise (UserError if failed.mendable else ResourceError)(failed.reason)


def _may_begin(task: Task, left: Mapping[str, Task], started: Collection[str]) -> bool:
    """Whether all that a task builds on or follows has ended, and nothing evaluates its model."""
    subjects = {left[name].needs.get(SUBJECT) for name in started} - {None}
    before = {*task.needs.values(), *task.after}
    return not (task.name in started or before & left.keys() or task.needs.get(SUBJECT) in subjects)


def _done(session: Session, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    own, session = with_runs(task, _run_ids(task, outcomes)), _session_of(session, task)
    try:
        with leased(session.store, identity(session, own), task.name):
            found = locate(session, own)
            if found.state == THERE:
                return Outcome(task, THERE, found.run_id, "made by another process meanwhile")
            return Outcome(task, THERE, run_task(session, own))
    except LeaseTaken as rival:
        return Outcome(task, LEASED, rival.lease, str(rival))


def _session_of(session: Session, task: Task) -> Session:
    """A session for one task, since the models of a whole plan would fill a GPU.

    Only the report uses the run that ``mlflow run`` has made.
    """
    project_run = session.project_run if task.entry_point == "report" else ""
    how = computing(task.options)
    return Session(session.store, session.data_dir, session.device, project_run, *how)


def _run_ids(task: Task, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcomes[name].run_id for name in task.needs.values()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _times(spent: float, left: float, unknown: int) -> str:
    """The time so far, and the time left as far as it is known."""
    words = [f"{duration(spent)} so far"] if spent >= 1 else []
    if left >= 1:
        words.append(f"{'more than' if unknown else 'about'} {duration(left)} left")
    return f"   ({', '.join(words)})" if words else ""
