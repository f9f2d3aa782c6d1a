"""Figures of scores: densities, ROC curves, and the effect that the ratio repairs.

Figures are values: they are made without pyplot, hence without windows or global state, and drawn
by the Agg canvas. Colours are Okabe and Ito's, which colour-blind readers can tell apart, and each
has a line style of its own, so that the figures survive a black and white printer.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.metrics import roc_curve

from oodflow.errors import UserError
from oodflow.evaluation.metrics import TRUE_POSITIVE_RATE, auroc

__all__ = [
    "COLOURS",
    "LINES",
    "effect_figure",
    "histogram_figure",
    "new_figure",
    "p_value_figure",
    "percent",
    "roc_figure",
    "save_figure",
    "shown_range",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Blue is the in-distribution; vermilion, green, purple, orange and sky blue are outliers."""

LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (3, 1.2)),
    (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)),
)

CORE = (0.01, 0.99)
"""Quantiles of a set that its figure should contain."""

REACH = 6.0
"""How many widths of the in-distribution's core may lie between it and the edge of the figure."""

POINTS = 400
"""Grid points of a density."""

DIRECTION = "more in-distribution →"


def histogram_figure(
    in_name: str,
    in_values: np.ndarray,
    outs: Mapping[str, np.ndarray],
    title: str,
    xlabel: str,
) -> Figure:
    """Densities of one score for the in-distribution and each outlier set, with their AUROC.

    Values are 1-D and finite. What lies outside the shown range, such as likelihoods replaced by
    −3 000 000, is not drawn; the legend says which share of a set that is, from 1 % on.
    """
    figure = new_figure(5.4, 3.6)
    axes = figure.subplots()
    _draw_densities(axes, in_name, in_values, outs)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(f"{xlabel}\n{DIRECTION}")
    axes.set_ylabel("density")
    return figure


def roc_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """ROC curves; each name maps to the scores of (in-distribution, outlier) images.

    In-distribution is the positive class. FPR95 is read off at the thin horizontal line.
    """
    figure = new_figure(4.4, 4.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.75", linewidth=0.8)
    axes.axhline(TRUE_POSITIVE_RATE, color="0.75", linewidth=0.8)
    # From 1: a set has the colour that it has among the densities, where 0 is the inliers.
    for i, (name, (inliers, outliers)) in enumerate(curves.items(), start=1):
        truth = np.repeat([1, 0], [len(inliers), len(outliers)])
        false_positives, true_positives, _ = roc_curve(truth, np.concatenate([inliers, outliers]))
        label = f"{name}: AUROC {percent(auroc(inliers, outliers))}"
        colour, line = _style(i)
        axes.plot(
            false_positives,
            true_positives,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=label,
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("outliers accepted (false-positive rate)")
    axes.set_ylabel("in-distribution accepted (true-positive rate)")
    axes.legend(loc="lower right", fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none")
    return figure


def p_value_figure(in_name: str, p_values: Mapping[str, np.ndarray]) -> Figure:
    """Histograms of conformal p-values: flat for inliers, whose promise holds then.

    ``p_values`` has those of held-out in-distribution images under ``in_name``, and any outlier
    sets'. The thin line is the flat one.
    """
    figure = new_figure(5.4, 3.6)
    axes = figure.subplots()
    axes.axhline(1, color="0.75", linewidth=0.8)
    ordered = {in_name: p_values[in_name], **p_values}
    for i, (name, values) in enumerate(ordered.items()):
        density, edges = np.histogram(values, bins=20, range=(0, 1), density=True)
        colour, line = _style(i)
        axes.stairs(density, edges, color=colour, linestyle=line, linewidth=1.8, label=name)
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.set_title("Conformal p-values", loc="left", fontsize=11)
    axes.set_xlabel(f"p(x)\n{DIRECTION}")
    axes.set_ylabel("density")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none")
    return figure


def effect_figure(
    in_name: str,
    in_scores: Mapping[str, np.ndarray],
    outs: Mapping[str, Mapping[str, np.ndarray]],
    image_shape: tuple[int, int, int],
    *,
    contrast: str = "diff",
) -> Figure:
    """The effect in one picture: the raw likelihood's densities beside the likelihood ratio's.

    Takes scores as :func:`oodflow.evaluation.scores.compute_scores` gives them, of the
    in-distribution set and of each outlier set. Both panels are in bits per dimension, nats divided
    by D·ln 2 with D = C·H·W: the left one shows the negative BPD, the right one the difference of
    the two models' BPD, so that in both the in-distribution should lie on the right.
    """
    nats_per_bit_and_dimension = math.prod(image_shape) * math.log(2)
    figure = new_figure(9.0, 3.7)
    panels = figure.subplots(1, 2)
    for axes, score, title, xlabel in (
        (panels[0], "raw", "Raw likelihood", "log₂ p(x) per dimension"),
        (panels[1], contrast, "Likelihood ratio", "log₂ p(x) / p$_{general}$(x) per dimension"),
    ):
        _draw_densities(
            axes,
            in_name,
            in_scores[score] / nats_per_bit_and_dimension,
            {name: scores[score] / nats_per_bit_and_dimension for name, scores in outs.items()},
        )
        axes.set_title(title, loc="left", fontsize=12)
        axes.set_xlabel(f"{xlabel}\n{DIRECTION}")
    panels[0].set_ylabel("density")
    return figure


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG (200 dots an inch) or PDF, by the extension; the folder is made.

    No date or version goes in: figures of the same values give the same file. A PDF embeds its
    fonts as TrueType (type 42), which publishers ask for. Raises UserError for other extensions.
    """
    path = Path(path)
    # Key by key, None takes out of the file what matplotlib would write by itself.
    metadata = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    if path.suffix not in metadata:
        raise UserError(f"cannot save a figure as {path.name!r}; end the name in .png or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each drawing would move the layout on from where the last one left it: it is done once.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(path, dpi=200, metadata=metadata[path.suffix])


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, with the canvas that draws it."""
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(i: int) -> tuple[str, str | tuple[int, tuple[float, ...]]]:
    return COLOURS[i % len(COLOURS)], LINES[i % len(LINES)]


def percent(fraction: float) -> str:
    """A fraction as text, in per cent with one decimal.

    >>> percent(0.985)
    '98.5 %'
    """
    return f"{100 * fraction:.1f} %"


def _draw_densities(
    axes: Axes, in_name: str, in_values: np.ndarray, outs: Mapping[str, np.ndarray]
) -> None:
    low, high = shown_range(in_values, list(outs.values()))
    grid = np.linspace(low, high, POINTS)
    for i, (name, values) in enumerate([(in_name, in_values), *outs.items()]):
        note = "in-distribution" if i == 0 else f"AUROC {percent(auroc(in_values, values))}"
        outside = np.mean((values < low) | (values > high))
        if outside >= 0.01:
            note += f", {percent(float(outside))} not shown"
        colour, line = _style(i)
        density = _density(values, grid)
        axes.fill_between(grid, density, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            grid,
            density,
            color=colour,
            linestyle=line,
            linewidth=2.0 if i == 0 else 1.7,
            label=f"{name} ({note})",
        )
    axes.set(xlim=(low, high), yticks=[])
    # Room above the highest density, so that the legend does not cover a curve.
    axes.set_ylim(0, axes.get_ylim()[1] * (1.06 + 0.095 * (1 + len(outs))))
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False, borderaxespad=0.1)


def shown_range(in_values: np.ndarray, outs: list[np.ndarray]) -> tuple[float, float]:
    """Limits that hold the cores of all sets, as far as these are within reach of the inliers.

    A core that reaches −3 000 000 would squeeze everything else into one line: the limits stay
    within :data:`REACH` core widths of the in-distribution.
    """
    low, high = np.quantile(in_values, CORE)
    width = (high - low) or 1.0
    cores = np.array([(low, high), *(np.quantile(values, CORE) for values in outs)])
    left = max(cores[:, 0].min(), low - REACH * width)
    right = min(cores[:, 1].max(), high + REACH * width)
    margin = 0.06 * (right - left) or 0.5
    return float(left - margin), float(right + margin)


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density on an even grid, normalised over all values, shown or not.

    Bandwidth 0.9·min(std, IQR/1.34)·n^(−1/5) (Silverman's rule), with the interquartile range
    alone, since a std would follow the values at −3 000 000. Values are first counted in bins as
    wide as a grid step, which costs less than a kernel for each and looks the same.
    """
    step = grid[1] - grid[0]
    quartiles = np.quantile(values, (0.25, 0.75))
    spread = float(quartiles[1] - quartiles[0]) / 1.34
    bandwidth = max(0.9 * spread * len(values) ** -0.2, 1.5 * step)
    bandwidth = min(bandwidth, (grid[-1] - grid[0]) / 20)
    # Bins beyond both ends too: values just outside the figure have part of their kernel inside.
    beyond = math.ceil(4 * bandwidth / step)
    edges = grid[0] + step * (np.arange(-beyond, len(grid) + beyond + 1) - 0.5)
    counts, _ = np.histogram(values, bins=edges)
    kernel = np.exp(-0.5 * (step * np.arange(-beyond, beyond + 1) / bandwidth) ** 2)
    return np.convolve(counts, kernel / kernel.sum(), mode="valid") / (len(values) * step)
