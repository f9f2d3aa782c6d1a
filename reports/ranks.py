"""The figure of mean ranks with their critical difference (Demšar, JMLR 7, 2006)."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from oodflow.evaluation.plots import COLOURS, new_figure
from reports.style import LABEL, SMALL, WIDTH

__all__ = ["joined", "rank_figure"]

LINE = 0.24
"""Inches between the names of two methods."""


def joined(ranks: Mapping[str, float], difference: float) -> list[tuple[float, float]]:
    """From and to which rank bars reach: the longest runs of methods that are not told apart.

    >>> joined({"a": 1.0, "b": 1.5, "c": 3.0}, 1.0)
    [(1.0, 1.5)]
    """
    ordered = sorted(ranks.values())
    spans: list[tuple[float, float]] = []
    for start in ordered:
        stop = max(rank for rank in ordered if rank - start < difference)
        if stop > start and not (spans and spans[-1][1] >= stop):
            spans.append((start, stop))
    return spans


def rank_figure(ranks: Mapping[str, float], difference: float) -> Figure:
    """Mean ranks of methods on a line, the best to the left; bars join those not told apart.

    ``ranks`` maps a method to its mean rank, at least 1; ``difference`` is the critical one.
    Raises ValueError where there are fewer than two methods.
    """
    if len(ranks) < 2:
        raise ValueError("mean ranks are of two methods or more")
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    bars = joined(ranks, difference)
    half = (len(ordered) + 1) // 2
    above = 0.7 + 0.12 * len(bars)
    figure = new_figure(WIDTH, above + LINE * (half + 1))
    figure.set_layout_engine("none")
    height = figure.get_figheight()
    axes = figure.add_axes((0.2, 0.0, 0.6, 1.0))
    axes.set_xlim(1, len(ordered))
    axes.set_ylim(-height, 0)
    axes.set_axis_off()
    line = -0.55
    axes.plot([1, len(ordered)], [line, line], color="black", linewidth=1)
    for tick in range(1, len(ordered) + 1):
        axes.plot([tick, tick], [line, line + 0.06], color="black", linewidth=1)
        axes.text(tick, line + 0.09, str(tick), ha="center", va="bottom", fontsize=SMALL)
    reach = min(difference, len(ordered) - 1)
    axes.plot([1, 1 + reach], [-0.15, -0.15], color="black", linewidth=1.5)
    axes.text(
        1 + reach + 0.1,
        -0.15,
        f"critical difference {difference:.2f}",
        ha="left",
        va="center",
        fontsize=SMALL,
    )
    for number, (start, stop) in enumerate(bars):
        place = line - 0.1 - 0.12 * number
        axes.plot([start, stop], [place, place], color=COLOURS[0], linewidth=3.5)
    for number, (name, rank) in enumerate(ordered):
        left = number < half
        row = number if left else len(ordered) - 1 - number
        level = -above - LINE * (row + 0.5)
        edge = 0.7 if left else len(ordered) + 0.3
        axes.plot([rank, rank, edge], [line, level, level], color="0.5", linewidth=0.8,
                  clip_on=False)  # fmt: skip
        axes.text(
            edge,
            level,
            f"{name}  {rank:.1f}" if left else f"{rank:.1f}  {name}",
            ha="right" if left else "left",
            va="center",
            fontsize=LABEL,
        )
    return figure
