"""``oodflow train`` and ``oodflow finetune``: one run per seed, and a parent run over several.

The parent has the mean and the sample standard deviation of every number, as metrics those that
people compare, and a table of the seeds.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from oodflow import console
from oodflow.data.catalog import slug_of
from oodflow.errors import UserError
from oodflow.evaluation.metrics import mean_std
from oodflow.models.device import available_device
from oodflow.options import FinetuneOptions, TrainOptions
from oodflow.tracking import runs
from oodflow.tracking.leases import leased_in_turn
from oodflow.tracking.numbers import headline
from oodflow.tracking.repetitions import IDENTITY
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store
from oodflow.tracking.views import AUROC, BPD
from oodflow.training.distributed import broadcast, process_group, rank
from oodflow.workflow import results
from oodflow.workflow.choose import diff_outlier_general
from oodflow.workflow.evaluation_run import Contrasts, evaluate_run
from oodflow.workflow.planning import make_plan
from oodflow.workflow.session import Session, open_session
from oodflow.workflow.training_plan import TrainingPlan, model_name, run_tags
from oodflow.workflow.training_run import train_along, train_run

__all__ = ["command", "conclude", "finish", "group_seeds", "train"]

DEFAULT_SEEDS = (1,)

INHERITED = (*IDENTITY, "group")
"""Tags that a parent run has from its seeds."""


def command(options: TrainOptions | FinetuneOptions) -> None:
    """Train as the options say: in this process, or in those that ``torchrun`` started.

    With several processes, only the first one makes plans, evaluates runs and writes to the store.
    """
    with process_group(available_device(options.device)) as device:
        options = replace(options, device=str(device))
        if rank():
            train_along(options)
            return
        session = open_session(options)
        finished = train(session, options)
        results.show_runs(finished)
        one = finished[0]
        view = AUROC if one.tags["role"] == "in_distribution" else BPD
        see = session.store.how_to_see(one.run_id, view if len(finished) > 1 else None)
        console.say(f"see it: {see}")
        # The other processes learn that there is nothing more to train.
        broadcast(None)


def train(session: Session, options: TrainOptions | FinetuneOptions) -> tuple[RunInfo, ...]:
    """One registered run per seed; several are nested in a parent run with their statistics."""
    seeds = options.seeds or DEFAULT_SEEDS
    plans = [make_plan(session, options, seed) for seed in seeds]
    if len(plans) == 1:
        return (finish(session, plans[0], resume=options.resume),)
    if options.resume and not session.project_run:
        # Some may be there already, in a parent run of their own.
        finished = tuple(finish(session, plan, resume=True) for plan in plans)
        parent = group_seeds(session.store, finished)
    else:
        name = _parent_name(plans[0].name, map(str, seeds))
        tags = _parent_tags(run_tags(plans[0]))
        with runs.recording(session.store, name, tags, project_run=session.project_run) as parent:
            finished = tuple(
                finish(session, plan, resume=options.resume, parent=parent) for plan in plans
            )
            for run in finished:
                if run.parent != parent:
                    runs.nest(session.store, run.run_id, parent)
            _log_statistics(session.store, parent, finished)
    return tuple(replace(run, parent=parent) for run in finished)


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
    beside = Contrasts(plan.general, diff_outlier)
    run = evaluate_run(session, run, beside, limit=plan.experiment.data.limit).run
    name, seed = model_name(plan), f"seed-{plan.experiment.seed}"
    version = runs.register(session.store, run_id, name, results.model_card(run), seed)
    note = results.describe(run, f"models:/{name}/{version}")
    runs.set_tags(session.store, run_id, {}, description=note)
    runs.end(session.store, run_id, "FINISHED")


def group_seeds(store: Store, finished: Sequence[RunInfo]) -> str:
    """Nest finished runs that differ only in their seed in one parent run; returns its id.

    If they have a common parent, its statistics are renewed, since evaluations may have added
    metrics. Runs without a parent, or with different ones, get a new parent.
    """
    with leased_in_turn(store, f"seeds {finished[0].run_id}", f"seeds of {finished[0].name}"):
        finished = [runs.get(store, run.run_id) for run in finished]
        parents = {run.parent for run in finished}
        parent = parents.pop() if len(parents) == 1 else ""
        if not parent or not _is_parent_of(store, parent, finished):
            name = _parent_name(finished[0].name, (run.tags["seed"] for run in finished))
            with runs.recording(store, name, _parent_tags(finished[0].tags)) as parent:
                for run in finished:
                    runs.nest(store, run.run_id, parent)
        _log_statistics(store, parent, finished)
    return parent


def _is_parent_of(store: Store, parent: str, finished: Sequence[RunInfo]) -> bool:
    """Whether a run is the parent of just these seeds."""
    try:
        known = runs.get(store, parent)
    except UserError:
        # It was deleted.
        return False
    seeds = sorted(run.tags["seed"] for run in finished)
    return sorted(known.tags.get("seeds", "").split(",")) == seeds


def _parent_name(name: str, seeds: Iterable[str]) -> str:
    return f"{name.rsplit(' · ', 1)[0]} · seeds {', '.join(seeds)}"


def _parent_tags(tags: Mapping[str, str]) -> dict[str, str]:
    own = {name: tags[name] for name in INHERITED if name in tags}
    return own | {"kind": "seeds", "registered": "false"}


def _log_statistics(store: Store, parent: str, finished: Sequence[RunInfo]) -> None:
    """Mean and sample standard deviation of every number over the seeds, and their table."""
    table = pd.DataFrame([run.metrics for run in finished])
    table.insert(0, "seed", [int(run.tags["seed"]) for run in finished])
    table.insert(1, "run_id", [run.run_id for run in finished])
    statistics: dict[str, float] = {}
    for name in table.columns[2:]:
        mean, std = mean_std(table[name].dropna())
        statistics |= {f"{name}/mean": mean, f"{name}/std": std}
    compared = headline(finished[0].metrics, slug_of(finished[0].tags["dataset"]))
    names = (f"{name}/{what}" for name in compared for what in ("mean", "std"))
    runs.log_numbers(store, parent, statistics, {name: statistics[name] for name in names})
    shared = set.intersection(*(set(run.params.items()) for run in finished))
    # By these the MLflow UI tells what two settings differ in.
    hashes = ("experiment.", "data.digest", "loss.outlier_digest")
    settings = {name: value for name, value in sorted(shared) if not name.startswith(hashes)}
    runs.log_parameters(store, parent, settings)
    runs.set_tags(
        store,
        parent,
        {"seeds": ",".join(run.tags["seed"] for run in finished)},
        description=results.describe_seeds(finished),
    )
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        table.to_csv(Path(folder) / "seeds.csv", index=False)
        runs.log_artifacts(store, parent, Path(folder), "seeds")
