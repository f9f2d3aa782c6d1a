"""``oodflow reproduce``: every run behind the tables and figures, as a plan says.

Trainings are found by their experiments' hashes, whichever command made them, so they belong to no
single call. The call's own run, of kind ``reproduce``, records the plan and the outcome of its
tasks.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from rich.table import Table

from oodflow import console
from oodflow.console import duration
from oodflow.data.catalog import agreeing, lookup
from oodflow.errors import UserError, unknown_name
from oodflow.models.device import busy
from oodflow.options import AUTO, ReproduceOptions, options_of
from oodflow.plans.costs import (
    Kind,
    cost,
    describe_kind,
    kind_of,
    known_costs,
    measure,
)
from oodflow.plans.engine import (
    ABSENT,
    FAILED,
    WAITING,
    Outcome,
    Workers,
    carry_out,
    survey,
)
from oodflow.plans.local_workers import on_this_machine
from oodflow.plans.plan import RunPlan, read_plan
from oodflow.plans.ray_engine import on_ray
from oodflow.plans.task_runs import EACH_TIME, INTERRUPTED, MISSING, THERE
from oodflow.plans.tasks import TRAINING, Task, expand
from oodflow.plans.worker import Place
from oodflow.tracking import runs
from oodflow.tracking.views import AUROC
from oodflow.workflow.planning import first_present
from oodflow.workflow.session import Session, open_session
from oodflow.workflow.training_plan import device_name

__all__ = ["command"]

LAID_OVER = ("preset", "depth", "hidden", "limit", "steps", "batch_size", "report_every")

OF_RAY = ("ray_address", "cpus", "gpus", "retries")
"""Options that mean nothing in one process."""

ALL = "all"

STATES = (THERE, INTERRUPTED, MISSING, WAITING, ABSENT, FAILED, EACH_TIME)


def command(chosen: ReproduceOptions) -> int:
    """Run a plan, or for a dry run show its state; the exit code is 1 unless all tasks are done."""
    plan = read_plan(chosen.plan)
    session = open_session(chosen)
    values = _general_sets(session, plan, chosen.general_set)
    tasks = expand(plan, seeds=chosen.seeds or (), values=values, overrides=_overrides(chosen))
    wanted = _wanted(plan, tasks, chosen.only)
    session, project_run = replace(session, project_run=""), session.project_run
    if chosen.dry_run:
        _show_dry_run(session, tasks, wanted)
        return 0
    tags = {"kind": "reproduce", "plan": plan.source, "registered": "false"}
    with ENGINES[chosen.engine](session, chosen) as workers:
        name = f"reproduce · {plan.title}"
        record = runs.start(session.store, name, tags, project_run=project_run)
        with runs.ended_on_error(session.store, record):
            runs.log_text(session.store, record, plan.text, "plan.yaml")
            outcomes = carry_out(session, tasks, workers, {task.name for task in wanted})
            made = [outcomes[task.name] for task in wanted]
            lacking = [each for each in made if each.state in (FAILED, WAITING, ABSENT)]
            _keep(session, record, made)
    runs.end(session.store, record, "FAILED" if lacking else "FINISHED")
    console.show(_by_step(made))
    if lacking:
        console.show(_reasons(lacking))
        counts = Counter(each.state for each in lacking)
        said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        console.error(f"{said} of {len(made)} tasks; fix the cause and repeat the same command")
    console.say(f"see it: {session.store.how_to_see(record, AUROC)}")
    return 1 if lacking else 0


Engine = Callable[[Session, ReproduceOptions], AbstractContextManager[Workers]]


def _here(session: Session, chosen: ReproduceOptions) -> AbstractContextManager[Workers]:
    for each in options_of(ReproduceOptions):
        if each.name in OF_RAY and getattr(chosen, each.name) != each.default:
            raise UserError(f"{each.name} is an option of engine ray; add --engine ray")
    return on_this_machine(session, Place.of(chosen), chosen.workers)


def _ray(session: Session, chosen: ReproduceOptions) -> AbstractContextManager[Workers]:
    if chosen.workers is not None:
        raise UserError("workers is an option of engine process; Ray knows what its machines have")
    return on_ray(session, chosen)


ENGINES: Mapping[str, Engine] = {
    "process": _here,
    "ray": _ray,
}
"""The workers of each engine; UserError before any run is made where there can be none."""


def _general_sets(session: Session, plan: RunPlan, given: str) -> dict[str, str]:
    """Values of ``$general`` and ``$general_grey``: the given set, the plan's, or a stand-in."""
    own = plan.values.get("general")
    if own is None:
        if given != AUTO:
            raise UserError(f"{plan.source} has no value general that general_set could replace")
        return {}
    name = lookup(own if given == AUTO else given).name
    if lookup(name).role != "general":
        raise UserError(f"{name} is not a general set; for a folder write folder:PATH?role=general")
    if given == AUTO and not session.present(name):
        # Every colour set of the paper has the same ones, in the order of their breadth.
        name = first_present(session, lookup("cifar10").generals) or name
        console.say(f"general set: {name}, since {own} is not there; general_set names another")
    return {
        key: value
        for key, value in (("general", name), ("general_grey", agreeing(name, 1)))
        if key in plan.values
    }


def _overrides(chosen: ReproduceOptions) -> dict[str, Any]:
    """The command's options that replace those of the plan."""
    given = {name: getattr(chosen, name) for name in LAID_OVER}
    laid = {name: value for name, value in given.items() if value is not None}
    laid |= {"out": chosen.out}
    # A plan may count in epochs, and only one of the two can be given.
    return laid | ({"epochs": None} if "steps" in laid else {})


def _wanted(plan: RunPlan, tasks: Sequence[Task], only: str) -> list[Task]:
    """The tasks of the steps that ``only`` names."""
    names = [step.name for step in plan.steps]
    chosen = names if only == ALL else [name.strip() for name in only.split(",")]
    for name in chosen:
        if name not in names:
            raise unknown_name(f"step of {plan.source}", name, names)
    return [task for task in tasks if task.step in chosen]


def _by_step(made: Iterable[Outcome], costs: Mapping[Kind, float] | None = None) -> Table:
    """How many tasks of each step are in which state; with ``costs`` the time of missing ones."""
    steps: dict[str, list[Outcome]] = {}
    for each in made:
        steps.setdefault(each.task.step, []).append(each)
    everything = [each for outcomes in steps.values() for each in outcomes]
    states = [state for state in STATES if any(each.state == state for each in everything)]
    columns = ("step", "entry point", "tasks", *states)
    table = Table(*columns, *(("training time",) if costs is not None else ()))
    table.columns[0].no_wrap = True
    rows = [(name, outcomes[0].task.entry_point, outcomes) for name, outcomes in steps.items()]
    for name, entry_point, outcomes in [*rows, ("all", "", everything)]:
        counts = Counter(each.state for each in outcomes)
        cells = [str(counts[state]) if counts[state] else "" for state in states]
        if costs is not None:
            cells.append(_time(outcomes, costs))
        table.add_row(name, entry_point, str(len(outcomes)), *cells)
        table.rows[-1].end_section = name == rows[-1][0]
    return table


def _time(outcomes: Iterable[Outcome], costs: Mapping[Kind, float]) -> str:
    """Time of the missing trainings, as far as it is known."""
    seconds, _ = cost((each.task for each in outcomes if each.state != THERE), costs)
    return duration(seconds) if seconds else ""


def _reasons(lacking: Iterable[Outcome]) -> Table:
    table = Table("task", "state", "why", title="Not there")
    for each in lacking:
        table.add_row(each.task.name, each.state, each.reason)
    return table


def _show_dry_run(session: Session, tasks: Sequence[Task], wanted: Sequence[Task]) -> None:
    """The state of each step, and the cost of what is missing; nothing is trained."""
    found = survey(session, tasks)
    outcomes = [found[task.name] for task in wanted]
    device = device_name(session.device)
    from_runs = known_costs(session.store, device)
    missing = {
        kind_of(each.task): each.task
        for each in outcomes
        if each.state != THERE and each.task.entry_point in TRAINING
    }
    measured = {}
    for kind, task in missing.items():
        if kind not in from_runs:
            console.say(f"measuring an update of {describe_kind(kind)} on {device}")
            measured[kind] = measure(task, session.device)
    console.show(_by_step(outcomes, {**from_runs, **measured}))
    if measured and (line := busy(session.device, 1)):
        console.say(f"{line}: alone on it, trainings take less time than these estimates")
    if missing:
        console.say(
            "evaluations, analyses and reports come on top and take seconds to minutes each"
        )
    for costs, whence in (
        (from_runs, "from registered runs, evaluation included"),
        (measured, "measured now on random images, without evaluation"),
    ):
        said = [f"{describe_kind(k)} {duration(costs[k])}" for k in missing if k in costs]
        if said:
            console.say(f"time of an update on {device}, {whence}: {'; '.join(said)}")
    for each in outcomes:
        if each.state == MISSING and each.reason:
            console.say(f"{each.task.name} cannot be done yet: {each.reason}")
    for reason in dict.fromkeys(each.reason for each in outcomes if each.state == ABSENT):
        console.say(f"absent: {reason}")


def _keep(session: Session, record: str, made: Sequence[Outcome]) -> None:
    """The plan's outcome as files of the call's run and as its description."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "step", "entry_point", "state", "run_id", "reason"))
    for each in made:
        task = each.task
        writer.writerow(
            (task.name, task.step, task.entry_point, each.state, each.run_id, each.reason)
        )
    runs.log_text(session.store, record, text.getvalue(), "tasks.csv")
    for number, each in enumerate(made, 1):
        if each.details:
            runs.log_text(session.store, record, each.details, f"failures/{number}.txt")
    counts = Counter(each.state for each in made)
    lines = [f"- {counts[state]} {state}" for state in STATES if counts[state]]
    lines += [f"- **{each.task.name}**: {each.reason}" for each in made if each.state == FAILED]
    runs.set_tags(session.store, record, {}, description="\n".join(lines))
