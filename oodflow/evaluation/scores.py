"""Anomaly scores: arithmetic on score tables. Higher always means more in-distribution.

=============== ================================================================================
raw             log p_in(x)
scale1, scale2  c_1(x), c_2(x) of a three-scale model (Eq. 3 of the paper)
last_scale      the last contribution: c_3(x) of a three-scale Glow, the paper's "4×4"
diff            log p_in(x) − log p_g(x), p_g the general distribution
diff_outlier    the same, with p_g finetuned against the in-distribution images ("Diff†")
typicality      −|log p_in(x) − its mean over training images| (arXiv:1906.02994)
waic            mean − variance over the models of several seeds of log p_in(x) (arXiv:1810.01392)
complexity      log p_in(x) + L(x) ln 2, L the bits of the shortest lossless file (arXiv:1909.11480)
dose            Σ log of kernel densities of a model's statistics (arXiv:2006.09273)
dose_svm        the one-class SVM of the same statistics
gradient        Σ log N(log ‖∇ log p_in(x)‖²) over the layers (arXiv:2403.01485)
=============== ================================================================================

All in nats, from noise-free likelihoods (S4.5).
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from oodflow.errors import UserError, unknown_name
from oodflow.evaluation.field_scores import (
    density_of_states,
    density_of_states_svm,
    gradient_density,
    statistics_of,
    typicality,
    waic,
)
from oodflow.registration import SCORES, origin_of, warn

__all__ = [
    "CLIP",
    "SCORES",
    "TABLES",
    "absent_scores",
    "Score",
    "ScoreTables",
    "bits_per_dimension_mean",
    "clip_non_finite",
    "compute_scores",
    "refuse_all_clipped",
    "register_score",
]

CLIP = -3_000_000.0
"""Stands for a non-finite log-likelihood, in nats (S4.5)."""


def clip_non_finite(log_prob: np.ndarray) -> np.ndarray:
    """NaN and ±infinity become :data:`CLIP`; finite values stay, however small (S4.5).

    >>> clip_non_finite(np.array([-1.5, -np.inf, np.nan, -4e6])).tolist()
    [-1.5, -3000000.0, -3000000.0, -4000000.0]
    """
    values = np.asarray(log_prob, dtype=np.float64)
    return np.where(np.isfinite(values), values, CLIP)


@dataclass(frozen=True)
class ScoreTables:
    """Score tables that a score is computed from, see :mod:`oodflow.evaluation.scoring`.

    All but those of training images are of the same images in the same order.
    """

    test: pd.DataFrame
    """The images under the in-distribution model."""
    general: pd.DataFrame | None = None
    """The images under the general model."""
    general_outlier: pd.DataFrame | None = None
    """The images under the general model finetuned against the in-distribution ("Diff†")."""
    train: pd.DataFrame | None = None
    """Training images of the in-distribution under its model: a subset of them."""
    seeds: tuple[pd.DataFrame, ...] = ()
    """The images under the models of the same experiment with other seeds."""
    compressor: pd.DataFrame | None = None
    """The images under a compressor: log p(x) = −bits · ln 2."""
    gradient: pd.DataFrame | None = None
    """The images' squared gradient norms, see :mod:`oodflow.evaluation.gradients`."""
    train_gradient: pd.DataFrame | None = None
    """Those of the images of ``train``."""

    def have(self, names: Iterable[str]) -> bool:
        """Whether the tables of these names are there."""
        given = [getattr(self, name) for name in names]
        return all(isinstance(each, pd.DataFrame) or bool(each) for each in given)


TABLES = tuple(each.name for each in fields(ScoreTables))
"""What a score can need."""

ANY_SCALES = range(1, 1000)


@dataclass(frozen=True)
class Score:
    """An anomaly score: what it needs, and how it is computed from that."""

    name: str
    needs: tuple[str, ...]
    """Fields of :class:`ScoreTables`; ``test`` is always there."""
    compute: Callable[[ScoreTables], np.ndarray]
    """Tables → float64, one value per image, finite; higher is more in-distribution."""
    scales: range = ANY_SCALES
    """How many scales the in-distribution model may have."""


def register_score(
    name: str, needs: Iterable[str], compute: Callable[[ScoreTables], np.ndarray]
) -> None:
    """Register a score; every evaluation, report and detector has it from then on.

    ``needs`` names fields of :class:`ScoreTables`, ``compute(tables)`` returns one finite float64
    value per image of ``tables.test``; higher is more in-distribution.

    Raises UserError for a name that another package has registered, and for unknown tables.

    >>> register_score("twice", ("general",), lambda tables: 2 * tables.test["log_prob"].to_numpy()
    ...     - tables.general["log_prob"].to_numpy())
    >>> SCORES["twice"].needs
    ('test', 'general')
    >>> del SCORES["twice"]
    """
    needs = tuple(dict.fromkeys(("test", *needs)))
    for each in needs:
        if each not in TABLES:
            raise unknown_name(f"table that score {name!r} needs", str(each), TABLES)
    if not callable(compute):
        raise UserError(f"score {name!r} needs a function compute(tables)")
    SCORES.add(name, Score(name, needs, compute), origin_of(compute))


def compute_scores(
    table: pd.DataFrame,
    general: pd.DataFrame | None = None,
    general_outlier: pd.DataFrame | None = None,
    *,
    names: Iterable[str] | None = None,
    **others: Any,
) -> dict[str, np.ndarray]:
    """The scores that these tables allow, name → float64 array with one value per image.

    ``table`` is the in-distribution model's score table, ``general`` and ``general_outlier`` those
    of the contrasting models on the same images, ``others`` further ones by their names in
    :class:`ScoreTables`. Of ``names`` those are computed that the tables allow, without it all.
    Non-finite likelihoods become :data:`CLIP` before any difference, so a difference is always
    finite. All are in nats. Raises UserError if the tables belong to different images. A plug-in's
    score that cannot be computed is left out, with a line on stderr; where ``names`` has it, it is
    a UserError.

    >>> both = {"index": [0, 1], "label": [3, 5]}
    >>> table = pd.DataFrame(both | {"log_prob": [-7.0, -np.inf]})
    >>> scores = compute_scores(table, general=pd.DataFrame(both | {"log_prob": [-9.0, -8.0]}))
    >>> scores["diff"].tolist()
    [2.0, -2999992.0]
    """
    tables = ScoreTables(table, general, general_outlier, **others)
    wanted = SCORES.values() if names is None else [SCORES[name] for name in names]
    scales = len(_scale_columns(table)) or 1
    found = {}
    for score in wanted:
        if scales not in score.scales or not tables.have(score.needs):
            continue
        _check_same_images(tables, score)
        try:
            found[score.name] = _computed(score, tables)
        except UserError as problem:
            if names is not None:
                raise
            warn(str(problem))
    return found


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


REASONS = {
    "general": "no general model",
    "general_outlier": "no general model against the in-distribution images",
    "train": "no training image was scored",
    "seeds": "it needs models of two seeds or more",
    "compressor": "no compressor at hand",
    "gradient": "it was not asked for: --gradient true",
}


def absent_scores(found: Iterable[str], scales: int) -> dict[str, str]:
    """Score → why it is not among those found, for a model of so many scales."""
    reasons = {}
    for name, score in SCORES.items():
        if name not in found:
            lacking = [REASONS[need] for need in score.needs if need in REASONS]
            few = f"the model has {scales} scale{'s' * (scales > 1)}"
            reasons[name] = few if scales not in score.scales else ", ".join(lacking)
    return reasons


def _computed(score: Score, tables: ScoreTables) -> np.ndarray:
    origin = SCORES.origin(score.name)
    if not origin:
        return score.compute(tables)
    try:
        values = np.asarray(score.compute(tables), dtype=np.float64)
    except Exception as error:
        raise UserError(
            f"plug-in {origin} cannot compute its score {score.name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    wrong = "values that are not finite"
    if values.shape != (len(tables.test),):
        wrong = f"an array of shape {values.shape} for {len(tables.test)} images"
    elif np.isfinite(values).all():
        return values
    raise UserError(f"plug-in {origin}: its score {score.name!r} gives {wrong}")


def _scale_columns(table: pd.DataFrame) -> list[str]:
    """The columns scale1 … scaleS in the order of their numbers."""
    names = [name for name in table.columns if re.fullmatch(r"scale\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix("scale")))


def _log_prob(table: pd.DataFrame | None) -> np.ndarray:
    assert table is not None
    return clip_non_finite(table["log_prob"].to_numpy())


def _scale(number: int) -> Callable[[ScoreTables], np.ndarray]:
    """The contribution of a scale; −1 is the last one."""

    def compute(tables: ScoreTables) -> np.ndarray:
        return clip_non_finite(tables.test[_scale_columns(tables.test)[number]].to_numpy())

    return compute


def _typicality(tables: ScoreTables) -> np.ndarray:
    assert tables.train is not None
    return typicality(_log_prob(tables.test), tables.train["log_prob"].to_numpy())


def _waic(tables: ScoreTables) -> np.ndarray:
    return waic(np.stack([_log_prob(table) for table in (tables.test, *tables.seeds)]))


def _dose(density: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """The density of a model's statistics."""

    def compute(tables: ScoreTables) -> np.ndarray:
        assert tables.train is not None
        names = list(statistics_of(tables.test, tables.train))
        values = clip_non_finite(tables.test[names].to_numpy())
        return density(values, tables.train[names].to_numpy()) if names else np.zeros(len(values))

    return compute


def _gradient(tables: ScoreTables) -> np.ndarray:
    assert tables.gradient is not None and tables.train_gradient is not None
    names = [name for name in map(str, tables.gradient) if name.startswith("gradient/")]
    return gradient_density(
        tables.gradient[names].to_numpy(), tables.train_gradient[names].to_numpy()
    )


THREE = range(3, 4)
for _score in (
    Score("raw", ("test",), lambda tables: _log_prob(tables.test)),
    Score("scale1", ("test",), _scale(0), THREE),
    Score("scale2", ("test",), _scale(1), THREE),
    Score("last_scale", ("test",), _scale(-1), ANY_SCALES[1:]),
    Score(
        "diff",
        ("test", "general"),
        lambda tables: _log_prob(tables.test) - _log_prob(tables.general),
    ),
    Score(
        "diff_outlier",
        ("test", "general_outlier"),
        lambda tables: _log_prob(tables.test) - _log_prob(tables.general_outlier),
    ),
    Score("typicality", ("test", "train"), _typicality),
    Score("waic", ("test", "seeds"), _waic),
    Score(
        "complexity",
        ("test", "compressor"),
        lambda tables: _log_prob(tables.test) - _log_prob(tables.compressor),
    ),
    Score("dose", ("test", "train"), _dose(density_of_states)),
    Score("dose_svm", ("test", "train"), _dose(density_of_states_svm)),
    Score("gradient", ("test", "gradient", "train_gradient"), _gradient),
):
    SCORES.add(_score.name, _score)


def _check_same_images(tables: ScoreTables, score: Score) -> None:
    """Raise UserError where the tables that a score needs are not of the same images."""
    own = tables.test
    for need in score.needs:
        if need in ("test", "train", "train_gradient"):
            continue
        given = getattr(tables, need)
        for other in given if need == "seeds" else (given,):
            if len(own) != len(other):
                what = f"{len(own)} and {len(other)} rows"
            else:
                differing = [
                    column
                    for column in ("index", "label")
                    if not np.array_equal(own[column].to_numpy(), other[column].to_numpy())
                ]
                if not differing:
                    continue
                what = f"different columns {' and '.join(differing)}"
            raise UserError(
                f"score {score.name!r}: the two score tables have {what}, so they are not of the "
                "same images; evaluate both models on the same dataset, fold and limit"
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
