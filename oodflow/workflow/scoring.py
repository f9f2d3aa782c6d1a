"""Score tables as artifacts of runs, and what is computed from them: metrics and figures."""

import contextlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from oodflow import console
from oodflow.data.catalog import lookup
from oodflow.errors import UserError
from oodflow.evaluation.figures import effect_figure, histogram_figure, roc_figure, save_figure
from oodflow.evaluation.metrics import evaluate_scores
from oodflow.evaluation.scores import bits_per_dimension_mean, compute_scores
from oodflow.evaluation.tables import read_table, score_images, write_table
from oodflow.tracking import runs
from oodflow.tracking.runs import RunInfo
from oodflow.workflow import results
from oodflow.workflow.session import Session, check_same_shape

__all__ = ["EvaluationResult", "describe_run", "evaluate_run", "outlier_datasets", "score_table"]

FOLD = "test"


@dataclass(frozen=True)
class EvaluationResult:
    """What the evaluation of one run gave: metrics under the contract's names."""

    run: RunInfo
    metrics: Mapping[str, float]


def score_table(session: Session, run: RunInfo, dataset: str, limit: int = 0) -> pd.DataFrame:
    """Log-likelihoods of a dataset's test fold under a run's model.

    Taken from the run's artifacts where they hold this table of the same weights and images, else
    computed and kept there, with the run's ``bpd/<dataset>`` as a metric.
    """
    loaded = session.model(run)
    images = session.images(dataset, FOLD, limit)
    facts = {
        "model": loaded.digest,
        "dataset": dataset,
        "fold": FOLD,
        "images": images.digest,
        "limit": str(limit),
    }
    path = f"scores/{dataset}-{FOLD}.parquet"
    if path in runs.list_artifacts(session.store, run.run_id, "scores"):
        # A damaged table is made anew, as one of other weights or images is.
        with (
            runs.artifact(session.store, run.run_id, path) as local,
            contextlib.suppress(UserError),
        ):
            table, known = read_table(local)
            if known == facts:
                return table
    check_same_shape(dataset, loaded.model.image_shape[0], f"the model of run {run.run_id}")
    count = len(images.pixels)
    with console.progress(f"{run.name}: scoring {dataset}", count) as advance:
        done = 0

        def on_progress(batch: int) -> None:
            nonlocal done
            done += batch
            advance(done)

        table = score_images(
            loaded.model,
            images.pixels,
            images.labels,
            device=session.device,
            on_progress=on_progress,
        )
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        write_table(table, Path(folder) / Path(path).name, facts=facts)
        runs.log_artifacts(session.store, run.run_id, Path(folder), "scores")
    bpd = bits_per_dimension_mean(table, loaded.model.image_shape)
    if math.isfinite(bpd):
        runs.log_metrics(session.store, run.run_id, {f"bpd/{dataset}": bpd})
    return table


def outlier_datasets(session: Session, dataset: str, given: str) -> tuple[str, ...]:
    """The datasets that ``ood`` names; for ``auto`` those of the catalogue that are present."""
    if given == "auto":
        chosen = tuple(ood for ood in lookup(dataset).ood if session.present(ood))
        absent = [ood for ood in lookup(dataset).ood if ood not in chosen]
        if absent:
            console.say(f"not present, left out: {', '.join(absent)}")
        return chosen
    chosen = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in chosen:
        if lookup(name).name == dataset:
            raise UserError(f"{dataset} cannot be its own outlier dataset; name another in ood")
    return chosen


def evaluate_run(
    session: Session,
    run: RunInfo,
    general: RunInfo | None,
    general_outlier: RunInfo | None,
    ood: str = "auto",
    limit: int = 0,
) -> EvaluationResult:
    """Score a run's model and its contrasts, and log metrics and figures on the run.

    For an in-distribution model all scores that the contrasts allow, against each outlier set;
    for a general model its BPD alone.
    """
    if "dataset" not in run.tags:
        raise UserError(f"run {run.run_id} ({run.name}) holds no model; choose a training run")
    dataset = run.tags["dataset"]
    own = score_table(session, run, dataset, limit)
    loaded = session.model(run)
    metrics = {f"bpd/{dataset}": bits_per_dimension_mean(own, loaded.model.image_shape)}
    if run.tags["role"] == "general":
        return EvaluationResult(run, metrics)
    oods = outlier_datasets(session, dataset, ood)
    scores = {
        name: compute_scores(
            score_table(session, run, name, limit),
            score_table(session, general, name, limit) if general else None,
            score_table(session, general_outlier, name, limit) if general_outlier else None,
        )
        for name in (dataset, *oods)
    }
    outs = {name: scores[name] for name in oods}
    detection = evaluate_scores(scores[dataset], outs) if outs else {}
    runs.log_metrics(session.store, run.run_id, detection | _means({**run.metrics, **detection}))
    contrasts = {"general_run": general, "general_outlier_run": general_outlier}
    tags = {name: contrast.run_id for name, contrast in contrasts.items() if contrast}
    runs.set_tags(session.store, run.run_id, tags)
    if outs:
        _log_figures(session, run, scores[dataset], outs, loaded.model.image_shape)
    describe_run(session, run.run_id)
    return EvaluationResult(run, metrics | detection)


def _means(metrics: Mapping[str, float]) -> dict[str, float]:
    """``auroc/mean/<score>`` over all outlier datasets that the run was evaluated against."""
    values: dict[str, list[float]] = {}
    for name, value in metrics.items():
        if name.startswith("auroc/") and not name.startswith("auroc/mean/"):
            values.setdefault(name.split("/")[2], []).append(value)
    return {f"auroc/mean/{score}": math.fsum(each) / len(each) for score, each in values.items()}


def describe_run(session: Session, run_id: str) -> None:
    """Write the run's description from the metrics and the registered version it has now."""
    run = runs.get(session.store, run_id)
    note = results.describe(run, runs.model_uri(session.store, run_id))
    runs.set_tags(session.store, run_id, {}, description=note)


def _log_figures(
    session: Session,
    run: RunInfo,
    own: Mapping[str, np.ndarray],
    outs: Mapping[str, Mapping[str, np.ndarray]],
    image_shape: tuple[int, int, int],
) -> None:
    """Histograms of the raw likelihood beside the ratio, and the ROC curves of the best score."""
    name = run.tags["dataset"]
    score = "diff" if "diff" in own else "raw"
    if score == "diff":
        histogram = effect_figure(name, own, outs, image_shape)
    else:
        raw = {ood: scores["raw"] for ood, scores in outs.items()}
        histogram = histogram_figure(name, own["raw"], raw, "Raw likelihood", "log p(x) in nats")
    curves = {ood: (own[score], scores[score]) for ood, scores in outs.items()}
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        save_figure(histogram, Path(folder) / "histograms.png")
        save_figure(roc_figure(curves, f"{name}, score {score}"), Path(folder) / "roc.png")
        runs.log_artifacts(session.store, run.run_id, Path(folder), "figures")
