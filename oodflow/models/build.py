"""From the description of a model to the model; how own models are registered."""

from collections.abc import Callable, Mapping

from oodflow.errors import UserError
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
from oodflow.presets import Preset
from oodflow.registration import MODELS, origin_of, warn

__all__ = ["BUILDERS", "Build", "build_model", "register_model"]

Build = Callable[[Model], LikelihoodModel]
"""From a model's description to the model, with random weights from torch's global generator."""


def _glow(spec: Model) -> LikelihoodModel:
    if spec.classes:
        return ClassConditionalGlow(spec.channels, spec.classes, spec.depth, spec.hidden)
    return Glow(spec.channels, spec.depth, spec.hidden)


BUILDERS: dict[str, Build] = {
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


def register_model(name: str, build: Build, presets: Mapping[str, Preset]) -> None:
    """Register a model family under a name, for every command and function that takes a model.

    ``build(spec)`` makes a model from its :class:`oodflow.experiment.Model`, with random weights
    from torch's global generator. The model is a
    :class:`oodflow.models.likelihood.LikelihoodModel`; ``oodflow check-model NAME`` tries what is
    expected of one. ``presets`` has ``quick``, and ``paper`` where there are published settings.

    Raises UserError for a name that another package has registered, and for other presets.

    >>> register_model("tiny-glow", lambda spec: Glow(spec.channels, spec.depth, spec.hidden),
    ...     {"quick": Preset(depth=1, hidden=4, batch_size=8, lr=1e-3, finetune_lr=1e-3)})
    >>> build_model(Model(channels=1, name="tiny-glow", depth=1, hidden=4)).image_shape
    (1, 32, 32)
    >>> del MODELS["tiny-glow"]
    """
    if "quick" not in presets or not all(isinstance(each, Preset) for each in presets.values()):
        raise UserError(f"model {name!r} needs a preset `quick`; presets map names to Preset(…)")
    if not callable(build):
        raise UserError(f"model {name!r} needs a function build(spec) that makes it")
    MODELS.add(name, dict(presets), origin_of(build))
    BUILDERS[name] = build


def build_model(spec: Model) -> LikelihoodModel:
    """A new model with random weights from torch's global generator.

    Raises UserError for an unknown name, and where a plug-in does not build a model.
    """
    if spec.name not in MODELS:
        raise MODELS.unknown(spec.name, spec.plugin)
    if spec.classes and spec.name != "glow":
        raise UserError(f"{spec.name} has no class-conditional form; supervised takes glow")
    origin = MODELS.origin(spec.name)
    if not origin:
        return BUILDERS[spec.name](spec)
    if origin != spec.plugin:
        made = f"is of {origin} now, of {spec.plugin or 'an unknown version'} when it was described"
        warn(f"the model {spec.name!r} {made}")
    try:
        model = BUILDERS[spec.name](spec)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"plug-in {origin} cannot build its model {spec.name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, LikelihoodModel):
        what = type(model).__name__
        raise UserError(
            f"plug-in {origin} builds a {what} as its model {spec.name!r}, no LikelihoodModel; "
            f"see oodflow check-model {spec.name}"
        )
    return model
