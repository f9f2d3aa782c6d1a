"""Figures that show images: the Fourier mix (S1) and the highest-scoring images (S7, S8)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from oodflow.evaluation.plots import new_figure
from reports.style import LABEL, TITLE, WIDTH, text_height, text_width, wrapped

__all__ = ["extremes_figure", "fourier_figure"]

MARGIN = 0.06
"""Inches around the figure."""

LABELS = 1.1
"""Inches for the rows' labels at the left, at most: longer ones are broken into lines."""

LARGEST = 0.9
"""Inches of an image's side, at most; many images are drawn smaller to fit the page."""

GAP = 0.08
"""Share of an image's cell that is left white."""


def fourier_figure(amplitude: np.ndarray, phase: np.ndarray, mixed: np.ndarray) -> Figure:
    """Three rows, an example a column: amplitude donor, phase donor, and their mix (Figure S1).

    Each is N×C×H×W, uint8, with C = 3 or 1. Raises ValueError for other arrays, or of different
    shapes.
    """
    return _picture_grid({"Amplitude": amplitude, "Phase": phase, "Result": mixed})


def extremes_figure(rows: Mapping[str, np.ndarray], title: str) -> Figure:
    """The images that score highest, a labelled row for each score (Figures S7, S8).

    ``rows`` maps a label, such as "Log-likelihood ratio", to K×C×H×W images, uint8, with
    C = 3 or 1, best first. Raises ValueError for other arrays, or of different shapes.
    """
    return _picture_grid(rows, title)


def _picture_grid(rows: Mapping[str, np.ndarray], title: str = "") -> Figure:
    _check_images(rows)
    count, _, height, width = next(iter(rows.values())).shape
    labels = [wrapped(label, LABELS, LABEL) for label in rows]
    left = MARGIN + max(text_width(label, LABEL) for label in labels) + 0.1
    cell = min(LARGEST, (WIDTH - MARGIN - left) / count)
    image_height = cell * height / width
    row_height = max(image_height, *(text_height(label, LABEL) for label in labels))
    heading = wrapped(title, WIDTH - 2 * MARGIN, TITLE)
    above = text_height(heading, TITLE) + (MARGIN if heading else 0)
    size = np.array([left + count * cell + MARGIN, 2 * MARGIN + above + len(rows) * row_height])
    figure = new_figure(*size)
    figure.set_layout_engine("none")
    for i, (label, images) in enumerate(zip(labels, rows.values(), strict=True)):
        middle = MARGIN + (len(rows) - i - 0.5) * row_height
        x, y = (left - 0.1, middle) / size
        figure.text(x, y, label, fontsize=LABEL, ha="right", va="center")
        for j, image in enumerate(images):
            extent = (1 - GAP) * np.array([cell, image_height])
            lower_left = np.array([left + (j + 0.5) * cell, middle]) - extent / 2
            axes = figure.add_axes((*(lower_left / size), *(extent / size)))
            axes.set_axis_off()
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    if heading:
        x, y = (MARGIN, size[1] - MARGIN) / size
        figure.suptitle(heading, x=x, y=y, ha="left", va="top", fontsize=TITLE)
    return figure


def _check_images(rows: Mapping[str, np.ndarray]) -> None:
    if not rows:
        raise ValueError("there are no images to draw")
    for label, images in rows.items():
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"{label}: images are uint8 of N×C×H×W with C = 3 or 1, "
                f"not {images.dtype} of {images.shape}"
            )
        if images.size == 0:
            raise ValueError(f"{label}: there are no images in {images.shape}")
    shapes = {label: images.shape for label, images in rows.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{label} {shape}" for label, shape in shapes.items())
        raise ValueError(f"the rows have different shapes: {listed}")
