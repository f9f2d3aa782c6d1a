"""Finds the run of a task, or makes it; used by the engine and by workers on any machine.

The options of a task given here name the runs that it depends on
(:func:`oodflow.plans.tasks.with_runs`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from oodflow.commands import resolve
from oodflow.data.catalog import lookup
from oodflow.experiment import json_hash, spec_hash
from oodflow.options import (
    AUTO,
    AnalyseOptions,
    EvaluateOptions,
    FinetuneOptions,
    TrainOptions,
)
from oodflow.plans.tasks import SUBJECT, TRAINING, Task
from oodflow.tracking import runs
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow.analyse import analyse
from oodflow.workflow.evaluate import contrasts, evaluate, general_models
from oodflow.workflow.evaluation_run import describe_run, evaluate_run
from oodflow.workflow.planning import make_plan
from oodflow.workflow.seeds import finish
from oodflow.workflow.session import Session
from oodflow.workflow.training_plan import TrainingPlan, device_name

__all__ = [
    "EACH_TIME",
    "INTERRUPTED",
    "MISSING",
    "THERE",
    "TIMED_ON",
    "Found",
    "absent_datasets",
    "identity",
    "locate",
    "run_task",
]

THERE, INTERRUPTED, MISSING = "there", "interrupted", "missing"
EACH_TIME = "each time"
"""State of a task that reads all runs, such as a report: it is repeated at each call."""

TIMED_ON = "timed_on"
"""Tag of a training that was never interrupted: the device on which its duration was measured."""


@dataclass(frozen=True)
class Found:
    """The state of a task, and its run's id where it has one."""

    state: str
    run_id: str = ""


def absent_datasets(session: Session, task: Task) -> dict[str, str]:
    """Datasets that the task names and that are not there → how to get them."""
    names = (getattr(task.options, name, AUTO) for name in ("dataset", "outlier_dataset"))
    named = set(names) - {AUTO}
    return {name: lookup(name).obtain for name in sorted(named) if not session.present(name)}


def locate(session: Session, task: Task) -> Found:
    """The state of a task: a training is found by its experiment's hash, an evaluation by its own.

    Raises UserError where store or data do not allow the task.
    """
    if task.entry_point in TRAINING:
        return _located(session, _training_plan(session, task))
    options = task.options
    if not isinstance(options, EvaluateOptions) or SUBJECT not in task.needs:
        return Found(EACH_TIME)
    run = runs.get(session.store, options.run)
    if not _is_comparison(options):
        added = run.tags.get("general_outlier_run") == options.general_outlier
        return Found(THERE, run.run_id) if added else Found(MISSING)
    tags = {"kind": "evaluate", "evaluated": run.run_id, "registered": "true"}
    tags["spec"] = _comparison_hash(options)
    known = runs.find(session.store, tags, status="FINISHED")
    return Found(THERE, known[0].run_id) if known else Found(MISSING)


def _located(session: Session, plan: TrainingPlan) -> Found:
    known = runs.find(session.store, {"spec": spec_hash(plan.experiment), "kind": plan.kind})
    for run in known:
        if run.registered:
            return Found(THERE, run.run_id)
    return Found(INTERRUPTED, known[0].run_id) if known else Found(MISSING)


def identity(session: Session, task: Task) -> str:
    """The name of a task's lease: no two processes work on it at once, whatever their plans.

    It stands for a training of one experiment, an evaluation of one model, whose tables would be
    shared, or a task that reads all runs.
    """
    if task.entry_point in TRAINING:
        return spec_hash(_training_plan(session, task).experiment)
    return f"{task.entry_point} {getattr(task.options, SUBJECT) if task.needs else AUTO}"


def run_task(session: Session, task: Task) -> str:
    """Run a task, or the rest of it; returns the id of its run, "" where it has several.

    An evaluation, analysis or report uses the session's project run.
    """
    return RUNNERS[task.entry_point](session, task)


def _training_plan(session: Session, task: Task) -> TrainingPlan:
    assert task.seed is not None and isinstance(task.options, TrainOptions | FinetuneOptions)
    plan = make_plan(session, task.options, task.seed)
    return replace(plan, general=runs.get(session.store, task.contrast)) if task.contrast else plan


def _train(session: Session, task: Task) -> str:
    plan = _training_plan(session, task)
    in_one_go = _located(session, plan).state == MISSING
    run = finish(session, plan, resume=True)
    if in_one_go:
        runs.set_tags(session.store, run.run_id, {TIMED_ON: device_name(session.device)})
    return run.run_id


def _evaluate(session: Session, task: Task) -> str:
    """Add scores to the model's own run, or make a comparison as a run of its own."""
    options = task.options
    assert isinstance(options, EvaluateOptions)
    if SUBJECT in task.needs and not _is_comparison(options):
        run = runs.get(session.store, options.run)
        models = general_models(session, run, options)
        beside = contrasts(session, run, options, *models)
        result = evaluate_run(session, run, beside, options.ood, options.limit)
        describe_run(session, result.run)
        return run.run_id
    made = evaluate(session, options)
    if SUBJECT in task.needs:
        tags = {"spec": _comparison_hash(options)}
        runs.set_tags(session.store, made[0].run_id, tags)
    return _only(made)


def _is_comparison(options: EvaluateOptions) -> bool:
    """Whether an evaluation is a comparison; otherwise it adds to the scores of the run."""
    return options.general != AUTO or options.inlier_fold != "test"


def _comparison_hash(options: EvaluateOptions) -> str:
    """Hash of what decides an evaluation's numbers, 16 digits."""
    # Without what is left to be decided: options that are added later change no hash.
    undecided = (None, False)
    facts = {
        k: v
        for k, v in asdict(options).items()
        if k not in ("device", "data_dir") and not any(v is each for each in undecided)
    }
    return json_hash(facts)


def _analyse(session: Session, task: Task) -> str:
    assert isinstance(task.options, AnalyseOptions)
    return _only(analyse(session, task.options))


def _report(session: Session, task: Task) -> str:
    # The package `reports` is built on this one, so its command is reached by name.
    write_report = resolve("write report")
    return write_report(session.store, task.options, session.project_run).run_id


def _only(made: Sequence[RunInfo]) -> str:
    return made[0].run_id if len(made) == 1 else ""


RUNNERS: Mapping[str, Callable[[Session, Task], str]] = {
    "train": _train,
    "finetune": _train,
    "evaluate": _evaluate,
    "analyse": _analyse,
    "report": _report,
}
"""The function that runs a task, by entry point."""
