"""``oodflow tune``: an Optuna study of the outlier loss, one MLflow run a trial (S4.4).

A trial is judged by training images alone: in-distribution ones, and outliers that it does not
train on. No test fold is opened. Its weights are not kept; ``finetune`` trains the best again.
"""

import dataclasses
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from optuna.trial import Trial, TrialState

from oodflow import console
from oodflow.data.batches import Batches
from oodflow.data.catalog import lookup, slug_of
from oodflow.data.images import Images
from oodflow.errors import UserError
from oodflow.evaluation.scores import bits_per_dimension_mean
from oodflow.evaluation.scoring import score_images
from oodflow.experiment import AUTO, parameters, spec_hash
from oodflow.files import STATE_FOLDER, exclusively
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import Tuning, pick, seed_list
from oodflow.presets import OUTLIER_WEIGHTS
from oodflow.tracking import runs
from oodflow.tracking.delivery import delivering
from oodflow.tracking.journal import Report
from oodflow.workflow.finetune import finetune_plan
from oodflow.workflow.own_run import ended_on_error
from oodflow.workflow.session import Session, open_session
from oodflow.workflow.training_plan import TrainingPlan, run_tags
from oodflow.workflow.training_run import batches_of, new_trainer, report_metrics
from tuning.figures import save_figures
from tuning.objective import (
    Pair,
    Stability,
    StabilityBounds,
    parse_objective,
    train_set_auroc,
    weighted_sum,
)
from tuning.study import (
    Range,
    best_trial,
    counted,
    feasible,
    open_study,
    propose,
    requeue,
    run_trials,
)

__all__ = ["command"]

EARLY = 200
"""Images of either kind behind an intermediate value, which feeds the pruner."""
WORST = 1e6
"""Stands for a BPD that is not finite: storages take finite numbers only."""
SECONDS_TO_WAIT = 0.5
"""Between looks at what the other workers do."""


@dataclass(frozen=True)
class Job:
    """One training of a trial: its plan but for the parameters, its data, its general model."""

    pair: Pair
    seed: int
    plan: TrainingPlan
    inliers: Batches
    outliers: Batches
    judged: tuple[Images, Images]
    """In-distribution training images, and outliers that are not trained on."""
    general: tuple[pd.DataFrame, pd.DataFrame]
    """Their log-likelihoods under the general model."""
    general_bpd: float


def command(given: Mapping[str, Any]) -> None:
    """Do trials until the study has enough of them, then sum it up on its MLflow run."""
    session, chosen = open_session(given), pick(Tuning, given)
    if chosen.trials < 1 or chosen.images < 2:
        raise UserError("trials must be at least 1 and images at least 2")
    dataset = lookup("sketch-shapes" if given["dataset"] == AUTO else given["dataset"]).name
    pairs, with_bpd = parse_objective(chosen.objective, dataset)
    space = _space(chosen)
    given = {**given, "dataset": dataset, **_paper_point(chosen.outlier_loss)}
    seeds = seed_list(given["seeds"])
    jobs = [_job(session, given, chosen, pair, seed) for pair in pairs for seed in seeds]
    settings = _settings(chosen, jobs, space, with_bpd)
    name = chosen.study
    if name == AUTO:
        model = jobs[0].plan.experiment.model.name
        name = f"{model}-{slug_of(dataset)}-{chosen.outlier_loss}-{settings[:6]}"
    folder = STATE_FOLDER / f"tune-{name}"
    point = {key: given[key] for key in space}
    if chosen.outlier_loss == "margin":
        point["margin"] = float(lookup(dataset).channels * 32 * 32)
    inside = all(space[key].low <= value <= space[key].high for key, value in point.items())
    study = open_study(
        chosen.storage, name, point if inside else {}, with_bpd, folder / "lock", settings
    )
    parent = _parent(session, study, jobs[0].plan, folder)
    objective = _Objective(session, study, parent, jobs, space, _bounds(chosen), with_bpd)
    with (
        ended_on_error(session.store, parent),
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

        run_trials(study, seeds[0], chosen.trials, folder, trial, on_wait)
        _sum_up(session, study, parent, given, space)
    runs.end(session.store, parent, "FINISHED")
    console.say(f"see it: {session.store.how_to_see(parent)}")


def _settings(
    chosen: Tuning, jobs: Sequence[Job], space: Mapping[str, Range], with_bpd: bool
) -> str:
    """Hash of all that makes a study's values comparable; not of the number of its trials."""
    said = (
        [(job.pair, spec_hash(job.plan.experiment)) for job in jobs],
        sorted(space.items()),
        chosen.images,
        with_bpd,
        _bounds(chosen),
    )
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _space(chosen: Tuning) -> dict[str, Range]:
    """The parameters that are searched, with their ranges."""
    binary = chosen.outlier_loss == "binary"
    low, high = (100.0, 1e6) if binary else (0.01, 100.0)
    weight = Range(
        low if chosen.outlier_weight_low == AUTO else chosen.outlier_weight_low,
        high if chosen.outlier_weight_high == AUTO else chosen.outlier_weight_high,
    )
    first = (
        {"temperature": Range(chosen.temperature_low, chosen.temperature_high)}
        if binary
        else {"margin": Range(chosen.margin_low, chosen.margin_high)}
    )
    space = {**first, "outlier_weight": weight}
    return {name: bounds.checked(name) for name, bounds in space.items()}


def _paper_point(loss: str) -> dict[str, float]:
    """The first trial: S4.4, and the plain margin loss of S7.5."""
    return {"temperature": 1000.0, "outlier_weight": OUTLIER_WEIGHTS[loss], "margin": 0.0}


def _bounds(chosen: Tuning) -> StabilityBounds:
    return StabilityBounds(chosen.max_dropped, chosen.max_skipped, chosen.max_bpd)


def _job(session: Session, given: Mapping[str, Any], chosen: Tuning, pair: Pair, seed: int) -> Job:
    """A training's data: of the outliers the last ``images`` are held out."""
    plan = finetune_plan(session, {**given, "dataset": pair.dataset}, seed)
    general_run = plan.general
    if plan.role != "in_distribution" or general_run is None:
        raise UserError(f"{pair.dataset} is not finetuned against a general model; choose another")
    experiment = plan.experiment
    if given["steps"] == AUTO and given["epochs"] == AUTO:
        # A trial need not be trained to the end to tell good parameters from bad ones.
        shorter = dataclasses.replace(
            experiment.optimisation, steps=max(experiment.optimisation.steps // 2, 1)
        )
        experiment = dataclasses.replace(experiment, optimisation=shorter)
        plan = dataclasses.replace(plan, experiment=experiment)
    limit = experiment.data.limit
    own = session.images(experiment.data.dataset, "train", limit)
    other = session.images(experiment.loss.outlier_dataset, "train", limit)
    count = min(chosen.images, len(own.pixels) // 2, len(other.pixels) // 2)
    held_out = _part(other, slice(len(other.pixels) - count, None))
    judged = (_part(own, slice(count)), held_out)
    general = session.model(general_run).model
    tables = _scores(session, general, judged, with_bpd=True)
    return Job(
        pair,
        seed,
        plan,
        batches_of(session, experiment, own),
        batches_of(session, experiment, _part(other, slice(len(other.pixels) - count))),
        judged,
        (tables[0], tables[1]),
        bits_per_dimension_mean(tables[0], general.image_shape),
    )


def _part(images: Images, which: slice) -> Images:
    labels = None if images.labels is None else images.labels[which]
    return dataclasses.replace(images, pixels=images.pixels[which], labels=labels)


def _scores(
    session: Session, model: LikelihoodModel, judged: Sequence[Images], with_bpd: bool
) -> list[pd.DataFrame]:
    """Score tables of in-distribution images and outliers; noise is for the BPD of the first."""
    return [
        score_images(
            model,
            images.pixels,
            images.labels,
            device=session.device,
            dequantised=with_bpd and images is judged[0],
        )
        for images in judged
    ]


def _parent(session: Session, study: optuna.Study, plan: TrainingPlan, folder: Path) -> str:
    """The study's MLflow run, the same for all its workers and after an interruption."""
    with exclusively(folder / "lock"):
        known = study.user_attrs.get("mlflow_run", "")
        if known:
            runs.reopen(session.store, runs.get(session.store, known).run_id)
            return known
        tags = {**run_tags(plan), "kind": "tune", "study": study.study_name}
        for name in ("spec", "seed"):
            del tags[name]
        parent = runs.start(
            session.store, f"study {study.study_name}", tags, claimed=session.claimed
        )
        study.set_user_attr("mlflow_run", parent)
        return parent


@dataclass(frozen=True)
class _Objective:
    """A trial: finetuning with its parameters, for each dataset and seed, as a nested run."""

    session: Session
    study: optuna.Study
    parent: str
    jobs: list[Job]
    space: Mapping[str, Range]
    bounds: StabilityBounds
    with_bpd: bool

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        values = propose(trial, self.space)
        store = self.session.store
        plan = self._plan(self.jobs[0], values)
        tags = {
            **run_tags(plan),
            "kind": "trial",
            "study": self.study.study_name,
            "trial": str(trial.number),
        }
        said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        run_id = runs.start(store, f"trial {trial.number} · {said}", tags, self.parent)
        trial.set_user_attr("mlflow_run", run_id)
        try:
            runs.log_parameters(store, run_id, parameters(plan.experiment))
            result = self._judged(trial, run_id, values)
        except (optuna.TrialPruned, torch.linalg.LinAlgError) as error:
            pruned = " ".join(str(error).split())
            # An end without a judgement is no feasible one for the sampler either.
            trial.set_constraint("pruned", 1.0)
            trial.set_user_attr("reason", pruned)
            runs.set_tags(store, run_id, {"reason": pruned})
            runs.end(store, run_id, "KILLED")
            raise optuna.TrialPruned(pruned) from error
        except KeyboardInterrupt:
            requeue(self.study, values, f"trial {trial.number} was interrupted")
            runs.end(store, run_id, "KILLED")
            raise
        except BaseException:
            runs.end(store, run_id, "FAILED")
            raise
        runs.end(store, run_id, "FINISHED")
        return result

    def _plan(self, job: Job, values: Mapping[str, float]) -> TrainingPlan:
        loss = dataclasses.replace(job.plan.experiment.loss, **dict[str, Any](values))
        experiment = dataclasses.replace(job.plan.experiment, loss=loss)
        return dataclasses.replace(job.plan, experiment=experiment)

    def _judged(
        self, trial: Trial, run_id: str, values: Mapping[str, float]
    ) -> float | tuple[float, float]:
        """Train all jobs; log and return the objective, with its constraints on the trial."""
        aurocs, costs, bpds = [], [], []
        with delivering(self.session.store, run_id, [], False) as deliver:
            for number, job in enumerate(self.jobs):
                plan = self._plan(job, values)
                value, bpd, cost = self._train(trial, deliver, job, plan, number)
                aurocs.append(value)
                bpds.append(bpd)
                costs.append(cost)
        # The worst training counts: a mean would hide one that was unstable.
        cost = Stability(
            max(each.dropped for each in costs),
            max(each.skipped for each in costs),
            max(each.bpd for each in costs),
        )
        auroc, bpd = weighted_sum(aurocs, [job.pair for job in self.jobs]), sum(bpds) / len(bpds)
        for name, value in cost.violations(self.bounds).items():
            trial.set_constraint(name, value)
        metrics = {
            "tune/auroc": auroc,
            "tune/bpd": bpd,
            "tune/bpd_paid": cost.bpd,
            "tune/dropped": cost.dropped,
            "tune/skipped": cost.skipped,
        }
        runs.log_metrics(self.session.store, run_id, metrics)
        reason = cost.reason(self.bounds)
        if reason:
            trial.set_user_attr("reason", reason)
        runs.set_tags(
            self.session.store,
            run_id,
            {"feasible": str(not reason).lower(), **({"reason": reason} if reason else {})},
        )
        return (auroc, bpd) if self.with_bpd else auroc

    def _train(
        self,
        trial: Trial,
        deliver: Callable[[Report], None],
        job: Job,
        plan: TrainingPlan,
        number: int,
    ) -> tuple[float, float, Stability]:
        """Train-set AUROC, BPD and costs of one training; TrialPruned where it is given up."""
        trainer = new_trainer(self.session, plan, job.inliers, job.outliers)
        steps, before = plan.experiment.optimisation.steps, 0
        dropped = skipped = 0
        for report in trainer.run():
            interval, before = report.step - before, report.step
            lost = report.skipped_batches + report.skipped_updates
            dropped, skipped = dropped + report.dropped_images, skipped + lost
            at = number * steps + report.step
            deliver(Report(at, int(time.time() * 1000), report_metrics(report)))
            if not math.isfinite(report.bpd) or lost == interval:
                raise optuna.TrialPruned(f"diverged by update {report.step}")
            if not self.with_bpd:
                early, _ = self._auroc(trainer.model, job, EARLY)
                trial.report(early, at)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"below the median at update {report.step}")
        value, table = self._auroc(trainer.model, job, 0)
        bpd = bits_per_dimension_mean(table, trainer.model.image_shape)
        bpd = bpd if math.isfinite(bpd) else WORST
        images = 2 * steps * plan.experiment.optimisation.batch_size
        cost = Stability(dropped / images, skipped / steps, bpd - job.general_bpd)
        return value, bpd, cost

    def _auroc(self, model: LikelihoodModel, job: Job, limit: int) -> tuple[float, pd.DataFrame]:
        """Train-set AUROC on the first images, 0 for all, and the in-distribution table."""
        first = slice(limit or None)
        parts = [_part(images, first) for images in job.judged]
        tables = _scores(self.session, model, parts, with_bpd=not limit)
        model.train()
        general = [table[first] for table in job.general]
        return train_set_auroc(tables[0], tables[1], *general), tables[0]


def _best_so_far(study: optuna.Study) -> str:
    best = best_trial(study)
    return f"best {best.values[0]:.4f} (trial {best.number})" if best else "none feasible yet"


def _sum_up(
    session: Session,
    study: optuna.Study,
    parent: str,
    given: Mapping[str, Any],
    space: Mapping[str, Range],
) -> None:
    """Figures, the table of trials, the best one and the command that uses it."""
    store, best = session.store, best_trial(study)
    with tempfile.TemporaryDirectory(prefix="oodflow-") as temporary:
        folder = Path(temporary)
        (folder / "figures").mkdir()
        (folder / "trials").mkdir()
        save_figures(study, folder / "figures")
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
    options = [(name.replace("_", "-"), given[name]) for name in names if given[name] != AUTO]
    options += [(name.replace("_", "-"), repr(value)) for name, value in values.items()]
    line = "oodflow finetune " + " ".join(f"--{name} {value}" for name, value in options)
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
    """One row a trial: number, state, value, parameters, feasibility, reason, MLflow run."""
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
