"""The paper's figures as values; here those of points: the overview (S5) and the scatter plots.

Pure functions from arrays and tidy frames to figures, under one address: training curves come from
:mod:`reports.curves`, figures of images from :mod:`reports.pictures`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import spearmanr

from oodflow.evaluation.metrics import mean_std
from oodflow.evaluation.plots import COLOURS, new_figure, percent, save_figure, shown_range
from oodflow.evaluation.scores import CLIP
from reports.curves import SERIES, training_curves_figure
from reports.layouts import SCORE_NAMES, check_frame
from reports.pictures import extremes_figure, fourier_figure
from reports.style import (
    LABEL,
    MARKERS,
    SMALL,
    TITLE,
    WIDTH,
    legend_below,
    text_height,
    wrapped,
)

__all__ = [
    "SERIES",
    "extremes_figure",
    "fourier_figure",
    "overview_figure",
    "save_both",
    "scatter_figure",
    "training_curves_figure",
]

SCORE_MARKERS = dict(zip(SCORE_NAMES, MARKERS, strict=False))

SETTINGS = {"unsupervised": (COLOURS[0], COLOURS[0]), "supervised": (COLOURS[1], "white")}
"""Colours of a setting's markers: edge and face, so that print without colour has hollow ones."""

DRAWN = 2000
"""Points of a dataset in a scatter plot, at most."""

UNIT = "−BPD (more likely →)"
"""Of the axes of a scatter plot; at the upright one the arrow points upwards."""

Points = Mapping[str, tuple[np.ndarray, np.ndarray]]


def overview_figure(frame: pd.DataFrame) -> Figure:
    """All detection results at a glance, mean and standard error over the seeds (Figure S5).

    ``frame`` has one number per row: dataset, ood, score, setting (unsupervised, supervised), seed,
    auroc (a fraction). Rows of panels are in-distribution datasets, columns outlier datasets, in
    the order of the frame; a pair without numbers is hatched. The marker's shape is the score, its
    colour the setting; the bar is the standard error of the mean, std/√n with the sample standard
    deviation, none for one seed. The single scales are not drawn, as in the tables.

    Raises ValueError for missing columns, an unknown setting, an AUROC outside 0 … 1, or two
    numbers for one place.
    """
    place = ["dataset", "ood", "score", "setting"]
    if frame.empty:
        raise ValueError("the frame has no rows")
    check_frame(frame, [*place, "seed"], "auroc", {"setting": SETTINGS})
    frame = frame[frame["score"].isin(list(SCORE_NAMES))]
    if frame.empty:
        raise ValueError(f"the frame has none of the scores {', '.join(SCORE_NAMES)}")
    if not frame["auroc"].between(0, 1).all():
        raise ValueError("an AUROC lies outside 0 … 1; pass fractions")
    datasets, oods = list(frame["dataset"].unique()), list(frame["ood"].unique())
    scores = [score for score in SCORE_NAMES if score in set(frame["score"])]
    settings = [setting for setting in SETTINGS if setting in set(frame["setting"])]
    names = [wrapped(dataset, 1.2, LABEL) for dataset in datasets]
    # Beside the panels there are the labels of the rows, and the numbers at the axis.
    beside = 0.9 + max(text_height(name, LABEL) for name in names)
    titles = [wrapped(ood, (WIDTH - beside) / len(oods) - 0.08, LABEL) for ood in oods]
    above = max(text_height(text, LABEL) for text in titles)
    figure = new_figure(WIDTH, 0.3 + above + 1.4 * len(datasets))
    grid = figure.subplots(len(datasets), len(oods), sharex=True, sharey=True, squeeze=False)
    for row, dataset, name in zip(grid, datasets, names, strict=True):
        for axes, ood in zip(row, oods, strict=True):
            part = frame[(frame["dataset"] == dataset) & (frame["ood"] == ood)]
            _draw_pair(axes, part, scores, settings)
        row[0].set_ylabel(f"{name}\nAUROC in %", fontsize=LABEL)
    for axes, text in zip(grid[0], titles, strict=True):
        axes.set_title(text, fontsize=LABEL)
    grid[0, 0].set_xlim(-0.6, len(scores) - 0.4)
    figure.suptitle("Outlier dataset", fontsize=LABEL)
    figure.supylabel("In-distribution dataset", fontsize=LABEL)
    marks = [_mark(SCORE_MARKERS[score], "0.25", "0.25", SCORE_NAMES[score]) for score in scores]
    patches = [Patch(ec=SETTINGS[name][0], fc=SETTINGS[name][1], label=name) for name in settings]
    legend_below(figure, [*marks, *patches], handle_length=1.6)
    return figure


def _draw_pair(
    axes: Axes, part: pd.DataFrame, scores: Sequence[str], settings: Sequence[str]
) -> None:
    axes.set_xticks([])
    axes.tick_params(labelsize=SMALL)
    if part.empty:
        axes.patch.set(hatch="////", edgecolor="0.8")
        return
    axes.axhline(50, color="0.7", linewidth=0.8, zorder=0)
    for score, setting in product(scores, settings):
        values = 100 * part.loc[(part["score"] == score) & (part["setting"] == setting), "auroc"]
        if values.empty:
            continue
        mean, std = mean_std(values)
        edge, face = SETTINGS[setting]
        axes.errorbar(
            scores.index(score) + 0.36 * (settings.index(setting) - (len(settings) - 1) / 2),
            mean,
            yerr=None if math.isnan(std) else std / math.sqrt(len(values)),
            marker=SCORE_MARKERS[score],
            markersize=4.5,
            color=edge,
            markerfacecolor=face,
            elinewidth=1.0,
            capsize=3.0,
        )


def _mark(marker: str, edge: str, face: str, label: str) -> Line2D:
    """A marker without a line, for a legend."""
    return Line2D(
        [],
        [],
        linestyle="none",
        marker=marker,
        markersize=5,
        color=edge,
        markerfacecolor=face,
        label=label,
    )


def scatter_figure(
    points: Points, image_shape: tuple[int, int, int], *, xlabel: str, ylabel: str, title: str
) -> Figure:
    """Likelihoods of two models image by image, with their rank correlation.

    ``points`` maps a dataset, the in-distribution one first, to log p(x) in nats under the general
    and under the in-distribution model: 1-D, of the same images, finite. The axes show
    log p / (D·ln 2) with D = C·H·W, the negative BPD, so that higher is more likely. Spearman's
    correlation is over all images of a dataset, and over all datasets in the title; at most
    :data:`DRAWN` images of a dataset are drawn, evenly from its order. What lies outside the shown
    range, such as likelihoods replaced by −3 000 000, is not drawn; the legend says which share.

    Raises ValueError where there are no points, or pairs of arrays that are not as said.
    """
    _check_points(points, image_shape)
    bits = 1 / (math.prod(image_shape) * math.log(2))
    scaled = {
        name: (bits * np.asarray(x, float), bits * np.asarray(y, float))
        for name, (x, y) in points.items()
    }
    ylabel = wrapped(f"{ylabel}, {UNIT}", 3.0, LABEL)
    # What the labels and numbers of the y-axis leave.
    width = 4.6 - text_height(ylabel, LABEL)
    xlabel = wrapped(f"{xlabel}, {UNIT}", width, LABEL)
    heading = wrapped(title, width, TITLE)
    figure = new_figure(5.4, 4.2 + text_height(heading, TITLE))
    axes = figure.subplots()
    axes.set_xlim(_likely_range([x for x, _ in scaled.values()], bits * CLIP))
    axes.set_ylim(_likely_range([y for _, y in scaled.values()], bits * CLIP))
    handles = []
    for i, (name, (x, y)) in enumerate(scaled.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        drawn = np.linspace(0, len(x) - 1, min(DRAWN, len(x))).round().astype(int)
        # As pixels, also in a PDF: ten thousand vector markers would make it large and slow.
        axes.scatter(
            x[drawn],
            y[drawn],
            s=9,
            color=colour,
            marker=marker,
            alpha=0.5,
            linewidths=0,
            rasterized=True,
        )
        note = f"{_correlation(x, y)}{_absence(axes, x, y)}"
        handles.append(_mark(marker, colour, colour, f"{wrapped(name, 2.6, LABEL)}: {note}"))
    everywhere = (np.concatenate(side) for side in zip(*scaled.values(), strict=True))
    overall = _correlation(*everywhere)
    axes.set_title(f"{heading}\nall images: Spearman's {overall}", loc="left", fontsize=TITLE)
    axes.set_xlabel(xlabel, fontsize=LABEL)
    axes.set_ylabel(ylabel, fontsize=LABEL)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure, handles, handle_length=1.0)
    return figure


def _check_points(points: Points, image_shape: tuple[int, int, int]) -> None:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"an image has a shape of C, H and W, not {image_shape}")
    if not points:
        raise ValueError("there are no points to draw")
    for name, pair in points.items():
        x, y = (np.asarray(side) for side in pair)
        if x.ndim != 1 or x.shape != y.shape or x.size == 0:
            raise ValueError(
                f"{name}: the likelihoods have the shapes {x.shape} and {y.shape}; "
                "pass one of each model for every image"
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(f"{name}: a likelihood is not finite; replace those first (S4.5)")


def _likely_range(sets: Sequence[np.ndarray], clip: float) -> tuple[float, float]:
    """Limits for the likelihoods that no number stands for."""
    # A likelihood got back from a difference is equal to the number only up to rounding.
    kept = [part for values in sets if (part := values[values > 0.999 * clip]).size] or list(sets)
    return shown_range(kept[0], kept[1:])


def _correlation(x: np.ndarray, y: np.ndarray) -> str:
    # Ranks of equal values have no order that another could follow.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "ρ undefined"
    # The nought takes the sign from a rounded −0.00.
    rounded = round(float(spearmanr(x, y).statistic), 2) + 0.0
    return f"ρ = {rounded:.2f}".replace("-", "−")


def _absence(axes: Axes, x: np.ndarray, y: np.ndarray) -> str:
    """How many of the points lie outside the limits, "" where that rounds to none."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    outside = float(np.mean((x < left) | (x > right) | (y < bottom) | (y > top)))
    return f", {percent(outside)} not shown" if outside >= 0.0005 else ""


def save_both(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write STEM.png and STEM.pdf, the same bytes for the same figure; returns both paths."""
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")
    for path in paths:
        save_figure(figure, path)
    return paths
