"""The report's figures, drawn from a registry's runs: their curves, score tables and analyses."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oodflow.errors import UserError
from oodflow.evaluation.comparison import critical_difference, friedman, mean_ranks
from oodflow.evaluation.plots import effect_figure
from oodflow.evaluation.scores import clip_non_finite, compute_scores
from oodflow.tracking import runs
from oodflow.tracking.registry import Registry, is_plain, seed_of
from oodflow.tracking.run_info import RunInfo
from oodflow.tracking.store import Store
from reports.all_scores import NAMES, ScoredModel, mean_values
from reports.collect import auroc_frame
from reports.layouts import SHORT_LOSS_NAMES
from reports.overview import (
    extremes_figure,
    fourier_figure,
    overview_figure,
    scatter_figure,
    training_curves_figure,
)
from reports.ranks import rank_figure
from reports.replicates import check_same_images, read_scores

__all__ = ["Drawing", "draw_all", "rank_drawings"]

CURVE_SEEDS = 5
"""Seeds of a setting whose training curves are drawn; more would hide each other."""

EXTREME_ROWS = {
    "raw": "Raw likelihood",
    "diff": "Log-likelihood ratio",
    "last_scale": "Last scale",
}


@dataclass(frozen=True)
class Drawing:
    """A figure with its file name, words, the runs that it is from, and its family of datasets."""

    name: str
    title: str
    caption: str
    figure: Figure
    run_ids: tuple[str, ...]
    family: str


def draw_all(store: Store, registry: Registry) -> Iterator[Drawing]:
    """All figures that the runs allow: the effect first, then S1 to S8 and the scatter plots.

    A figure whose artifacts were lost or are damaged is left out.
    """
    yield from _effects(store, registry)
    yield from _fourier(store, registry)
    for family in registry.families:
        yield from _starts(store, registry, family)
        yield from _overview(registry, family)
        yield from _losses(store, registry, family)
    yield from _extremes(store, registry)


def rank_drawings(scored: Sequence[ScoredModel]) -> Iterator[Drawing]:
    """Mean ranks of all scores, of each family of datasets and models with several pairs."""
    groups: dict[tuple[str, str], list[ScoredModel]] = {}
    for one in scored:
        groups.setdefault((one.family, one.model), []).append(one)
    for (family, model), members in groups.items():
        scores, values = mean_values(members)
        if len(scores) < 3 or len(values) < 2:
            continue
        suffix = family if model == "glow" else f"{family}-{model}"
        names = [NAMES.get(score, score) for score in scores]
        ranks = dict(zip(names, mean_ranks(values).tolist(), strict=True))
        yield Drawing(
            f"score-ranks-{suffix}",
            f"Mean ranks of all scores: {model} ({family})",
            f"Over {len(values)} pairs of datasets by the mean AUROC over seeds, 1 is the best. "
            "A bar joins scores that differ by less than Nemenyi’s critical difference at 5 %. "
            f"Friedman’s test that all are equal has p = {friedman(values):.2g}. Pairs that share "
            "a dataset are not independent, so take both as a rough guide.",
            rank_figure(ranks, critical_difference(len(scores), len(values))),
            tuple(run.run_id for one in members for run in one.analyses),
            family,
        )


def _effects(store: Store, registry: Registry) -> Iterator[Drawing]:
    """Densities of raw likelihood and ratio, and the scatter, of each dataset's first model."""
    first: dict[tuple[str, str], RunInfo] = {}
    for run in registry.training:
        if is_plain(run) and "general_run" in run.tags:
            first.setdefault((run.tags["model"], run.tags["dataset"]), run)
    for (model, dataset), run in first.items():
        suffix = dataset if model == "glow" else f"{dataset}-{model}"
        general = run.tags["general_run"]
        with suppress(UserError):
            tables = _tables(store, run, general)
            ids = (run.run_id, general)
            shape = (int(run.params["model.channels"]), 32, 32)
            scores = {name: compute_scores(*pair) for name, pair in tables.items()}
            own = scores.pop(dataset)
            if not scores:
                continue
            yield Drawing(
                f"effect-{suffix}",
                f"Raw likelihood and likelihood ratio: {dataset}, {model}",
                f"Densities over the test folds; higher means more in-distribution. {_effect(run)}",
                effect_figure(dataset, own, scores, shape),
                ids,
                run.tags["family"],
            )
            points = {
                name: (clip_non_finite(contrast["log_prob"].to_numpy()), raw["raw"])
                for (name, (_, contrast)), raw in zip(
                    tables.items(), (own, *scores.values()), strict=True
                )
            }
            yield Drawing(
                f"scatter-{suffix}",
                f"General against in-distribution likelihood: {dataset}, {model}",
                "Each dot is a test image. ρ is Spearman’s correlation of the two likelihoods: "
                f"near 1, the two models rank the images alike. Seed {seed_of(run)}.",
                scatter_figure(
                    points,
                    shape,
                    xlabel="general model",
                    ylabel=f"model of {dataset}",
                    title=f"{model}, {dataset}",
                ),
                ids,
                run.tags["family"],
            )


def _effect(run: RunInfo) -> str:
    """The AUROCs of a figure's run; where the ratio is the worse one, it is said."""
    parts = []
    for name, raw in run.metrics.items():
        kind, _, place = name.partition("/")
        ood, _, score = place.rpartition("/")
        ratio = run.metrics.get(f"auroc/{ood}/diff")
        if (kind, score) == ("auroc", "raw") and ood != "mean" and ratio is not None:
            worse = ", so the ratio is below the raw likelihood" if ratio < raw else ""
            parts.append(f"{ood} {100 * raw:.1f} and {100 * ratio:.1f}{worse}")
    return f"AUROC in % of raw likelihood and ratio: {'; '.join(parts)}. Seed {seed_of(run)}."


def _tables(
    store: Store, run: RunInfo, general: str
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Dataset → score tables of the run and of its general model, of the same images."""
    oods = [
        name.split("/")[1]
        for name in run.metrics
        if name.startswith("auroc/") and name.endswith("/diff") and "/mean/" not in name
    ]
    found = {}
    for dataset in (run.tags["dataset"], *sorted(oods)):
        own, contrast = (read_scores(store, each, dataset) for each in (run.run_id, general))
        check_same_images(dataset, own, contrast)
        found[dataset] = (own[0], contrast[0])
    return found


def _fourier(store: Store, registry: Registry) -> Iterator[Drawing]:
    """S1, of the first analysis of each family."""
    first: dict[str, RunInfo] = {}
    for run in sorted(registry.analyses, key=seed_of):
        if run.tags["analysis"] == "fourier":
            first.setdefault(run.tags["family"], run)
    for family, run in first.items():
        with suppress(UserError):
            arrays = _arrays(store, run, "analysis/fourier.npz")
            yield Drawing(
                f"s1-fourier-{family}",
                f"S1: Fourier mix ({family})",
                "Results have the amplitudes of one image and the phases of another. "
                + _mixed(run),
                fourier_figure(arrays["amplitude"], arrays["phase"], arrays["mixed"]),
                (run.run_id,),
                family,
            )


def _mixed(run: RunInfo) -> str:
    """The correlations that an analysis of Fourier mixes found."""
    donors = ("amplitude", "phase")
    numbers = [
        f"{images} "
        + " and ".join(f"{run.metrics[f'spearman/{images}/{donor}']:.2f}" for donor in donors)
        for images in (run.tags["dataset"], "together")
        if f"spearman/{images}/amplitude" in run.metrics
    ]
    return (
        "Spearman’s correlation of a result’s likelihood with that of the image behind its "
        f"amplitudes and behind its phases: {'; '.join(numbers).replace(' -', ' −')}. "
        f"Model of {run.tags['dataset']}, seed {seed_of(run)}."
    )


def _arrays(store: Store, run: RunInfo, path: str) -> Mapping[str, np.ndarray]:
    """The arrays of an artifact; UserError where it is lost or damaged."""
    with runs.artifact(store, run.run_id, path) as local:
        try:
            with np.load(io.BytesIO(local.read_bytes()), allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"run {run.run_id}: {path} cannot be read") from error


def _starts(store: Store, registry: Registry, family: str) -> Iterator[Drawing]:
    """S2 to S4: from scratch, finetuned, and finetuned from an own model, without outlier loss."""
    series = {
        start: [
            run
            for run in _glows(registry, family)
            if (run.tags["outlier_loss"], run.tags["init"]) == ("none", start)
        ]
        for start in ("scratch", "general", "own")
    }
    for name, starts, measure, title in (
        ("s2-auroc", ("scratch", "general"), "auroc", "S2: anomaly detection in training"),
        (
            "s3-bpd",
            ("scratch", "general"),
            "bpd",
            "S3: bits per dimension in training",
        ),
        ("s4-own", ("general", "own"), "auroc", "S4: finetuned from an own model"),
    ):
        reference = "scratch" if "scratch" in starts else ""
        chosen = {start: series[start] for start in starts}
        yield from _curves(
            store, family, f"{name}-{family}", f"{title} ({family})", chosen, measure, reference
        )


def _losses(store: Store, registry: Registry, family: str) -> Iterator[Drawing]:
    """S6: the margin against the binary outlier loss."""
    chosen = {
        loss: [
            run
            for run in _glows(registry, family)
            if (run.tags["outlier_loss"], run.tags["init"]) == (loss, "general")
        ]
        for loss in SHORT_LOSS_NAMES
    }
    if chosen["margin"] and chosen["binary"]:
        title = f"S6: margin against binary outlier loss ({family})"
        yield from _curves(store, family, f"s6-losses-{family}", title, chosen, "auroc", "")


def _glows(registry: Registry, family: str) -> Iterator[RunInfo]:
    wanted = ("glow", "in_distribution", "unsupervised", family)
    for run in registry.training:
        tags = run.tags
        if (tags["model"], tags["role"], tags["setting"], tags["family"]) == wanted:
            yield run


def _curves(
    store: Store,
    family: str,
    name: str,
    title: str,
    series: Mapping[str, list[RunInfo]],
    measure: str,
    reference: str,
) -> Iterator[Drawing]:
    """Training curves of the datasets that have runs of at least two series."""
    panels: dict[str, dict[str, list[RunInfo]]] = {}
    for key, members in series.items():
        for run in members:
            panels.setdefault(run.tags["dataset"], {}).setdefault(key, []).append(run)
    panels = {dataset: keys for dataset, keys in panels.items() if len(keys) > 1}
    drawn = [
        (dataset, key, run)
        for dataset, keys in panels.items()
        for key, members in keys.items()
        for run in members[:CURVE_SEEDS]
    ]
    rows = [
        {"panel": dataset, "series": key, "seed": seed_of(run), "step": step, "value": value}
        for dataset, key, run in drawn
        for step, value in _history(store, run, measure).items()
    ]
    if not rows:
        return
    labels = {
        "auroc": "AUROC of the ratio in %, mean over outlier datasets",
        "bpd": "bits per dimension",
    }
    seeds = ", ".join(map(str, sorted({seed_of(run) for _, _, run in drawn})))
    yield Drawing(
        name,
        title,
        f"Thin lines are seeds ({seeds}), thick lines their means"
        + (", horizontal lines the final mean of training from scratch" if reference else "")
        + ". Measured on the first images of the test folds, so the tables have other numbers.",
        training_curves_figure(
            pd.DataFrame(rows), ylabel=labels[measure], title=title, reference=reference
        ),
        tuple(run.run_id for _, _, run in drawn),
        family,
    )


def _history(store: Store, run: RunInfo, measure: str) -> dict[int, float]:
    """Step → BPD, or the mean AUROC in % of the ratio over the outlier datasets."""
    names = ["valid/bpd"]
    if measure == "auroc":
        names = [
            name
            for name in run.metrics
            if name.startswith("valid/auroc/") and name.endswith("/diff")
        ]
    histories = [runs.history(store, run.run_id, name) for name in names]
    if not histories:
        return {}
    steps = sorted(set(histories[0]).intersection(*histories[1:]))
    scale = 100 if measure == "auroc" else 1
    return {
        step: scale * float(np.mean([history[step] for history in histories])) for step in steps
    }


def _overview(registry: Registry, family: str) -> Iterator[Drawing]:
    """S5, of the models with outlier loss where there are any, else of those without."""
    frame = auroc_frame(registry, "glow", family)
    losses = set(frame["outlier_loss"])
    loss = "binary" if "binary" in losses else "none"
    frame = frame[(frame["outlier_loss"] == loss) & ~frame["score"].isin(["scale1", "scale2"])]
    if loss == "binary":
        # As in the paper, whose figure has the scores of Table S2.
        frame = frame[frame["score"] != "raw"]
    if frame.empty:
        return
    yield Drawing(
        f"s5-overview-{family}",
        f"S5: overview, {'binary' if loss == 'binary' else 'no'} outlier loss ({family})",
        f"Markers are means over the {frame['seed'].nunique()} seeds, bars their standard errors. "
        "Rows are in-distribution datasets, columns outlier datasets.",
        overview_figure(frame),
        tuple(dict.fromkeys(frame["run_id"])),
        family,
    )


def _extremes(store: Store, registry: Registry) -> Iterator[Drawing]:
    """S7 and S8, of the first seed of each dataset, without and with outlier loss."""
    first: dict[tuple[str, str], RunInfo] = {}
    for run in sorted(registry.analyses, key=seed_of):
        if run.tags["analysis"] == "extremes":
            first.setdefault((run.tags["outlier_loss"], run.tags["dataset"]), run)
    for (loss, dataset), run in sorted(first.items(), key=lambda item: item[0][0] != "none"):
        number, what = ("s7", "without") if loss == "none" else ("s8", f"with {loss}")
        with suppress(UserError):
            arrays = _arrays(store, run, "analysis/extremes.npz")
            rows = {
                label: arrays[f"{score}/images"]
                for score, label in EXTREME_ROWS.items()
                if f"{score}/images" in arrays
            }
            title = (
                f"{number.upper()}: highest-scoring general images: {dataset}, {what} outlier loss"
            )
            yield Drawing(
                f"{number}-extremes-{dataset}" + ("" if loss in ("none", "binary") else f"-{loss}"),
                title,
                "The images of the general set with the highest scores, the highest first. Seed "
                f"{seed_of(run)}.",
                extremes_figure(rows, title),
                (run.run_id,),
                run.tags["family"],
            )
