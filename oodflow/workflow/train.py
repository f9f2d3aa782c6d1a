"""``oodflow train``: from scratch; and what training commands share: seeds, results, endings."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from oodflow import console
from oodflow.data.catalog import agreeing, lookup
from oodflow.errors import UserError
from oodflow.evaluation.metrics import mean_std
from oodflow.experiment import AUTO, COMPRESSORS, Loss
from oodflow.options import seed_list
from oodflow.presets import architecture, build_experiment, loss_of
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.training.distributed import broadcast, process_group, rank, world
from oodflow.workflow import results
from oodflow.workflow.choose import diff_outlier_general, newest_general
from oodflow.workflow.evaluation_run import describe_run, evaluate_run
from oodflow.workflow.own_run import ended_on_error
from oodflow.workflow.session import Session, available_device, open_session
from oodflow.workflow.training_plan import TrainingPlan, model_name
from oodflow.workflow.training_run import train_along, train_run

__all__ = [
    "command",
    "conclude",
    "finish",
    "first_present",
    "run_seeds",
    "scratch_plan",
    "train_seeds",
    "with_outliers",
]


def command(given: Mapping[str, Any]) -> None:
    """Train the model that the options describe, once a seed."""
    train_seeds(given, scratch_plan)


def train_seeds(
    given: Mapping[str, Any], plan_of: Callable[[Session, Mapping[str, Any], int], TrainingPlan]
) -> None:
    """Carry out the plan of each seed: in this process, or in those that ``torchrun`` started.

    Of several the first one alone makes plans, keeps and evaluates runs, and writes to the store.
    """
    with process_group(available_device(given["device"])) as device:
        own = {**given, "device": str(device)}
        if rank():
            train_along(own)
            return
        session = open_session(own)
        run_seeds(session, own, lambda seed: plan_of(session, own, seed))
        # Tells the others that there is nothing more to train.
        broadcast(None)


def scratch_plan(session: Session, given: Mapping[str, Any], seed: int) -> TrainingPlan:
    """The plan of one run from scratch."""
    if given["model"] in COMPRESSORS:
        raise UserError(
            f"{given['model']} has nothing to train; use it as the general model: "
            f"oodflow evaluate --general {given['model']}"
        )
    classifier = given["model"] == "wide-resnet"
    if classifier and (world() > 1 or session.parts > 1):
        raise UserError(
            "wide-resnet is trained in one process and one part, since its batch normalisation is "
            "over the whole batch; leave torchrun and accumulate out"
        )
    default = "sketch-shapes" if classifier else "sketch-general"
    facts = lookup(default if given["dataset"] == AUTO else given["dataset"])
    dataset = facts.name
    role = "general" if facts.role == "general" else "in_distribution"
    model = architecture(given, facts.channels)
    loss = loss_of({"model": given["model"]}, first_present(session, facts.generals))
    experiment = build_experiment(
        given,
        dataset=dataset,
        digest=session.train_digest(dataset),
        role=role,
        train_size=session.described(dataset).facts.train_size,
        model=model,
        loss=with_outliers(session, loss, facts.channels),
        init="scratch",
        general="",
        seed=seed,
    )
    general = None
    if role == "in_distribution" and not classifier:
        general = newest_general(session.store, dataset, model)
    return TrainingPlan("train", experiment, role, "scratch", general=general)


def first_present(session: Session, datasets: tuple[str, ...]) -> str:
    """The first of the datasets that is there, or ""."""
    return next((name for name in datasets if session.present(name)), "")


def with_outliers(session: Session, loss: Loss, channels: int) -> Loss:
    """The loss with its outlier dataset in the form that has so many channels, and its digest."""
    if not loss.outlier_dataset:
        return loss
    name = agreeing(loss.outlier_dataset, channels)
    return replace(loss, outlier_dataset=name, outlier_digest=session.train_digest(name))


def run_seeds(
    session: Session, given: Mapping[str, Any], plan_of: Callable[[int], TrainingPlan]
) -> list[RunInfo]:
    """One run, or for several seeds a parent run with a nested run each and their statistics."""
    seeds = seed_list(given["seeds"])
    plans = [plan_of(seed) for seed in seeds]
    if len(plans) == 1:
        finished = [finish(session, plans[0], resume=given["resume"])]
        results.show_runs(finished)
        console.say(f"see it: {session.store.how_to_see(finished[0].run_id)}")
        return finished
    shared = {
        "kind": "seeds",
        "model": plans[0].experiment.model.name,
        "dataset": plans[0].experiment.data.dataset,
        "role": plans[0].role,
        "outlier_loss": plans[0].experiment.loss.outlier_loss,
        "init": plans[0].start,
        "registered": "false",
    }
    name = plans[0].name.rsplit(" · ", 1)[0] + f" · seeds {', '.join(map(str, seeds))}"
    parent = runs.start(session.store, name, shared, claimed=session.claimed)
    with ended_on_error(session.store, parent):
        finished = [finish(session, plan, resume=given["resume"], parent=parent) for plan in plans]
        _log_statistics(session, parent, finished)
    runs.end(session.store, parent, "FINISHED")
    results.show_runs(finished)
    console.say(f"see it: {session.store.how_to_see(parent)}")
    return finished


def finish(session: Session, plan: TrainingPlan, *, resume: bool, parent: str = "") -> RunInfo:
    """Train, evaluate, register and end one run."""
    run_id = train_run(
        session,
        plan,
        resume=resume,
        parent=parent,
        conclude=lambda run_id: conclude(session, plan, run_id),
    )
    return runs.get(session.store, run_id)


def conclude(session: Session, plan: TrainingPlan, run_id: str) -> None:
    """Evaluate, register and end a run that has its weights."""
    run = runs.get(session.store, run_id)
    diff_outlier = (
        diff_outlier_general(session.store, run) if plan.role == "in_distribution" else None
    )
    evaluate_run(session, run, plan.general, diff_outlier, limit=plan.experiment.data.limit)
    runs.register(session.store, run_id, model_name(plan))
    describe_run(session, run_id)
    runs.end(session.store, run_id, "FINISHED")


def _log_statistics(session: Session, parent: str, finished: list[RunInfo]) -> None:
    """Mean and sample standard deviation of every metric over the seeds, and their table."""
    table = pd.DataFrame([run.metrics for run in finished])
    table.insert(0, "seed", [int(run.tags["seed"]) for run in finished])
    table.insert(1, "run_id", [run.run_id for run in finished])
    statistics: dict[str, float] = {}
    for name in table.columns[2:]:
        mean, std = mean_std(table[name].dropna())
        statistics |= {f"{name}/mean": mean, f"{name}/std": std}
    runs.log_metrics(session.store, parent, statistics)
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        table.to_csv(Path(folder) / "seeds.csv", index=False)
        runs.log_artifacts(session.store, parent, Path(folder), "seeds")
