"""The analyses of one model, as tasks, so that all they need is checked before any is made.

=========== ====================================================================================
fourier     which donor the likelihood of a Fourier-mixed image follows (S3)
correlation rank correlation of the likelihood with that of other models
extremes    the highest-scoring images of the general set (S8)
folds       AUROC with inliers of the training fold in place of the test fold (S6)
scores      every score of the field on the same images
=========== ====================================================================================
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from oodflow import console
from oodflow.data.batches import step_generator
from oodflow.data.catalog import agreeing, dataset_list, lookup, slug_of
from oodflow.data.images import Images
from oodflow.errors import UserError
from oodflow.evaluation.extremes import highest, random_subset
from oodflow.evaluation.field_scores import statistics_of
from oodflow.evaluation.fourier import derangement, fourier_mix
from oodflow.evaluation.metrics import auroc, evaluate_scores
from oodflow.evaluation.sampling import grid
from oodflow.evaluation.scores import absent_scores, clip_non_finite, compute_scores
from oodflow.experiment import json_hash
from oodflow.models.likelihood import NOISE_FREE
from oodflow.options import AUTO, AnalyseOptions
from oodflow.registration import MODELS
from oodflow.tracking import runs
from oodflow.tracking.run_info import RunInfo
from oodflow.workflow.choose import diff_outlier_general
from oodflow.workflow.evaluate import contrasts
from oodflow.workflow.evaluation_run import detection_scores, sample_size, score_table
from oodflow.workflow.session import SAMPLE, LoadedModel, Session, check_same_shape

__all__ = ["ANALYSES", "Findings", "AnalysisTask"]

SCORES = ("raw", "diff", "last_scale")
"""Scores that are ranked and compared, where the model has them."""

SEED = 0
"""Seed of donors and subsets, the same for all models, which are compared on equal images."""

BATCH = 250
"""Images that are mixed or scored at once."""

EXAMPLES = 8
"""Mixed images that are kept for the figure."""

TOGETHER = "together"
"""Stands for the datasets of the Fourier mix in one pool."""


@dataclass(frozen=True)
class Findings:
    """An analysis's results: metrics, and arrays for the artifact ``analysis/<analysis>.npz``."""

    metrics: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → picture, uint8 H×W×3, that the MLflow UI shows."""


@dataclass(frozen=True)
class AnalysisTask:
    """One analysis of one model, not made yet."""

    analysis: str
    run: RunInfo
    models: tuple[LoadedModel, ...]
    """All models whose likelihoods enter; the analysed one is the first."""
    images: tuple[Images, ...]
    measure: Callable[[], Findings]
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags beyond those that every analysis has."""

    @property
    def spec(self) -> str:
        """Hash of everything that decides the numbers: options, weights and images; 16 digits."""
        facts = {
            "analysis": self.analysis,
            "options": dict(self.options),
            "weights": [model.digest for model in self.models],
            "images": [[slug_of(each.name), each.fold, each.digest] for each in self.images],
        }
        return json_hash(facts)


def _own_general(session: Session, run: RunInfo) -> RunInfo | None:
    """The general model that the run was evaluated against."""
    known = run.tags.get("general_run", "")
    return runs.get(session.store, known) if known else None


def _log_prob(session: Session, run: RunInfo, dataset: str, limit: int) -> np.ndarray:
    """Noise-free log p of a dataset's test images under a run's model, clipped, in nats."""
    return clip_non_finite(score_table(session, run, dataset, limit)["log_prob"].to_numpy())


def _batch_scores(
    session: Session, pixels: Tensor, loaded: LoadedModel, general: LoadedModel | None = None
) -> dict[str, np.ndarray]:
    """The scores of one batch of images, noise-free."""
    tables = []
    with torch.inference_mode():
        images = pixels.to(session.device)
        for each in (loaded, general) if general else (loaded,):
            contributions = each.model(images, NOISE_FREE).cpu().double().numpy()
            columns = {"index": np.arange(len(images)), "label": -1}
            if each.model.scales > 1:
                columns |= {f"scale{i + 1}": c for i, c in enumerate(contributions.T)}
            tables.append(pd.DataFrame(columns | {"log_prob": contributions.sum(axis=1)}))
    return compute_scores(*tables, names=SCORES)


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(spearmanr(first, second).statistic)


def fourier(session: Session, run: RunInfo, chosen: AnalyseOptions) -> AnalysisTask:
    """Spearman correlation of log p of mixed images with that of either donor (S3).

    Every test image of a set gives its amplitudes once and its phases once, to another image.
    """
    dataset = run.tags["dataset"]
    if chosen.images == AUTO:
        names = (dataset, *session.outliers(run.tags["dataset"])[:2])
    else:
        given = dataset_list(chosen.images)
        names = tuple(dict.fromkeys(agreeing(name, lookup(dataset).channels) for name in given))
    sets = [session.images(name, "test", chosen.limit) for name in names]

    def measure() -> Findings:
        log_prob = np.concatenate([_log_prob(session, run, n, chosen.limit) for n in names])
        pool = torch.cat([images.pixels for images in sets])
        starts = np.cumsum([0, *(len(images.pixels) for images in sets)]).tolist()
        groups = {
            slug_of(name): torch.arange(start, stop)
            for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True)
        } | {TOGETHER: torch.arange(len(pool))}
        metrics = {}
        for name, amplitude in groups.items():
            generator = step_generator(SEED, f"fourier/{name}", 0)
            phase = amplitude[derangement(len(amplitude), generator)]
            mixed = _mixed_log_prob(session, run, f"mixed {name}", pool, amplitude, phase)
            for donor, positions in (("amplitude", amplitude), ("phase", phase)):
                metrics[f"spearman/{name}/{donor}"] = _spearman(mixed, log_prob[positions.numpy()])
        # The last group is the pool: the position of a donor tells its dataset.
        own, other = (np.searchsorted(starts, each.numpy(), "right") for each in (amplitude, phase))
        shown = np.argsort(own == other, kind="stable")[:EXAMPLES]
        donors = {"amplitude": pool[amplitude[shown]], "phase": pool[phase[shown]]}
        examples = donors | {"mixed": fourier_mix(**donors)}
        arrays = {name: images.numpy() for name, images in examples.items()}
        rows = grid(torch.cat([*examples.values()]), len(shown))
        return Findings(metrics, arrays, pictures={"amplitude phase mix": rows})

    return AnalysisTask("fourier", run, (session.model(run),), tuple(sets), measure)


def _mixed_log_prob(
    session: Session, run: RunInfo, what: str, pool: Tensor, amplitude: Tensor, phase: Tensor
) -> np.ndarray:
    """Noise-free log p of the mixes of the pool's images at these positions, in batches."""
    loaded, values = session.model(run), []
    with console.progress(f"{run.name}: scoring {what}", len(amplitude)) as advance:
        for start in range(0, len(amplitude), BATCH):
            batch = slice(start, start + BATCH)
            mixed = fourier_mix(pool[amplitude[batch]], pool[phase[batch]])
            values.append(_batch_scores(session, mixed, loaded)["raw"])
            advance(start + len(mixed))
    return np.concatenate(values)


def correlation(session: Session, run: RunInfo, chosen: AnalyseOptions) -> AnalysisTask:
    """Spearman correlation of log p with that of other families' models, and the general one.

    The other models are trained alike, and of each pair of families the first in the order of
    ``MODELS.names()`` is the one analysed.
    """
    names = (run.tags["dataset"], *session.outliers(run.tags["dataset"]))
    others = _later_families(session, run)
    if general := _own_general(session, run):
        others["general"] = general
    if not others:
        raise UserError(
            f"run {run.run_id} has no other model to be compared with; give it a general model: "
            f"oodflow evaluate --run {run.run_id}"
        )

    def measure() -> Findings:
        metrics = {}
        for name in names:
            own = _log_prob(session, run, name, chosen.limit)
            for other, model in others.items():
                value = _spearman(own, _log_prob(session, model, name, chosen.limit))
                metrics[f"spearman/{slug_of(name)}/{other}"] = value
        return Findings(metrics)

    return AnalysisTask(
        "correlation",
        run,
        tuple(session.model(each) for each in (run, *others.values())),
        tuple(session.images(name, "test", chosen.limit) for name in names),
        measure,
        tags={"other_runs": " ".join(each.run_id for each in others.values())}
        | ({"general_run": general.run_id} if general else {}),
    )


def _later_families(session: Session, run: RunInfo) -> dict[str, RunInfo]:
    """Family → its newest registered model trained as the run was, for the families after its own.

    Trained alike: same dataset, seed, setting, outlier loss and start.
    """
    alike = ("kind", "role", "dataset", "seed", "setting", "outlier_loss", "init")
    tags = {"registered": "true"} | {name: run.tags[name] for name in alike}
    newest: dict[str, RunInfo] = {}
    for found in runs.find(session.store, tags, status="FINISHED"):
        newest.setdefault(found.tags["model"], found)
    names = MODELS.names()
    own = run.tags["model"]
    later = names[names.index(own) + 1 :] if own in names else ()
    return {name: newest[name] for name in later if name in newest}


def extremes(session: Session, run: RunInfo, chosen: AnalyseOptions) -> AnalysisTask:
    """The highest-scoring general images, of a random subset of the general set's training fold."""
    for name, value in {"top": chosen.top, "subset": chosen.subset}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    general = _own_general(session, run)
    if general is None:
        raise UserError(
            f"run {run.run_id} has no general model, whose images are ranked; give it one: "
            f"oodflow evaluate --run {run.run_id}"
        )
    images = session.images(general.tags["dataset"], "train")
    loaded, contrast = session.model(run), session.model(general)
    check_same_shape(
        images.name, loaded.experiment.model.channels, f"the model of run {run.run_id}"
    )
    subset = random_subset(
        len(images.pixels), chosen.subset, step_generator(SEED, f"extremes/{images.name}", 0)
    )

    def score(pixels: Tensor) -> dict[str, np.ndarray]:
        return _batch_scores(session, pixels, loaded, contrast)

    def measure() -> Findings:
        with console.progress(
            f"{run.name}: ranking {slug_of(images.name)}", len(subset)
        ) as advance:
            rankings = highest(
                images.pixels, subset, score, chosen.top, batch_size=BATCH, on_progress=advance
            )
        metrics, arrays = {"extremes/images": float(len(subset))}, {}
        pictures = {}
        for name, (values, positions) in rankings.items():
            metrics[f"extremes/{name}/threshold"] = float(values[-1])
            best = images.pixels[torch.from_numpy(positions)]
            pictures[f"highest {name}"] = grid(best)
            arrays[f"{name}/images"] = best.numpy()
            arrays |= {f"{name}/values": values, f"{name}/indices": positions}
        return Findings(metrics, arrays, pictures=pictures)

    options = {"top": chosen.top, "subset": len(subset)}
    tags = {"general_run": general.run_id}
    return AnalysisTask("extremes", run, (loaded, contrast), (images,), measure, options, tags)


def folds(session: Session, run: RunInfo, chosen: AnalyseOptions) -> AnalysisTask:
    """AUROC against the outlier test folds with inliers of the test and of the training fold (S6).

    As many training images as there are test images: the first ones.
    """
    dataset, oods = run.tags["dataset"], session.outliers(run.tags["dataset"])
    if not oods:
        raise UserError(f"no outlier dataset of {dataset} is present; see `oodflow datasets list`")
    general = _own_general(session, run)
    test = session.images(dataset, "test", chosen.limit)
    count = len(test.pixels)
    images = (
        test,
        session.images(dataset, "train", count),
        *(session.images(name, "test", chosen.limit) for name in oods),
    )

    def scores(name: str, fold: str, limit: int) -> dict[str, np.ndarray]:
        models: Sequence[RunInfo] = (run, general) if general else (run,)
        tables = (score_table(session, m, name, limit, fold) for m in models)
        return compute_scores(*tables, names=SCORES)

    def measure() -> Findings:
        tested, trained = scores(dataset, "test", chosen.limit), scores(dataset, "train", count)
        metrics = {}
        for name in oods:
            ood = slug_of(name)
            for score, outliers in scores(name, "test", chosen.limit).items():
                usual = metrics[f"auroc/{ood}/{score}"] = auroc(tested[score], outliers)
                other = metrics[f"train_fold/auroc/{ood}/{score}"] = auroc(trained[score], outliers)
                metrics[f"gap/{ood}/{score}"] = other - usual
        return Findings(metrics)

    models = (session.model(run), *((session.model(general),) if general else ()))
    tags = {"general_run": general.run_id} if general else {}
    return AnalysisTask("folds", run, models, images, measure, tags=tags)


def all_scores(session: Session, run: RunInfo, chosen: AnalyseOptions) -> AnalysisTask:
    """All scores of the catalogue's test images, and every metric against each outlier dataset.

    What they need and is not there yet is made. The artifact has ``<dataset>/<score>``, a value an
    image. Tags say which scores are absent, and why, and what ``dose`` is a density of.
    """
    dataset, oods = run.tags["dataset"], session.outliers(run.tags["dataset"])
    if not oods:
        raise UserError(f"no outlier dataset of {dataset} is present; see `oodflow datasets list`")
    known = run.tags.get("general_outlier_run", "")
    outlier = runs.get(session.store, known) if known else diff_outlier_general(session.store, run)
    beside = contrasts(session, run, chosen, _own_general(session, run), outlier, seeds=True)
    count = sample_size(session, dataset, beside, chosen.limit)
    tests = [session.images(name, "test", chosen.limit) for name in (dataset, *oods)]
    images = (*tests, session.images(dataset, SAMPLE, count)) if count else tuple(tests)
    models = (run, beside.general, beside.general_outlier, *beside.seeds, *beside.compressors)

    def measure() -> Findings:
        found = detection_scores(session, run, beside, AUTO, chosen.limit)
        arrays = {
            f"{slug_of(name)}/{score}": values
            for name, scores in found.items()
            for score, values in scores.items()
        }
        own = found.pop(dataset)
        metrics = evaluate_scores(own, {slug_of(name): each for name, each in found.items()})
        absent = absent_scores(own, session.model(run).model.scales)
        tags = {"absent": "; ".join(f"{score}: {why}" for score, why in absent.items())}
        if count:
            tables = (
                score_table(session, run, dataset, limit, fold)
                for limit, fold in ((chosen.limit, "test"), (count, SAMPLE))
            )
            tags["dose_statistics"] = " ".join(statistics_of(*tables))
        return Findings(metrics, arrays, tags)

    digests = " ".join(f"{slug_of(each.name)}={each.digest}" for each in tests)
    tags = {"images": digests}
    tags |= {"seed_runs": " ".join(each.run_id for each in beside.seeds)} if beside.seeds else {}
    tags |= {"general_run": beside.general.run_id} if beside.general else {}
    return AnalysisTask(
        "scores",
        run,
        tuple(session.model(each) for each in models if each),
        images,
        measure,
        options={"gradient": chosen.gradient},
        tags=tags,
    )


ANALYSES: Mapping[str, Callable[[Session, RunInfo, AnalyseOptions], AnalysisTask]] = {
    "fourier": fourier,
    "correlation": correlation,
    "extremes": extremes,
    "folds": folds,
    "scores": all_scores,
}
"""The analyses by name; each gives the task of analysing one in-distribution model."""
