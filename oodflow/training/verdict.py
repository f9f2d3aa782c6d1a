"""Whether a training succeeded: a model that diverged must not be taken for one that learnt."""

from collections.abc import Mapping, Sequence

from oodflow.models.likelihood import LikelihoodModel
from oodflow.training.stabilisation import not_finite

__all__ = ["MAX_SKIPPED", "counts", "why_failed"]

MAX_SKIPPED = 0.25
"""A training that skipped more than this share of its updates has failed."""

COUNTED = {
    "train/dropped_images": "images dropped",
    "train/skipped_batches": "batches skipped",
    "train/skipped_updates": "updates skipped",
}


def counts(reports: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """What stabilisation (S4.3) left out over all reports, in words → how often.

    >>> counts([{"train/dropped_images": 3.0}, {"train/dropped_images": 4.0}])
    {'images dropped': 7, 'batches skipped': 0, 'updates skipped': 0}
    """
    return {
        words: int(sum(report.get(name, 0.0) for report in reports))
        for name, words in COUNTED.items()
    }


def why_failed(
    model: LikelihoodModel,
    reports: Sequence[Mapping[str, float]],
    updates: int,
    non_finite_images: int,
) -> str:
    """Why a training of so many updates is of no use, with the counts; "" where it succeeded.

    It has failed if a weight is not finite, if an image of the last validation has no finite
    likelihood, or if more than :data:`MAX_SKIPPED` of the updates were skipped. A batch of which
    too many images are dropped is a skipped update as well.
    """
    weights, found = model.state_dict(), counts(reports)
    skipped = found["batches skipped"] + found["updates skipped"]
    reasons = []
    if bad := not_finite(weights):
        reasons.append(f"{len(bad)} of {len(weights)} weight tensors are not finite")
    if non_finite_images:
        reasons.append(f"{non_finite_images} validation images have no finite likelihood")
    if skipped > MAX_SKIPPED * updates:
        reasons.append(
            f"{skipped} of {updates} updates were skipped, where {MAX_SKIPPED:.0%} are allowed"
        )
    return ", ".join(reasons)
