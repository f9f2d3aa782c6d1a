"""Shared parts of the paper's figures: sizes, markers, fitted text, one legend, checked frames."""

import math
import textwrap
from collections.abc import Sequence
from functools import cache

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

__all__ = [
    "LABEL",
    "MARKERS",
    "SMALL",
    "TITLE",
    "WIDTH",
    "legend_below",
    "text_height",
    "text_width",
    "wrapped",
]

WIDTH = 7.0
"""Inches across a page: figures are drawn as large as they are printed, so text keeps its size."""

TITLE, LABEL, SMALL = 11.0, 9.0, 8.0
"""Points of a figure's title; of panels, axes and legends; and of the numbers at the axes."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Told apart without colour. One more than colours, so that pairs of both repeat late."""


def text_width(text: str, size: float) -> float:
    """Inches that the longest line of the text takes, in a font of so many points."""
    widths = (sum(map(_character_width, line)) for line in text.splitlines())
    return max(widths, default=0.0) * size / 72


@cache
def _character_width(character: str) -> float:
    """As a share of the font's size, with the space to the next character."""
    # The width of a text is that of its ink: repeated, the space at its ends counts for little.
    count = 20
    font = FontProperties(size=1)
    width, _, _ = text_to_path.get_text_width_height_descent(count * character, font, ismath=False)
    return width / count


def wrapped(text: str, inches: float, size: float) -> str:
    """The text in lines no wider than so many inches, in a font of so many points.

    Words stay whole, also those with hyphens, as far as they fit.

    >>> wrapped("sketch-shapes vs sketch-letters", 1.5, 9.0)
    'sketch-shapes vs\\nsketch-letters'
    """
    for characters in range(max(len(text), 1), 0, -1):
        too_long = any(len(word) > characters for word in text.split())
        lines = textwrap.fill(text, characters, break_on_hyphens=too_long)
        if text_width(lines, size) <= inches:
            break
    return lines


def text_height(text: str, size: float) -> float:
    """Inches that the lines of the text take, 1.3 times the font's size each."""
    return len(text.splitlines()) * 1.3 * size / 72


def legend_below(figure: Figure, handles: Sequence[Artist], *, handle_length: float) -> None:
    """One legend under all panels, in as few rows as the figure's width allows.

    The figure grows by the legend's height, so that its panels keep theirs. ``handle_length`` is
    the length of the drawn lines or markers, in units of the font's size.
    """
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=math.ceil(len(handles) / rows),
            fontsize=LABEL,
            frameon=False,
            handlelength=handle_length,
            columnspacing=1.4,
        )
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or rows == len(handles):
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        legend.remove()
