"""Score tables as artifacts of runs, and what is computed from them: metrics and figures."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from oodflow import console
from oodflow.data.catalog import CATALOG, agreeing, dataset_list, lookup, slug_of
from oodflow.data.resampling import compared
from oodflow.errors import UserError
from oodflow.evaluation.metrics import evaluate_scores
from oodflow.evaluation.plots import effect_figure, histogram_figure, roc_figure, save_figure
from oodflow.evaluation.score_table import COLUMNS, read_table, write_table
from oodflow.evaluation.scores import (
    SCORES,
    bits_per_dimension_mean,
    clip_non_finite,
    compute_scores,
    refuse_all_clipped,
)
from oodflow.tracking import runs
from oodflow.tracking.numbers import headline
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow import results
from oodflow.workflow.session import (
    SAMPLE,
    LoadedModel,
    Session,
    check_same_shape,
    dataset_use,
)
from oodflow.workflow.sharing import Scoring, score_together

__all__ = [
    "Contrasts",
    "EvaluationResult",
    "compare_run",
    "describe_run",
    "detection_scores",
    "evaluate_run",
    "sample_size",
    "outlier_datasets",
    "say_if_changed",
    "score_table",
]


LARGEST_SAMPLE = 10_000
"""Training images that scores are fitted to, at most, unless more are asked for."""

KEYS = ("index", "label")

TABLES_KEPT = 40
"""Score tables that a session keeps in memory, at most: those of a few models."""


@dataclass(frozen=True)
class Contrasts:
    """What stands beside an in-distribution model: whose tables its scores need."""

    general: RunInfo | None = None
    general_outlier: RunInfo | None = None
    seeds: tuple[RunInfo, ...] = ()
    """Models of the same experiment with other seeds."""
    compressors: tuple[RunInfo, ...] = ()
    train_images: int | None = 0
    """How many of its training images are scored; None: see :func:`sample_size`."""
    gradient: bool = False


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of one run's evaluation, under their names in MLflow."""

    run: RunInfo
    metrics: Mapping[str, float]
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Tags that name the packages and versions behind scores of plug-ins."""


def score_table(
    session: Session, run: RunInfo, dataset: str, limit: int = 0, fold: str = "test"
) -> pd.DataFrame:
    """Log-likelihoods of a dataset's fold under a run's model.

    It is known to MLflow by the dataset's slug. Images of a folder have their file's name in it.

    Taken from the run's artifacts where they hold this table of the same weights and images, else
    computed and kept there; ``bpd/<dataset>`` of the test fold becomes a metric of the run if it is
    of its own dataset, or the run a general model.
    """
    # BPDs, which need a pass with noise, are of whole folds.
    scoring = Scoring(run, dataset, fold, limit, dequantised=fold != SAMPLE)
    columns = COLUMNS if scoring.dequantised else (*KEYS, "log_prob")
    table, made = _kept(
        session, scoring, fold, columns, lambda advance: score_together(session, scoring, advance)
    )
    if made and fold == "test":
        metrics = _own_metrics(session.model(run), dataset, table)
        if run.tags["role"] != "general":
            metrics = headline(metrics, slug_of(run.tags["dataset"]))
        runs.log_metrics(session.store, run.run_id, metrics)
    return table


def _gradients(session: Session, scoring: Scoring) -> pd.DataFrame:
    """Squared gradient norms of the same images as of a score table."""
    images = session.images(scoring.dataset, scoring.fold, scoring.limit)

    def make(advance: Callable[[int], None]) -> pd.DataFrame:
        # Imported here: few evaluations need it.
        from oodflow.evaluation.gradients import gradient_table

        model = session.model(scoring.run).model
        return gradient_table(
            model, images.pixels, images.labels, device=session.device, on_progress=advance
        )

    return _kept(session, scoring, f"{scoring.fold}-gradient", KEYS, make)[0]


def _kept(
    session: Session,
    scoring: Scoring,
    name: str,
    columns: Iterable[str],
    make: Callable[[Callable[[int], None]], pd.DataFrame],
) -> tuple[pd.DataFrame, bool]:
    """A table of images under a model from the run's artifacts, else made and kept there.

    Also whether it was made. ``name`` takes the fold's place in its file name.
    """
    run, dataset = scoring.run, scoring.dataset
    loaded = session.model(run)
    images = session.images(dataset, scoring.fold, scoring.limit)
    slug = slug_of(dataset)
    facts = {
        "model": loaded.digest,
        "dataset": slug,
        "fold": name,
        "images": images.digest,
    }
    path = f"scores/{slug}-{name}.parquet"
    before, table = session.tables.get((run.run_id, path), ({}, pd.DataFrame()))
    if before == facts and {*columns} <= {*table}:
        return table.copy(deep=False), False
    if len(session.tables) >= TABLES_KEPT:
        session.tables.clear()
    if path in runs.list_artifacts(session.store, run.run_id, "scores"):
        # A damaged table is made anew, as one of other weights or images is.
        with (
            runs.artifact(session.store, run.run_id, path) as local,
            contextlib.suppress(UserError),
        ):
            table, known = read_table(local, columns)
            if known == facts:
                session.tables[run.run_id, path] = facts, table
                return table.copy(deep=False), False
    check_same_shape(dataset, loaded.model.image_shape[0], f"the model of run {run.run_id}")
    count = len(images.pixels)
    with console.progress(f"{run.name}: scoring {slug}", count) as advance:
        table = make(advance)
    if images.files:
        table.insert(1, "file", images.files)
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        write_table(table, Path(folder) / Path(path).name, facts=facts)
        # The MLflow UI shows no Parquet.
        table.describe().to_csv((Path(folder) / Path(path).name).with_suffix(".csv"))
        runs.log_artifacts(session.store, run.run_id, Path(folder), "scores")
    session.tables[run.run_id, path] = facts, table
    return table.copy(deep=False), True


def _own_metrics(loaded: LoadedModel, dataset: str, table: pd.DataFrame) -> dict[str, float]:
    """``bpd/<dataset>`` of a density, ``accuracy/<dataset>`` of a class-conditional model."""
    metrics = {}
    bpd = bits_per_dimension_mean(table, loaded.model.image_shape)
    if loaded.model.is_density and math.isfinite(bpd):
        metrics[f"bpd/{slug_of(dataset)}"] = bpd
    known = (table["label"] >= 0).all()
    if "predicted" in table and known and dataset == loaded.run.tags.get("dataset"):
        metrics[f"accuracy/{slug_of(dataset)}"] = float(
            (table["predicted"] == table["label"]).mean()
        )
    return metrics


def outlier_datasets(session: Session, dataset: str, given: str) -> tuple[str, ...]:
    """The datasets that ``ood`` names; for ``auto`` those of the catalogue that are present.

    For a grey in-distribution those of colour are taken in their grey form.
    """
    if given == "auto":
        chosen = session.outliers(dataset)
        covered = {*chosen, *(lookup(ood).part_of for ood in chosen)}
        absent = [
            ood for ood in lookup(dataset).ood if ood not in covered and not lookup(ood).part_of
        ]
        if absent:
            console.say(f"not present, left out: {', '.join(absent)}")
        return chosen
    channels = lookup(dataset).channels
    chosen = tuple(dict.fromkeys(agreeing(name, channels) for name in dataset_list(given)))
    for name in chosen:
        if name == dataset:
            raise UserError(f"{dataset} cannot be its own outlier dataset; name another in ood")
    return chosen


def evaluate_run(
    session: Session,
    run: RunInfo,
    beside: Contrasts,
    ood: str = "auto",
    limit: int = 0,
) -> EvaluationResult:
    """Score a run's model and its contrasts, and log metrics and figures on the run.

    For an in-distribution model all scores that the contrasts allow, against each outlier set;
    for a general model its BPD alone.
    """
    dataset = _dataset_of(run)
    say_if_changed(session, session.model(run))
    own = score_table(session, run, dataset, limit)
    loaded = session.model(run)
    metrics = _own_metrics(loaded, dataset, own)
    if run.tags["role"] == "general":
        return EvaluationResult(replace(run, metrics={**run.metrics, **metrics}), metrics)
    scores = detection_scores(session, run, beside, ood, limit)
    own_scores = scores.pop(dataset)
    used = (dataset, *scores)
    for name in scores:
        metrics |= _own_metrics(loaded, name, score_table(session, run, name, limit))
    scores = _by_slug(scores)
    detection = evaluate_scores(own_scores, scores) if scores else {}
    before = {n: v for n, v in run.metrics.items() if not n.startswith(("train/", "valid/"))}
    numbers = before | metrics | detection
    numbers |= _means(numbers)
    shown = headline(numbers, slug_of(dataset))
    runs.log_numbers(session.store, run.run_id, numbers, shown)
    uses = [dataset_use(session, name, "test", "evaluation") for name in used]
    runs.log_datasets(session.store, run.run_id, uses)
    contrasts = {
        "general_run": beside.general,
        "general_outlier_run": beside.general_outlier,
    }
    tags = {name: contrast.run_id for name, contrast in contrasts.items() if contrast}
    runs.set_tags(session.store, run.run_id, tags | _plugins(own_scores))
    if scores:
        _log_figures(session, run, own_scores, scores, loaded.model.image_shape)
    described = replace(run, metrics={**run.metrics, **numbers})
    return EvaluationResult(described, metrics | detection, _plugins(own_scores))


def compare_run(
    session: Session, run: RunInfo, general: RunInfo, ood: str, limit: int, inlier_fold: str
) -> EvaluationResult:
    """Metrics against a general model of another family, or of training-fold inliers (S6).

    Nothing is logged on the run itself, whose own numbers are others. The score ``general`` is the
    general model's log p alone. Metrics of training-fold inliers begin with ``train_fold/``.
    """
    dataset = _dataset_of(run)
    say_if_changed(session, session.model(run))
    scores = detection_scores(session, run, Contrasts(general), ood, limit, inlier_fold)
    for name in scores:
        fold = inlier_fold if name == dataset else "test"
        table = score_table(session, general, name, limit, fold)
        scores[name]["general"] = clip_non_finite(table["log_prob"].to_numpy())
    own_scores = scores.pop(dataset)
    prefix = "train_fold/" if inlier_fold == "train" else ""
    metrics = evaluate_scores(own_scores, _by_slug(scores))
    found = {prefix + name: value for name, value in metrics.items()}
    return EvaluationResult(run, found, _plugins(own_scores))


def _plugins(scores: Iterable[str]) -> dict[str, str]:
    """``plugin.score.<name>`` of the scores that packages registered."""
    origins = {f"plugin.score.{name}": SCORES.origin(name) for name in scores}
    return {tag: origin for tag, origin in origins.items() if origin}


def say_if_changed(session: Session, loaded: LoadedModel) -> None:
    """Say so where a model's dataset has other images now than those that it was trained on."""
    data = loaded.experiment.data
    folds = session.described(data.dataset).folds
    if data.digest and "train" in folds and folds["train"].digest != data.digest:
        console.say(
            f"{loaded.run.name} was trained on other images than {data.dataset} has now (training "
            f"fold {data.digest}, now {folds['train'].digest}): test images may be among those "
            "that it has seen; train again to be sure"
        )


def _dataset_of(run: RunInfo) -> str:
    if "dataset" not in run.tags or run.tags.get("kind") not in ("train", "finetune"):
        raise run.without_model()
    dataset, plugin = run.tags["dataset"], run.tags.get("plugin.dataset", "")
    if plugin and dataset not in CATALOG:
        raise CATALOG.unknown(dataset, plugin)
    return dataset


def detection_scores(
    session: Session,
    run: RunInfo,
    beside: Contrasts,
    ood: str,
    limit: int,
    inlier_fold: str = "test",
) -> dict[str, dict[str, np.ndarray]]:
    """Dataset → score → values: the run's own dataset first, then the outlier datasets."""
    dataset = run.tags["dataset"]
    fitted: dict[str, Any] = {}
    if count := sample_size(session, dataset, beside, limit):
        fitted["train"] = score_table(session, run, dataset, count, SAMPLE)
        if beside.gradient:
            sample = Scoring(run, dataset, SAMPLE, count)
            fitted["train_gradient"] = _gradients(session, sample)
    roles = {"general": beside.general, "general_outlier": beside.general_outlier}
    models = {"table": run} | {role: each for role, each in roles.items() if each}
    tables: dict[str, dict[str, Any]] = {}
    used = (dataset, *outlier_datasets(session, dataset, ood))
    trained_on = [each.tags.get("dataset", "") for each in models.values()]
    trained_on.append(run.tags.get("outlier_dataset", ""))
    session.warn(compared(dataset, (*used, *trained_on), session.data_dir))
    for name in used:
        fold = inlier_fold if name == dataset else "test"

        def table(of_run: RunInfo, name: str = name, fold: str = fold) -> pd.DataFrame:
            return score_table(session, of_run, name, limit, fold)

        tables[name] = {role: table(each) for role, each in models.items()}
        tables[name]["seeds"] = tuple(map(table, beside.seeds))
        if beside.compressors:
            tables[name]["compressor"] = _shortest(list(map(table, beside.compressors)))
        if beside.gradient:
            tables[name]["gradient"] = _gradients(session, Scoring(run, name, fold, limit))
    for role, each in models.items():
        # Of outliers alone, a model that was trained against them may exclude all.
        seen = [of[role] for name, of in tables.items() if role != "table" or name == dataset]
        refuse_all_clipped(f"run {each.run_id} ({each.name})", *seen)
    return {name: compute_scores(**of, **fitted) for name, of in tables.items()}


def sample_size(session: Session, dataset: str, beside: Contrasts, limit: int) -> int:
    """How many training images scores are fitted to: half as many as there are test images.

    At most :data:`LARGEST_SAMPLE`, unless a number is given. An evaluation scores several test
    folds: with half of one more it stays about as fast.
    """
    if beside.train_images is not None:
        if beside.train_images < 0:
            raise UserError(f"train_images is {beside.train_images}; give 0 or a number of images")
        return beside.train_images
    return min(len(session.images(dataset, "test", limit).pixels) // 2, LARGEST_SAMPLE)


def _shortest(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The table of whichever compressor writes the shortest file of each image."""
    shortest = np.max([table["log_prob"] for table in tables], axis=0)
    return tables[0][list(KEYS)].assign(log_prob=shortest)


def _by_slug(scores: Mapping[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """The scores by the short names that stand in metrics and figures."""
    return {slug_of(name): values for name, values in scores.items()}


def _means(metrics: Mapping[str, float]) -> dict[str, float]:
    """``auroc/mean/<score>`` over all outlier datasets that the run was evaluated against."""
    values: dict[str, list[float]] = {}
    for name, value in metrics.items():
        if name.startswith("auroc/") and not name.startswith("auroc/mean/"):
            values.setdefault(name.split("/")[2], []).append(value)
    return {f"auroc/mean/{score}": math.fsum(each) / len(each) for score, each in values.items()}


def describe_run(session: Session, run: RunInfo) -> None:
    """Describe a run that was evaluated, and its registered version where it has one."""
    uri = runs.model_uri(session.store, run.run_id)
    runs.set_tags(session.store, run.run_id, {}, description=results.describe(run, uri))
    if uri:
        runs.describe_model(session.store, uri, results.model_card(run))


def _log_figures(
    session: Session,
    run: RunInfo,
    own: Mapping[str, np.ndarray],
    outs: Mapping[str, Mapping[str, np.ndarray]],
    image_shape: tuple[int, int, int],
) -> None:
    """Histograms of the raw likelihood beside the ratio, and the ROC curves of the best score."""
    name = slug_of(run.tags["dataset"])
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
