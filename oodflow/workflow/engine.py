"""Carries out tasks one after the other: finds what is there, does the rest, outlives failures.

Another engine, such as workers that take tasks from a queue, needs of this :func:`look_up` and
:func:`attempt` alone: a task is a plain value, and its ``needs`` and ``after`` say when it may run.
"""

import time
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from oodflow import console
from oodflow.errors import UserError
from oodflow.workflow.costs import cost, duration, kind_of, known_costs, units
from oodflow.workflow.session import Session
from oodflow.workflow.task_runs import (
    EACH_TIME,
    INTERRUPTED,
    MISSING,
    THERE,
    absent_datasets,
    device_name,
    locate,
    run_task,
)
from oodflow.workflow.tasks import Task, with_runs

__all__ = ["ABSENT", "FAILED", "WAITING", "Outcome", "attempt", "carry_out", "look_up", "survey"]

WAITING, ABSENT, FAILED = "waiting", "absent", "failed"


@dataclass(frozen=True)
class Outcome:
    """What there is of a task, or what has become of it."""

    task: Task
    state: str
    """there, interrupted, missing, each time, waiting, absent or failed."""
    run_id: str = ""
    reason: str = ""
    """One line that says why it is waiting, absent or failed, or missing and bound to fail."""
    details: str = ""
    """The traceback of a failure that is not the user's."""


def survey(session: Session, tasks: Iterable[Task]) -> dict[str, Outcome]:
    """What there is of each task, by its name; nothing is trained."""
    outcomes: dict[str, Outcome] = {}
    for task in tasks:
        outcomes[task.name] = look_up(session, task, outcomes)
    return outcomes


def look_up(session: Session, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """What there is of a task, given that of all those that it needs."""
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
        # Whoever does the task meets the error again, and reports it as its failure.
        return Outcome(task, MISSING, reason=_one_line(error))
    return Outcome(task, found.state, found.run_id)


def attempt(session: Session, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    """Do a task whose needs are there; any failure but an interruption is an outcome too."""
    try:
        return _done(session, task, outcomes)
    except UserError as error:
        return Outcome(task, FAILED, reason=_one_line(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        return Outcome(task, FAILED, reason=reason, details=traceback.format_exc())


def carry_out(
    session: Session,
    tasks: Sequence[Task],
    wanted: Collection[str] | None = None,
    *,
    keep_going: bool = True,
) -> dict[str, Outcome]:
    """Do the tasks that are not there yet, in their order; what has become of each, by its name.

    Of all tasks only the ``wanted`` ones are done, by their names. With ``keep_going`` the failure
    of a task keeps those from being done that build on it, without it the error is raised.
    """
    outcomes = survey(session, tasks)
    known = known_costs(session.store, device_name(session.device))
    chosen = [task for task in tasks if wanted is None or task.name in wanted]
    there = sum(outcomes[task.name].state == THERE for task in chosen)
    if there:
        console.say(f"{there} of {len(chosen)} tasks are there already")
    begin = time.monotonic()
    for number, task in enumerate(chosen, 1):
        # What was there is there; the rest may have changed by what was done since.
        if outcomes[task.name].state != THERE:
            outcomes[task.name] = look_up(session, task, outcomes)
        if outcomes[task.name].state not in (MISSING, INTERRUPTED, EACH_TIME):
            continue
        started = time.monotonic()
        left = [each for each in chosen[number - 1 :] if outcomes[each.name].state != THERE]
        place = f"[{number}/{len(chosen)}] {task.entry_point} · {task.name}"
        console.say(place + _times(started - begin, *cost(left, known)))
        do = attempt if keep_going else _done
        outcomes[task.name] = do(session, task, outcomes)
        if outcomes[task.name].state == FAILED:
            console.error(f"{task.name}: {outcomes[task.name].reason}")
        else:
            known[kind_of(task)] = (time.monotonic() - started) / units(task)
    return outcomes


def _done(session: Session, task: Task, outcomes: Mapping[str, Outcome]) -> Outcome:
    own = with_runs(task, _run_ids(task, outcomes))
    return Outcome(task, THERE, run_task(_session_of(session, task), own))


def _session_of(session: Session, task: Task) -> Session:
    """A session that forgets its models with its task: those of a whole plan would fill a GPU.

    The run that ``mlflow run`` has made becomes that of the report and of nothing else.
    """
    claimed = session.claimed if task.entry_point == "report" else ""
    return Session(session.store, session.data_dir, session.device, claimed)


def _run_ids(task: Task, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcomes[name].run_id for name in task.needs.values()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _times(spent: float, left: float, unknown: int) -> str:
    """How long it has taken, and how long the rest takes as far as that is known."""
    words = [f"{duration(spent)} so far"] if spent >= 1 else []
    if left >= 1:
        words.append(f"{'more than' if unknown else 'about'} {duration(left)} left")
    return f"   ({', '.join(words)})" if words else ""
