"""From the description of a model to the model."""

from collections.abc import Callable, Mapping

from oodflow.errors import UserError, unknown_name
from oodflow.experiment import COMPRESSORS, Model
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.compressor import Compressor
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import DenseGlow, LocalGlow
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.pixelcnn import PixelCNN
from oodflow.models.tarflow import TarFlow
from oodflow.models.wide_resnet import WideResNet

__all__ = ["BUILDERS", "build_model"]


def _glow(spec: Model) -> LikelihoodModel:
    if spec.classes:
        return ClassConditionalGlow(spec.channels, spec.classes, spec.depth, spec.hidden)
    return Glow(spec.channels, spec.depth, spec.hidden)


BUILDERS: Mapping[str, Callable[[Model], LikelihoodModel]] = {
    "glow": _glow,
    "glow-conditional": lambda spec: ConditionalGlow(spec.channels, spec.depth, spec.hidden),
    "glow-local": lambda spec: LocalGlow(spec.channels, spec.depth, spec.hidden),
    "glow-dense": lambda spec: DenseGlow(spec.channels, spec.depth, spec.hidden),
    "pixelcnn": lambda spec: PixelCNN(
        spec.channels, spec.hidden, spec.depth, spec.mixtures, spec.dropout
    ),
    "tarflow": lambda spec: TarFlow(
        spec.channels, spec.patch, spec.depth, spec.layers, spec.hidden
    ),
    "wide-resnet": lambda spec: WideResNet(spec.channels, spec.depth, spec.hidden, spec.dropout),
    **{name: lambda spec: Compressor(spec.channels, spec.name) for name in COMPRESSORS},
}


def build_model(spec: Model) -> LikelihoodModel:
    """A new model with random weights from torch's global generator."""
    if spec.name not in BUILDERS:
        raise unknown_name("model", spec.name, BUILDERS)
    if spec.classes and spec.name != "glow":
        raise UserError(f"{spec.name} has no class-conditional form; supervised takes glow")
    return BUILDERS[spec.name](spec)
