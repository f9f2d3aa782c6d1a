"""One self-contained HTML page of the results: the most anomalous images first, and where.

Everything is inside, and the page forbids its browser to ask for anything else. File names come
from anybody and are escaped.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from numpy.typing import NDArray

from oodflow.data.catalog import slug_of
from oodflow.detection.calibration import Calibration
from oodflow.detection.conformal import flagged_interval
from oodflow.detection.detections import Detections, Finding
from oodflow.detection.detector import Detector
from oodflow.detection.package import encoded

__all__ = ["gallery"]

BARS = 40
"""Bars of the histogram of a scale."""

HEIGHT, WIDTH = 20.0, 100.0
"""Of a histogram, in the units of its drawing."""


def gallery(detector: Detector, found: Detections) -> str:
    """The page as HTML: counts, the test of the whole, and a card for each image that was kept."""
    name = slug_of(detector.dataset)
    scales = [_Scale(each, detector.calibration) for each in detector.calibration.scales]
    return _template().render(
        title=f"oodflow: anomalies for a detector of {name}",
        summary=_summary(detector, found),
        scales=scales,
        cards=[_card(finding, scales) for finding in found.most_anomalous],
    )


def _summary(detector: Detector, found: Detections) -> list[tuple[str, str]]:
    tally, size = found.tally, detector.calibration.size
    calibrated_by = f"{size} images not trained on"
    if found.fdr is None:
        rule = f"false-positive rate at most {found.alpha:g}"
    else:
        rule = f"false discovery rate at most {found.fdr:g} (Benjamini–Hochberg)"
    rows = [
        ("files", f"{tally.files}, of which {tally.errors} could not be read"),
        ("anomalous", f"{found.anomalous} of {tally.images} images; {rule}"),
        ("resized", f"{tally.resized} images were resized to 32×32"),
        ("score", f"{detector.score}, calibrated by {calibrated_by}"),
    ]
    if tally.images:
        low, high = flagged_interval(found.alpha, size, tally.images)
        rows.insert(
            2,
            (
                "all of them together",
                f"{found.flagged} have p ≤ {found.alpha:g}; of as many in-distribution images "
                f"{round(low * tally.images)} to {round(high * tally.images)} would in 95 % of "
                f"cases, so many or more with probability {_short(found.folder_p)}",
            ),
        )
    return rows


class _Scale:
    """The distribution of one part of the score over the calibration images."""

    def __init__(self, name: str, calibration: Calibration) -> None:
        values = calibration.table[name].to_numpy()
        self.name = name
        low, high = np.quantile(values, [0.005, 1.0])
        margin = 0.25 * (high - low) or 1.0
        # Room to the left, where what is unusual lies.
        self._low, self._high = low - 2 * margin, high + margin
        self.path = _bars(np.histogram(values, BARS, (self._low, self._high))[0])

    def at(self, value: float) -> str:
        """Where a value lies; beyond an end it is shown at that end."""
        share = (value - self._low) / (self._high - self._low)
        return f"{WIDTH * min(max(share, 0.01), 0.99):.1f}"


def _bars(counts: NDArray[Any]) -> str:
    step = WIDTH / len(counts)
    tops = HEIGHT * (1 - counts / max(counts.max(), 1))
    steps = "".join(f"V{top:.1f}H{(i + 1) * step:.1f}" for i, top in enumerate(tops))
    return f"M0 {HEIGHT:g}{steps}V{HEIGHT:g}Z"


def _card(finding: Finding, scales: list[_Scale]) -> dict[str, Any]:
    row = finding.row
    p_values = [row[f"{scale.name}_p"] for scale in scales]
    least = int(np.argmin(p_values)) if p_values else -1
    return {
        "file": row["file"],
        "image": encoded(finding.pixels),
        "anomalous": bool(row["anomalous"]),
        "resized": bool(row["resized"]),
        "score": f"{row['score']:.1f}",
        "p_value": _short(row["p_value"]),
        "parts": [_part(scale, row, i == least) for i, scale in enumerate(scales)],
    }


def _part(scale: _Scale, row: Mapping[str, Any], least: bool) -> dict[str, Any]:
    return {
        "name": scale.name,
        "at": scale.at(row[scale.name]),
        "p_value": _short(row[f"{scale.name}_p"]),
        "least": least,
    }


def _short(p_value: float) -> str:
    """A probability to two digits.

    >>> _short(0.0123), _short(1.0), _short(3e-9)
    ('0.012', '1', '3e-09')
    """
    return f"{p_value:.2g}"


@cache
def _template() -> Template:
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("gallery.html")
