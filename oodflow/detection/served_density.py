"""Lets MLflow load and serve the weights of a run: images in, log p(x) out.

``MLmodel`` beside the weights names this module (:mod:`oodflow.tracking.servable`); mlflow calls
:func:`_load_pyfunc` with their path. Nothing is pickled.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oodflow.detection.inputs import from_base64
from oodflow.detection.preprocessing import Preprocessing, remembered
from oodflow.evaluation.scoring import score_images
from oodflow.models.fused import Folds, folded_once
from oodflow.models.likelihood import LikelihoodModel
from oodflow.training.checkpoint import load_model

__all__ = ["COLUMNS", "ServedDensity"]

COLUMNS = ("log_prob", "bpd", "resized", "error")
"""Columns of an answer, one row per image."""


class ServedDensity:
    """A density behind MLflow's interface; a request has a column ``image`` of base64 files."""

    def __init__(self, model: LikelihoodModel, preprocessing: Preprocessing) -> None:
        self.model = model
        self.preprocessing = preprocessing
        self.folds: Folds = {}

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None):
        """log p(x) in nats over the 256 levels and bits per dimension, noise-free (S4.5).

        An image that cannot be read is a row with an error.
        """
        inputs = [from_base64(each, self.preprocessing) for each in model_input["image"]]
        pixels = [each.pixels for each in inputs if each.pixels is not None]
        log_prob = np.full(len(inputs), np.nan)
        if pixels:
            device = next(self.model.parameters(), torch.empty(0)).device
            images = torch.from_numpy(np.stack(pixels))
            with folded_once(self.folds):
                table = score_images(self.model, images, None, device=device, dequantised=False)
            log_prob[[each.pixels is not None for each in inputs]] = table["log_prob"]
        bits = math.prod(self.model.image_shape) * math.log(2)
        columns = (log_prob, -log_prob / bits, [each.resized for each in inputs],
                   [each.error for each in inputs])  # fmt: skip
        answer = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
        # A NaN is no JSON; what is missing becomes null.
        return answer.astype({"log_prob": "Float64", "bpd": "Float64"})


def _load_pyfunc(path: str) -> ServedDensity:
    model, experiment, _ = load_model(Path(path))
    return ServedDensity(model.eval(), remembered(experiment))
