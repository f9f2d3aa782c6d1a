"""From the description of a model to the model."""

from collections.abc import Callable, Mapping

from oodflow.errors import unknown_name
from oodflow.experiment import Model
from oodflow.models.glow import Glow
from oodflow.models.likelihood import LikelihoodModel

__all__ = ["BUILDERS", "build_model"]

BUILDERS: Mapping[str, Callable[[Model], LikelihoodModel]] = {
    "glow": lambda spec: Glow(spec.channels, spec.depth, spec.hidden),
}


def build_model(spec: Model) -> LikelihoodModel:
    """A new model with random weights from torch's global generator."""
    if spec.name not in BUILDERS:
        raise unknown_name("model", spec.name, BUILDERS)
    return BUILDERS[spec.name](spec)
