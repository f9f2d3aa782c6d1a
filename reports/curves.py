"""Training curves: thin lines of the seeds, a thick mean, the final level to compare with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from oodflow.evaluation.plots import COLOURS, LINES, new_figure
from reports.layouts import check_frame
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

__all__ = ["SERIES", "Series", "training_curves_figure"]


@dataclass(frozen=True)
class Series:
    """How one kind of training is named and drawn, the same in every figure."""

    name: str
    colour: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str

    @property
    def style(self) -> dict[str, Any]:
        """Properties of the mean's line, in the panels and in the legend."""
        return {
            "color": self.colour,
            "linestyle": self.line,
            "linewidth": 1.8,
            "marker": self.marker,
            "markersize": 4.5,
        }


BLACK = "#000000"

SERIES: Mapping[str, Series] = {
    key: Series(name, colour, LINES[i], MARKERS[i])
    for i, (key, name, colour) in enumerate(
        (
            ("scratch", "from scratch", COLOURS[0]),
            ("general", "finetuned from general", COLOURS[1]),
            ("own", "finetuned from own model", COLOURS[2]),
            ("none", "no outlier loss", BLACK),
            ("binary", "binary outlier loss", COLOURS[3]),
            ("margin", "margin loss", COLOURS[4]),
        )
    )
}
"""By the key in the column ``series`` of a frame, in the order of the legend."""

PANELS = 3
"""Panels side by side."""

WIDTHS = {1: 4.6, 2: 6.0, 3: WIDTH}
"""Inches of a figure, by its panels side by side."""

REFERENCE_WIDTH = 0.9
"""Points of the horizontal line at the final mean."""

MARKS = 6
"""Markers along a mean, about."""

THOUSANDS = 10_000
"""From so many updates on, their numbers are in thousands: 50k."""

CORE = (0.1, 0.9)
REACH = 20.0
"""Values farther from a panel's core quantiles than so many core widths lie outside the panel."""


def training_curves_figure(
    curves: pd.DataFrame, *, ylabel: str, title: str, reference: str = "scratch"
) -> Figure:
    """A value over the updates, a panel for each dataset or pair (Figures S2, S3, S4, S6).

    ``curves`` has one number per row: panel, series (a key of :data:`SERIES`), seed, step, value.
    Panels appear in the order of the frame. The thick line is the mean over a series' seeds, at the
    steps that all of them have: where seeds end or log differently, others would average something
    else. Non-finite values are gaps, in their seed and in the mean. A thin horizontal line marks
    the final mean of the series ``reference`` where a panel has one; "" asks for none. A panel
    holds all values but those of a diverged update, far beyond the rest.

    Raises ValueError for missing columns, an unknown series, two numbers for one place, or where
    there is no finite value.
    """
    if curves.empty:
        raise ValueError("the frame has no rows")
    check_frame(curves, ["panel", "series", "seed", "step"], "value", {"series": SERIES})
    if reference and reference not in SERIES:
        raise ValueError(f"unknown reference {reference!r}; known: {', '.join(SERIES)}")
    values = curves["value"].astype(float)
    curves = curves.assign(value=values.where(np.isfinite(values)))
    if curves["value"].isna().all():
        raise ValueError("no value of the frame is finite")
    panels = list(curves["panel"].unique())
    columns = min(len(panels), PANELS)
    rows = math.ceil(len(panels) / columns)
    heading = wrapped(title, WIDTHS[columns] - 0.2, TITLE)
    ylabel = wrapped(ylabel, 1.6, LABEL)
    # The rest of a panel's column are the numbers at its axis.
    width = (WIDTHS[columns] - text_height(ylabel, LABEL)) / columns - 0.55
    names = [wrapped(panel, width, LABEL) for panel in panels]
    row_height = 1.8 + max(text_height(name, LABEL) for name in names)
    figure = new_figure(WIDTHS[columns], 0.5 + text_height(heading, TITLE) + rows * row_height)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    referred = False
    for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        referred |= _draw_panel(axes, curves[curves["panel"] == panel], reference)
        lowest = i + columns >= len(panels)
        axes.set_title(names[i], loc="left", fontsize=LABEL)
        axes.tick_params(labelsize=SMALL, labelbottom=lowest)
        if lowest:
            axes.set_xlabel("updates", fontsize=LABEL)
        if i % columns == 0:
            axes.set_ylabel(ylabel, fontsize=LABEL)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if curves["step"].max() >= THOUSANDS:
        grid[0, 0].xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
        )
    present = [series for key, series in SERIES.items() if key in set(curves["series"])]
    handles = [Line2D([], [], **series.style, label=series.name) for series in present]
    if referred:
        series = SERIES[reference]
        label = f"final mean, {series.name}"
        handles.append(Line2D([], [], color=series.colour, linewidth=REFERENCE_WIDTH, label=label))
    legend_below(figure, handles, handle_length=3.6)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=TITLE)
    return figure


def _draw_panel(axes: Axes, part: pd.DataFrame, reference: str) -> bool:
    """All series of a panel; returns whether it has the reference's final mean."""
    axes.spines[["top", "right"]].set_visible(False)
    finite = part["value"].dropna().to_numpy()
    if finite.size:
        axes.set_ylim(_limits(finite))
    finals = {
        key: _draw_series(axes, part[part["series"] == key], key)
        for key in SERIES
        if key in set(part["series"])
    }
    level = finals.get(reference, math.nan)
    if math.isnan(level):
        return False
    axes.axhline(level, color=SERIES[reference].colour, linewidth=REFERENCE_WIDTH, zorder=1)
    return True


def _draw_series(axes: Axes, part: pd.DataFrame, key: str) -> float:
    """The seeds and their mean; returns the mean's last value, NaN where there is none."""
    series = SERIES[key]
    for _, run in part.sort_values("step").groupby("seed"):
        values = run["value"].to_numpy()
        axes.plot(
            run["step"].to_numpy(),
            values,
            color=series.colour,
            linestyle=series.line,
            linewidth=0.7,
            alpha=0.4,
            marker=".",
            markersize=3,
            markevery=_isolated(values),
        )
    mean = _common_mean(part)
    values = mean.to_numpy()
    spacing = max(1, len(values) // MARKS)
    # Each series starts its markers elsewhere: on lines that run together they stay apart.
    first = list(SERIES).index(key) * spacing // len(SERIES)
    axes.plot(
        mean.index.to_numpy(),
        values,
        **series.style,
        markevery=sorted({*range(first, len(values), spacing), *_isolated(values)}),
    )
    return float(values[-1]) if len(values) else math.nan


def _common_mean(part: pd.DataFrame) -> pd.Series:
    """Mean over the seeds by step, at the steps of all seeds; NaN where a seed has a gap."""
    seeds = part.groupby("step")["seed"].nunique()
    common = seeds.index[seeds == part["seed"].nunique()]
    table = part.pivot(index="step", columns="seed", values="value")
    return table.loc[common].mean(axis="columns", skipna=False)


def _isolated(values: np.ndarray) -> list[int]:
    """Places of values between gaps or alone, which a line would not show.

    >>> _isolated(np.array([1.0, np.nan, 2.0, 3.0, np.nan, 4.0]))
    [0, 5]
    """
    finite = np.pad(np.isfinite(values), 1)
    return np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, CORE)
    width = (high - low) or 1.0
    bottom = max(values.min(), low - REACH * width)
    top = min(values.max(), high + REACH * width)
    margin = 0.06 * (top - bottom) or 0.5
    return float(bottom - margin), float(top + margin)
