"""A trial of the study: finetuning with its parameters, judged by training images alone (S4.4).

A trial trains once for each dataset of the objective and each seed. In-distribution images are
judged against outliers that it does not train on. No test fold is opened, and its weights are not
kept; ``finetune`` trains the best again.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
import torch
from optuna.trial import Trial

from oodflow.data.batches import Batches
from oodflow.data.images import Images
from oodflow.errors import UserError
from oodflow.evaluation.scores import bits_per_dimension_mean
from oodflow.evaluation.scoring import score_images
from oodflow.experiment import parameters
from oodflow.models.likelihood import LikelihoodModel
from oodflow.options import FinetuneOptions, TuneOptions, carried
from oodflow.tracking import runs
from oodflow.tracking.delivery import delivering
from oodflow.tracking.journal import Report
from oodflow.tracking.store import Store
from oodflow.workflow.planning import finetune_plan
from oodflow.workflow.session import Session
from oodflow.workflow.training_plan import TrainingPlan, run_tags
from oodflow.workflow.training_run import batches_of, new_trainer, report_metrics
from tuning.objective import Pair, Stability, StabilityBounds, train_set_auroc, weighted_sum
from tuning.study import Range, propose, requeue

__all__ = ["Job", "TrialRunner", "new_job", "page_of"]

EARLY = 200
"""Images of either kind behind an intermediate value, which feeds the pruner."""
WORST = 1e6
"""Stands for a BPD that is not finite: storages take finite numbers only."""


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


def new_job(
    session: Session,
    chosen: TuneOptions,
    pair: Pair,
    seed: int,
    point: Mapping[str, float],
) -> Job:
    """A training's data: of the outliers the last ``images`` are held out.

    ``point`` holds parameters of the loss that any trial of the study replaces.
    """
    options = carried(FinetuneOptions, chosen, dataset=pair.dataset, **point)
    plan = finetune_plan(session, options, seed)
    general_run = plan.general
    if plan.role != "in_distribution" or general_run is None:
        raise UserError(f"{pair.dataset} is not finetuned against a general model; choose another")
    experiment = plan.experiment
    if chosen.steps is None and chosen.epochs is None:
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


def page_of(store: Store, run_id: str) -> str:
    """Address of a run in the MLflow UI, for people who look at the study elsewhere."""
    return store.page(runs.get(store, run_id).experiment_id, run_id)


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


@dataclass(frozen=True)
class TrialRunner:
    """A trial: finetuning with its parameters, for each dataset and seed, as a nested run."""

    session: Session
    study: optuna.Study
    parent: str
    jobs: Sequence[Job]
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
        trial.set_user_attr("mlflow_page", page_of(store, run_id))
        with runs.ended_on_error(store, run_id):
            try:
                runs.log_parameters(store, run_id, parameters(plan.experiment))
                result = self._judged(trial, run_id, values)
            except (optuna.TrialPruned, torch.linalg.LinAlgError) as error:
                pruned = " ".join(str(error).split())
                # A trial that ends without an objective counts as infeasible for the sampler too.
                trial.set_constraint("pruned", 1.0)
                trial.set_user_attr("feasible", False)
                trial.set_user_attr("reason", pruned)
                runs.set_tags(store, run_id, {"reason": pruned})
            except KeyboardInterrupt:
                requeue(self.study, values, f"trial {trial.number} was interrupted")
                raise
            else:
                runs.end(store, run_id, "FINISHED")
                return result
        runs.end(store, run_id, "KILLED")
        raise optuna.TrialPruned(pruned)

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
        trial.set_user_attr("feasible", not reason)
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
        """Train-set AUROC, BPD and stability of one training; TrialPruned if stopped early."""
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
                    by_median = isinstance(self.study.pruner, optuna.pruners.MedianPruner)
                    why = "below the median" if by_median else "stopped by Hyperband"
                    raise optuna.TrialPruned(f"{why} at update {report.step}")
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
