"""The likelihood ratio to the general model, relative to what that gives the image."""

from typing import Any

import numpy as np

from oodflow import register_score


def compute(tables: Any) -> np.ndarray:
    """(log p_in − log p_g) / |log p_g|, one value per image; higher is more in-distribution."""
    own = tables.test["log_prob"].to_numpy()
    general = tables.general["log_prob"].to_numpy()
    return (own - general) / np.abs(general)


register_score("relative", ("general",), compute)
