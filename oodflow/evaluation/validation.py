"""Validation during training: BPD and AUROCs on small fixed subsets of the test folds.

For the training curves only (S7.2): nothing is selected by them, and the final numbers come from
the whole test folds.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from oodflow.data.images import Images
from oodflow.evaluation.metrics import auroc
from oodflow.evaluation.scores import bits_per_dimension_mean, compute_scores
from oodflow.evaluation.scoring import score_images
from oodflow.models.likelihood import LikelihoodModel

__all__ = ["NON_FINITE", "VALIDATION_IMAGES", "Validation"]

NON_FINITE = "valid/non_finite_images"

VALIDATION_IMAGES = 150
"""Images of each dataset in a validation."""

VALIDATION_SCORES = ("raw", "last_scale", "diff")


class Validation:
    """Fixed subsets of an in-distribution (or general) set and of outlier sets."""

    def __init__(
        self,
        own: Images,
        outliers: Mapping[str, Images],
        general: LikelihoodModel | None,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        """``general`` scores the subsets once, here; it must not be the model in training.

        ``precision`` is that of the training: in float32 a validation would cost as much as several
        more updates, while AUROCs differ by less than their sampling error.
        """
        self._sets = {"": own, **outliers}
        self._device = device
        self._precision = precision
        self._general = {
            name: self._score(general, name) if general else None for name in self._sets
        }

    def _score(self, model: LikelihoodModel, name: str) -> pd.DataFrame:
        # Noise is for the BPD alone, which outliers do not have.
        pixels = self._sets[name].pixels[:VALIDATION_IMAGES]
        return score_images(
            model,
            pixels,
            None,
            device=self._device,
            dequantised=not name,
            precision=self._precision,
        )

    def __call__(self, model: LikelihoodModel) -> dict[str, float]:
        """``valid/bpd``, ``valid/auroc/<ood>/<score>`` and their mean of the model as it is now.

        ``valid/non_finite_images`` counts the own images without a finite likelihood. If that is
        all of them, there are no AUROCs.
        """
        tables = {name: self._score(model, name) for name in self._sets}
        lost = ~np.isfinite(tables[""].filter(like="log_prob").to_numpy()).all(axis=1)
        metrics = {NON_FINITE: float(lost.sum())}
        if model.is_density:
            metrics["valid/bpd"] = bits_per_dimension_mean(tables[""], model.image_shape)
        if lost.all():
            return metrics
        scores = {
            name: compute_scores(table, general=self._general[name], names=VALIDATION_SCORES)
            for name, table in tables.items()
        }
        for ood in list(scores)[1:]:
            for score in VALIDATION_SCORES:
                if score in scores[""]:
                    value = auroc(scores[""][score], scores[ood][score])
                    metrics[f"valid/auroc/{ood}/{score}"] = value
        for score in VALIDATION_SCORES:
            values = [value for name, value in metrics.items() if name.endswith(f"/{score}")]
            if values:
                metrics[f"valid/auroc/mean/{score}"] = float(np.mean(values))
        return metrics
