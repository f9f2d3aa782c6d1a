"""A task and its run: whether it is there, and making it. Workers anywhere may do tasks by this.

A task that is given here has the runs of those that it needs among its options
(:func:`oodflow.plans.tasks.with_runs`).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from oodflow.commands import resolve
from oodflow.data.catalog import lookup
from oodflow.experiment import AUTO, json_hash, spec_hash
from oodflow.options import Evaluation, pick
from oodflow.plans.tasks import SUBJECT, TRAINING, Task
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.workflow import analyse, evaluate
from oodflow.workflow.evaluation_run import evaluate_run
from oodflow.workflow.finetune import finetune_plan
from oodflow.workflow.session import Session
from oodflow.workflow.train import finish, scratch_plan
from oodflow.workflow.training_plan import TrainingPlan

__all__ = [
    "EACH_TIME",
    "INTERRUPTED",
    "MISSING",
    "THERE",
    "TIMED_ON",
    "Found",
    "absent_datasets",
    "device_name",
    "identity",
    "locate",
    "run_task",
]

THERE, INTERRUPTED, MISSING = "there", "interrupted", "missing"
EACH_TIME = "each time"
"""State of a task that looks at all runs: it is done at each call, and finds what it has made."""

TIMED_ON = "timed_on"
"""Tag of a training that was made in one go: the device that its duration is of."""

PLANS: Mapping[str, Callable[[Session, Mapping[str, Any], int], TrainingPlan]] = {
    "train": scratch_plan,
    "finetune": finetune_plan,
}


@dataclass(frozen=True)
class Found:
    """What there is of a task: its state, and its run's id where it has one."""

    state: str
    run_id: str = ""


def absent_datasets(session: Session, task: Task) -> dict[str, str]:
    """Datasets that the task names and that are not there → how to get them."""
    named = {task.options.get(name, AUTO) for name in ("dataset", "outlier_dataset")} - {AUTO}
    return {name: lookup(name).obtain for name in sorted(named) if not session.present(name)}


def locate(session: Session, task: Task) -> Found:
    """What there is of a task: of a training by its experiment's hash, of an evaluation by its own.

    Raises UserError where the task cannot be done as the store and the data are.
    """
    if task.entry_point in TRAINING:
        return _located(session, _training_plan(session, task))
    if task.entry_point != "evaluate" or SUBJECT not in task.needs:
        return Found(EACH_TIME)
    run = runs.get(session.store, task.options[SUBJECT])
    if not _is_comparison(task):
        added = run.tags.get("general_outlier_run") == task.options["general_outlier"]
        return Found(THERE, run.run_id) if added else Found(MISSING)
    tags = _of(run) | {"spec": _comparison_hash(task), "registered": "true"}
    known = runs.find(session.store, tags, status="FINISHED")
    return Found(THERE, known[0].run_id) if known else Found(MISSING)


def _located(session: Session, plan: TrainingPlan) -> Found:
    known = runs.find(session.store, {"spec": spec_hash(plan.experiment), "kind": plan.kind})
    for run in known:
        if run.registered:
            return Found(THERE, run.run_id)
    return Found(INTERRUPTED, known[0].run_id) if known else Found(MISSING)


def identity(session: Session, task: Task) -> str:
    """What no two processes should do at once, in whichever plan it stands.

    That is a training of the same experiment, an evaluation of the same model, whose tables they
    share, or what looks at all runs.
    """
    if task.entry_point in TRAINING:
        return spec_hash(_training_plan(session, task).experiment)
    return f"{task.entry_point} {task.options[SUBJECT] if SUBJECT in task.needs else AUTO}"


def run_task(session: Session, task: Task) -> str:
    """Do a task, or what is left of it; returns the id of its run, "" where it has no one run.

    The session's claimed run becomes that of the evaluation, analysis or report.
    """
    return DOING[task.entry_point](session, task)


def device_name(device: torch.device) -> str:
    """What a duration was measured on: ``cpu``, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _training_plan(session: Session, task: Task) -> TrainingPlan:
    assert task.seed is not None
    plan = PLANS[task.entry_point](session, task.options, task.seed)
    if task.entry_point == "train" and "general" in task.needs:
        return replace(plan, general=runs.get(session.store, task.options["general"]))
    return plan


def _train(session: Session, task: Task) -> str:
    plan = _training_plan(session, task)
    in_one_go = _located(session, plan).state == MISSING
    run = finish(session, plan, resume=True)
    if in_one_go:
        runs.set_tags(session.store, run.run_id, {TIMED_ON: device_name(session.device)})
    return run.run_id


def _evaluate(session: Session, task: Task) -> str:
    """Scores that are added to the model's own run, or a comparison that is a run of its own."""
    if SUBJECT not in task.needs:
        return _command(evaluate.command, session, task)
    run = runs.get(session.store, task.options[SUBJECT])
    if not _is_comparison(task):
        chosen = pick(Evaluation, task.options)
        general, general_outlier = evaluate.contrasts(session, run, chosen)
        evaluate_run(session, run, general, general_outlier, chosen.ood, chosen.limit)
        return run.run_id
    _command(evaluate.command, session, task)
    made = runs.find(session.store, _of(run), status="FINISHED")[0]
    runs.set_tags(session.store, made.run_id, {"spec": _comparison_hash(task)})
    return made.run_id


def _is_comparison(task: Task) -> bool:
    """Whether an evaluation names what to compare with; otherwise it adds to the run's scores."""
    return task.options["general"] != AUTO or task.options["inlier_fold"] != "test"


def _of(run: RunInfo) -> dict[str, str]:
    return {"kind": "evaluate", "evaluated": run.run_id}


def _comparison_hash(task: Task) -> str:
    """Hash of what decides an evaluation's numbers, 16 digits."""
    facts = {k: v for k, v in task.options.items() if k not in ("device", "data_dir")}
    return json_hash(facts)


def _command(command: Callable[[Mapping[str, Any]], None], session: Session, task: Task) -> str:
    """Run an entry point's command where the session is."""
    where = {"device": str(session.device), "data_dir": str(session.data_dir)}
    own = {name: value for name, value in where.items() if name in task.options}
    with _claiming(session.claimed):
        command({**task.options, **own})
    return ""


@contextmanager
def _claiming(run_id: str) -> Iterator[None]:
    """Let a command find ``run_id``, or none, as the run that ``mlflow run`` has made for it."""
    before = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id:
        os.environ["MLFLOW_RUN_ID"] = run_id
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        if before is not None:
            os.environ["MLFLOW_RUN_ID"] = before


DOING: Mapping[str, Callable[[Session, Task], str]] = {
    "train": _train,
    "finetune": _train,
    "evaluate": _evaluate,
    "analyse": lambda session, task: _command(analyse.command, session, task),
    "report": lambda session, task: _command(resolve("report"), session, task),
}
"""How a task of each entry point is done."""
