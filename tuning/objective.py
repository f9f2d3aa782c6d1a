"""The objective of a trial: train-set AUROC of the ratio, and bounds of stability."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from oodflow.errors import UserError
from oodflow.evaluation.metrics import auroc
from oodflow.evaluation.scores import compute_scores
from oodflow.options import word_list

__all__ = [
    "Pair",
    "Stability",
    "StabilityBounds",
    "parse_objective",
    "train_set_auroc",
    "weighted_sum",
]


@dataclass(frozen=True)
class Pair:
    """An in-distribution dataset, and the weight of its AUROC in the objective."""

    dataset: str
    weight: float


def parse_objective(text: str, dataset: str) -> tuple[tuple[Pair, ...], bool]:
    """The pairs whose weighted AUROCs are added up, and whether BPD is a second objective.

    ``auroc`` is the dataset alone; ``NAME=WEIGHT`` several datasets, each against its own general
    set; ``bpd`` as an entry of its own makes the study multi-objective. Raises UserError for
    anything else.

    >>> parse_objective("auroc", "cifar10")
    ((Pair(dataset='cifar10', weight=1.0),), False)
    >>> parse_objective("cifar10=0.5,svhn=0.5,bpd", "cifar10")[1]
    True
    """
    pairs, with_bpd = [], False
    for entry in word_list(text):
        name, equals, weight = entry.strip().rpartition("=")
        if entry.strip() == "bpd":
            with_bpd = True
        elif entry.strip() == "auroc":
            pairs.append(Pair(dataset, 1.0))
        else:
            try:
                pairs.append(Pair(name, float(weight)))
            except ValueError:
                equals = ""
            if not equals or not name or not 0 < pairs[-1].weight < float("inf"):
                raise UserError(
                    f"objective has {entry.strip()!r}; write auroc, NAME=WEIGHT with a weight "
                    "above 0, or bpd, separated by commas"
                )
    if not pairs:
        raise UserError("objective has no AUROC; add auroc or NAME=WEIGHT")
    return tuple(pairs), with_bpd


def train_set_auroc(
    inliers: pd.DataFrame,
    outliers: pd.DataFrame,
    general_inliers: pd.DataFrame,
    general_outliers: pd.DataFrame,
) -> float:
    """AUROC of log p_in(x) − log p_g(x), in-distribution training images against held-out ones.

    The tables are the models' log-likelihoods of the same images in the same order (S4.4). The
    authors' code subtracts two passes that are shuffled independently.
    """
    own = compute_scores(inliers, general_inliers, names=["diff"])["diff"]
    other = compute_scores(outliers, general_outliers, names=["diff"])["diff"]
    return auroc(own, other)


@dataclass(frozen=True)
class StabilityBounds:
    """Bounds of stability for a training; a trial beyond any of them is infeasible."""

    dropped: float
    """Share of the images that leave their minibatch."""
    skipped: float
    """Share of the updates that are not made."""
    bpd: float
    """Bits per dimension that the in-distribution images lose against the general model."""


@dataclass(frozen=True)
class Stability:
    """The measured stability of a training."""

    dropped: float
    skipped: float
    bpd: float

    def violations(self, bounds: StabilityBounds) -> dict[str, float]:
        """How far each bound is passed; Optuna's constraints, which hold where none is above 0.

        >>> Stability(0.0, 0.5, 0.25).violations(StabilityBounds(0.0, 0.25, 0.5))
        {'dropped': 0.0, 'skipped': 0.25, 'bpd': -0.25}
        """
        return {
            "dropped": self.dropped - bounds.dropped,
            "skipped": self.skipped - bounds.skipped,
            "bpd": self.bpd - bounds.bpd,
        }

    def reason(self, bounds: StabilityBounds) -> str:
        """The bounds that are passed, in words; "" where there is none."""
        said = {
            "images dropped": (self.dropped, bounds.dropped),
            "updates skipped": (self.skipped, bounds.skipped),
            "bpd paid": (self.bpd, bounds.bpd),
        }
        return ", ".join(
            f"{what} {value:.3g} above {bound:.3g}"
            for what, (value, bound) in said.items()
            if not value <= bound
        )


def weighted_sum(values: Sequence[float], pairs: Sequence[Pair]) -> float:
    """Σ weight · AUROC / Σ weight, so that one pair gives its AUROC."""
    total = sum(pair.weight for pair in pairs)
    return sum(v * pair.weight for v, pair in zip(values, pairs, strict=True)) / total
