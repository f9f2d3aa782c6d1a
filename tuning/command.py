"""``oodflow tune``: an Optuna study of the outlier loss, one MLflow run per trial (S4.4)."""

import dataclasses
import hashlib
import math
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import Trial, TrialState

from oodflow import console
from oodflow.data.catalog import lookup, slug_of
from oodflow.errors import UserError
from oodflow.experiment import spec_hash
from oodflow.files import STATE_FOLDER, exclusively
from oodflow.options import AUTO, TuneOptions
from oodflow.presets import usual_loss
from oodflow.tracking import runs
from oodflow.tracking.leases import leased_in_turn
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.views import TRIALS
from oodflow.workflow.session import Session, open_session
from oodflow.workflow.training_plan import TrainingPlan, run_tags
from tuning.figures import ARTIFACTS, save_figures, show_figures
from tuning.objective import StabilityBounds, parse_objective
from tuning.study import (
    Range,
    best_trial,
    counted,
    feasible,
    new_pruner,
    open_study,
    run_trials,
    sampler_of,
)
from tuning.trial import Job, TrialRunner, new_job, page_of

__all__ = ["command", "tune"]

SECONDS_TO_WAIT = 0.5
"""Seconds between looks at the other workers' trials."""


def command(options: TuneOptions) -> None:
    """Run trials until the study has enough of them, and print what it found."""
    session = open_session(options)
    run = tune(session, options)
    if find_spec("optuna_dashboard"):
        words = ["optuna-dashboard", options.storage.removeprefix("journal:")]
        console.say(f"see the study: {shlex.join([*words, '--artifact-dir', ARTIFACTS])}")
    console.say(f"see it: {session.store.how_to_see(run.run_id, TRIALS)}")


def tune(session: Session, chosen: TuneOptions) -> RunInfo:
    """Run trials until the study has enough of them; returns its MLflow run with the summary."""
    if chosen.trials < 1 or chosen.images < 2:
        raise UserError("trials must be at least 1 and images at least 2")
    dataset = lookup("sketch-shapes" if chosen.dataset == AUTO else chosen.dataset).name
    chosen = dataclasses.replace(chosen, dataset=dataset)
    pairs, with_bpd = parse_objective(chosen.objective, dataset)
    space = _space(chosen)
    channels = lookup(dataset).channels
    temperature, weight = usual_loss(chosen.outlier_loss, channels)
    paper = {"temperature": temperature, "outlier_weight": weight, "margin": 0.0}
    seeds = chosen.seeds or (1,)
    jobs = [new_job(session, chosen, pair, seed, paper) for pair in pairs for seed in seeds]
    settings = _settings(chosen, jobs, space, with_bpd)
    name = chosen.study
    if name == AUTO:
        model = jobs[0].plan.experiment.model.name
        name = f"{model}-{slug_of(dataset)}-{chosen.outlier_loss}-{settings[:6]}"
    sampler = sampler_of(chosen.sampler, with_bpd, chosen.trials)
    folder = STATE_FOLDER / f"tune-{name}"
    schedule = jobs[0].plan.experiment.optimisation
    pruner = new_pruner(chosen.pruner, schedule.report_every, schedule.steps * len(jobs))

    def in_turn() -> AbstractContextManager[None]:
        return leased_in_turn(session.store, f"study {name}", f"study {name}")

    point = {key: paper[key] for key in space}
    if chosen.outlier_loss == "margin":
        point["margin"] = float(channels * 32 * 32)
    inside = all(space[key].low <= value <= space[key].high for key, value in point.items())
    start = point if inside else {}
    with exclusively(folder / "lock"), in_turn():
        study = open_study(chosen.storage, name, start, with_bpd, settings, pruner)
        parent = _parent(session, study, jobs[0].plan)
    objective = TrialRunner(session, study, parent, jobs, space, _bounds(chosen), with_bpd)
    with (
        runs.ended_on_error(session.store, parent),
        console.progress(f"study {name}", chosen.trials) as advance,
    ):

        def show() -> None:
            advance(len(counted(study)), lambda: _best_so_far(study))

        def on_wait() -> None:
            show()
            time.sleep(SECONDS_TO_WAIT)

        def trial(each: Trial) -> float | tuple[float, float]:
            show()
            return objective(each)

        run_trials(study, seeds[0], chosen.trials, folder, trial, on_wait, in_turn, sampler)
        _sum_up(session, study, parent, chosen, space)
    runs.end(session.store, parent, "FINISHED")
    return runs.get(session.store, parent)


def _settings(
    chosen: TuneOptions, jobs: Sequence[Job], space: Mapping[str, Range], with_bpd: bool
) -> str:
    """Hash of all that makes a study's values comparable; the number of its trials is not in it."""
    said = (
        [(job.pair, spec_hash(job.plan.experiment)) for job in jobs],
        sorted(space.items()),
        chosen.images,
        with_bpd,
        _bounds(chosen),
    )
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _space(chosen: TuneOptions) -> dict[str, Range]:
    """The parameters that are searched, with their ranges."""
    binary = chosen.outlier_loss == "binary"
    low, high = (100.0, 1e6) if binary else (0.01, 100.0)
    weight = Range(
        low if chosen.outlier_weight_low is None else chosen.outlier_weight_low,
        high if chosen.outlier_weight_high is None else chosen.outlier_weight_high,
    )
    first = (
        {"temperature": Range(chosen.temperature_low, chosen.temperature_high)}
        if binary
        else {"margin": Range(chosen.margin_low, chosen.margin_high)}
    )
    space = {**first, "outlier_weight": weight}
    return {name: bounds.checked(name) for name, bounds in space.items()}


def _bounds(chosen: TuneOptions) -> StabilityBounds:
    return StabilityBounds(chosen.max_dropped, chosen.max_skipped, chosen.max_bpd)


def _parent(session: Session, study: optuna.Study, plan: TrainingPlan) -> str:
    """The study's MLflow run, the same for all its workers and after an interruption."""
    known = study.user_attrs.get("mlflow_run", "")
    if known:
        runs.reopen(session.store, runs.get(session.store, known).run_id)
        return known
    tags = {**run_tags(plan), "kind": "tune", "study": study.study_name}
    for name in ("spec", "seed"):
        del tags[name]
    parent = runs.start(
        session.store, f"study {study.study_name}", tags, project_run=session.project_run
    )
    study.set_user_attr("mlflow_run", parent)
    study.set_user_attr("mlflow_page", page_of(session.store, parent))
    return parent


def _best_so_far(study: optuna.Study) -> str:
    best = best_trial(study)
    return f"best {best.values[0]:.4f} (trial {best.number})" if best else "none feasible yet"


def _sum_up(
    session: Session,
    study: optuna.Study,
    parent: str,
    chosen: TuneOptions,
    space: Mapping[str, Range],
) -> None:
    """Figures, the table of trials, the best one and the command that uses it."""
    store, best = session.store, best_trial(study)
    with tempfile.TemporaryDirectory(prefix="oodflow-") as temporary:
        folder = Path(temporary)
        (folder / "figures").mkdir()
        (folder / "trials").mkdir()
        show_figures(study, save_figures(study, folder / "figures"))
        _table(study, space).to_csv(folder / "trials" / "trials.csv", index=False)
        for name in ("figures", "trials"):
            runs.log_artifacts(store, parent, folder / name, name)
    ended = counted(study)
    if best is None:
        console.say(
            f"study {study.study_name}: none of {len(ended)} trials is within the bounds of "
            "stability; search other ranges, or allow more with max_dropped, max_skipped, max_bpd"
        )
        runs.set_tags(store, parent, {"registered": "false"})
        return
    values = {name: best.params[name] for name in space}
    names = ("dataset", "model", "depth", "hidden", "preset", "outlier_loss")
    given = [(name, getattr(chosen, name)) for name in names]
    options = [(name.replace("_", "-"), value) for name, value in given if value is not None]
    options += [(name.replace("_", "-"), repr(value)) for name, value in values.items()]
    words = (word for name, value in options for word in (f"--{name}", str(value)))
    line = shlex.join(["oodflow", "finetune", *words])
    pruned = sum(trial.state == TrialState.PRUNED for trial in ended)
    infeasible = sum(not feasible(trial) for trial in ended) - pruned
    found = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    result = (
        f"train-set AUROC {best.values[0]:.4f} in trial {best.number} with {found}; "
        f"{len(ended)} trials, {pruned} pruned, {infeasible} beyond the bounds"
    )
    tags = {f"best_{name}": repr(value) for name, value in values.items()}
    tags |= {"best_trial": str(best.number), "registered": "true"}
    runs.log_metrics(store, parent, {"tune/best_auroc": best.values[0]})
    note = f"**{study.study_name}**: {result}\n\n```\n{line}\n```\n"
    runs.set_tags(store, parent, tags, description=note)
    console.say(f"study {study.study_name}: {result}")
    console.say(line)


def _table(study: optuna.Study, space: Mapping[str, Range]) -> pd.DataFrame:
    """One row per trial: number, state, value, parameters, feasibility, reason, MLflow run."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.values or [math.nan]
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "auroc": values[0],
                **({"bpd": values[1]} if len(values) > 1 else {}),
                **{name: trial.params.get(name, math.nan) for name in space},
                "feasible": feasible(trial),
                "reason": trial.user_attrs.get("reason", ""),
                "run_id": trial.user_attrs.get("mlflow_run", ""),
            }
        )
    return pd.DataFrame(rows)
