"""Anomaly scores: arithmetic on score tables. Higher always means more in-distribution.

=============== ================================================================================
raw             log p_in(x)
scale1, scale2  c_1(x), c_2(x) of a three-scale model (Eq. 3 of the paper)
last_scale      the last contribution: c_3(x) of a three-scale Glow, the paper's "4×4"
diff            log p_in(x) − log p_g(x), p_g the general distribution
diff_outlier    the same, with p_g finetuned against the in-distribution images ("Diff†")
=============== ================================================================================

All in nats, from noise-free likelihoods (S4.5).
"""

import math
import re

import numpy as np
import pandas as pd

from oodflow.errors import UserError

__all__ = [
    "CLIP",
    "SCORES",
    "bits_per_dimension_mean",
    "clip_non_finite",
    "compute_scores",
    "refuse_all_clipped",
]

CLIP = -3_000_000.0
"""Stands for a non-finite log-likelihood, in nats (S4.5)."""

SCORES = ("raw", "scale1", "scale2", "last_scale", "diff", "diff_outlier")
"""Every score there is, in the order in which they are listed."""


def clip_non_finite(log_prob: np.ndarray) -> np.ndarray:
    """NaN and ±infinity become :data:`CLIP`; finite values stay, however small (S4.5).

    >>> clip_non_finite(np.array([-1.5, -np.inf, np.nan, -4e6])).tolist()
    [-1.5, -3000000.0, -3000000.0, -4000000.0]
    """
    values = np.asarray(log_prob, dtype=np.float64)
    return np.where(np.isfinite(values), values, CLIP)


def compute_scores(
    table: pd.DataFrame,
    general: pd.DataFrame | None = None,
    general_outlier: pd.DataFrame | None = None,
) -> dict[str, np.ndarray]:
    """The scores that these tables allow, name → float64 array with one value per image.

    ``table`` is the in-distribution model's score table, ``general`` and ``general_outlier`` those
    of the contrasting models on the same images. Non-finite likelihoods become :data:`CLIP` before
    any difference, so a difference is always finite. Raises UserError if the tables belong to
    different images.

    >>> both = {"index": [0, 1], "label": [3, 5]}
    >>> table = pd.DataFrame(both | {"log_prob": [-7.0, -np.inf]})
    >>> scores = compute_scores(table, general=pd.DataFrame(both | {"log_prob": [-9.0, -8.0]}))
    >>> scores["diff"].tolist()
    [2.0, -2999992.0]
    """
    raw = clip_non_finite(table["log_prob"].to_numpy())
    scores = {"raw": raw}
    contributions = _contributions(table)
    if len(contributions) == 3:
        scores["scale1"], scores["scale2"] = contributions[0], contributions[1]
    if contributions:
        scores["last_scale"] = contributions[-1]
    for name, contrast in (("diff", general), ("diff_outlier", general_outlier)):
        if contrast is not None:
            _check_same_images(table, contrast, name)
            scores[name] = raw - clip_non_finite(contrast["log_prob"].to_numpy())
    return scores


def refuse_all_clipped(model: str, *tables: pd.DataFrame) -> None:
    """Raise UserError where no likelihood in a model's tables is finite: all scores would be equal.

    >>> refuse_all_clipped("run 1", pd.DataFrame({"log_prob": [np.nan, -7.0]}))
    """
    values = np.concatenate([table["log_prob"].to_numpy() for table in tables])
    if not np.isfinite(values).any():
        raise UserError(
            f"{model} gives none of {len(values)} images a finite likelihood: its training "
            "diverged; choose another run"
        )


def _contributions(table: pd.DataFrame) -> list[np.ndarray]:
    """The columns scale1 … scaleS in the order of their numbers, clipped."""
    names = [name for name in table.columns if re.fullmatch(r"scale\d+", name)]
    names.sort(key=lambda name: int(name.removeprefix("scale")))
    return [clip_non_finite(table[name].to_numpy()) for name in names]


def _check_same_images(table: pd.DataFrame, contrast: pd.DataFrame, score: str) -> None:
    if len(table) != len(contrast):
        what = f"{len(table)} and {len(contrast)} rows"
    else:
        differing = [
            column
            for column in ("index", "label")
            if not np.array_equal(table[column].to_numpy(), contrast[column].to_numpy())
        ]
        if not differing:
            return
        what = f"different columns {' and '.join(differing)}"
    raise UserError(
        f"score {score!r}: the two score tables have {what}, so they are not of the same images; "
        "evaluate both models on the same dataset, fold and limit"
    )


def bits_per_dimension_mean(table: pd.DataFrame, image_shape: tuple[int, int, int]) -> float:
    """Mean BPD = −log p(x) / (D ln 2) over the images, with dequantisation noise (S4.5, S7.1).

    A single non-finite likelihood makes the mean non-finite: a BPD is reported unclipped.

    >>> table = pd.DataFrame({"log_prob_dequantised": [-4 * np.log(2), -12 * np.log(2)]})
    >>> round(bits_per_dimension_mean(table, (1, 2, 2)), 6)
    2.0
    """
    # Not a pandas mean: that would leave NaN out silently.
    mean = table["log_prob_dequantised"].to_numpy().mean()
    return float(-mean / (math.prod(image_shape) * math.log(2)))
