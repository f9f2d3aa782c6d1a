"""From options to an experiment: presets, and what follows from dataset and loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from oodflow.errors import UserError, unknown_name
from oodflow.experiment import COMPRESSORS, Data, Experiment, Loss, Model, Optimisation
from oodflow.options import AUTO, LossOptions, ModelOptions, TrainingOptions, TunableNumber
from oodflow.registration import MODELS

__all__ = [
    "PAPER_STEPS",
    "Preset",
    "architecture",
    "build_experiment",
    "classifier_loss",
    "loss_of",
    "presets_of",
    "usual_loss",
]

PAPER_STEPS = 250 * (50_000 // 64)
"""Updates of a run on CIFAR10; the general set gets as many (S4.1)."""


@dataclass(frozen=True)
class Preset:
    """Settings of one model: the fields of its description, and how it is trained.

    Steps of 0 mean ``epochs`` passes, ``report_every`` 0 one pass.

    >>> Preset(depth=1, hidden=4, batch_size=8, lr=1e-3, finetune_lr=1e-3).weight_decay
    0.0
    """

    depth: int
    hidden: int
    batch_size: int
    lr: float
    finetune_lr: float
    weight_decay: float = 0.0
    warmup: int = 0
    report_every: int = 0
    epochs: int = 1
    scratch_steps: int = 0
    general_steps: int = 0
    finetune_steps: int = 0
    mixtures: int = 0
    dropout: float = 0.0
    patch: int = 0
    layers: int = 0
    cooldown: float = 0.0
    """Share of the updates over which the learning rate falls to zero at the end."""


QUICK_GLOW = Preset(
    depth=4, hidden=32, batch_size=64, lr=4e-3, finetune_lr=2e-3, weight_decay=5e-5,
    warmup=50, report_every=100,
    epochs=0, scratch_steps=1000, general_steps=1000, finetune_steps=300,
)  # fmt: skip
SMALL_GLOW = Preset(
    depth=8, hidden=32, batch_size=64, lr=6e-3, finetune_lr=3e-3, weight_decay=5e-5,
    warmup=50, report_every=250, cooldown=0.3,
    epochs=0, scratch_steps=4000, general_steps=4000, finetune_steps=1000,
)  # fmt: skip
QUICK_TARFLOW = Preset(
    depth=4, layers=2, patch=4, hidden=64, batch_size=64, lr=2e-3, finetune_lr=2e-3,
    weight_decay=1e-4, warmup=50, report_every=100,
    epochs=0, scratch_steps=700, general_steps=700, finetune_steps=250,
)  # fmt: skip
PAPER_GLOW = Preset(
    depth=32, hidden=512, batch_size=64, lr=5e-4, finetune_lr=5e-4, weight_decay=5e-5,
    warmup=0, report_every=0,
    epochs=250, scratch_steps=0, general_steps=PAPER_STEPS, finetune_steps=0,
)  # fmt: skip
NOTHING = Preset(
    depth=0, hidden=0, batch_size=1, lr=1.0, finetune_lr=1.0, weight_decay=0.0,
    warmup=0, report_every=1, epochs=0, scratch_steps=1, general_steps=1, finetune_steps=1,
)  # fmt: skip

_PRESETS: Mapping[tuple[str, str], Preset] = {
    **{(name, "quick"): QUICK_GLOW for name in ("glow", "glow-conditional", "glow-local")},
    **{(name, "small"): SMALL_GLOW for name in ("glow", "glow-conditional")},
    **{(name, "paper"): PAPER_GLOW for name in ("glow", "glow-conditional", "glow-local")},
    ("glow-dense", "quick"): replace(
        QUICK_GLOW, depth=2, hidden=64, scratch_steps=500, general_steps=500
    ),
    ("glow-dense", "paper"): replace(PAPER_GLOW, depth=8),
    ("pixelcnn", "quick"): Preset(
        depth=1, hidden=8, mixtures=5, batch_size=32, lr=5e-3, finetune_lr=3e-3, weight_decay=0.0,
        warmup=0, report_every=100,
        epochs=0, scratch_steps=800, general_steps=800, finetune_steps=300,
    ),
    ("pixelcnn", "paper"): Preset(
        depth=5, hidden=120, mixtures=10, dropout=0.5, batch_size=16, lr=2e-4, finetune_lr=2e-4,
        weight_decay=0.0, warmup=0, report_every=0,
        epochs=120, scratch_steps=0, general_steps=120 * (50_000 // 16), finetune_steps=0,
    ),
    ("tarflow", "quick"): QUICK_TARFLOW,
    ("tarflow", "small"): replace(
        QUICK_TARFLOW, lr=1e-3, finetune_lr=1e-3, report_every=250,
        scratch_steps=4000, general_steps=4000, finetune_steps=2000,
    ),
    # Trained for 100 epochs, as for the published likelihoods; warmed up for one of CIFAR10.
    ("tarflow", "paper"): Preset(
        depth=8, layers=8, patch=2, hidden=768, batch_size=256, lr=1e-4, finetune_lr=1e-4,
        weight_decay=1e-4, warmup=50_000 // 256, report_every=0,
        epochs=100, scratch_steps=0, general_steps=100 * (50_000 // 256), finetune_steps=0,
    ),
    ("wide-resnet", "quick"): Preset(
        depth=10, hidden=1, batch_size=64, lr=0.1, finetune_lr=0.1, weight_decay=5e-4,
        warmup=20, report_every=50,
        epochs=0, scratch_steps=300, general_steps=300, finetune_steps=300,
    ),
    ("wide-resnet", "paper"): Preset(
        depth=28, hidden=10, dropout=0.3, batch_size=128, lr=0.1, finetune_lr=0.1,
        weight_decay=5e-4, warmup=0, report_every=0,
        epochs=200, scratch_steps=0, general_steps=0, finetune_steps=0,
    ),
    **{(name, preset): NOTHING for name in COMPRESSORS
       for preset in ("quick", "small", "paper")},
}  # fmt: skip
"""S4.1, S4.2 and S9 for the paper's settings; the quick ones show the effect in minutes on a CPU.
PixelCNN++'s batch is that of its public implementation, 16; TarFlow's settings are those of its
paper (arXiv:2412.06329)."""

for _name in MODELS.built_in:
    MODELS.add(_name, {of: each for (name, of), each in _PRESETS.items() if name == _name})

USUAL_LOSSES: Mapping[str, tuple[float, float]] = {"binary": (1000.0, 6000.0), "margin": (0.0, 1.0)}
"""T in nats and λ of S4.4 for RGB images, and the plain margin loss of S7.5, which has no T."""


def usual_loss(name: str, channels: int) -> tuple[float, float]:
    """T in nats and weight λ of an outlier loss, unless others are chosen.

    The binary loss of grey images, whose likelihoods are sums over a third of the dimensions, has a
    third of both: so it weighs as much beside the likelihood as with the paper's RGB images.

    >>> usual_loss("binary", 1)
    (333.33..., 2000.0)
    """
    temperature, weight = USUAL_LOSSES[name]
    share = channels / 3 if name == "binary" else 1.0
    return temperature * share, weight * share


def presets_of(model: str) -> Mapping[str, Preset]:
    """The presets of a model family by name; UserError for an unknown family."""
    if model not in MODELS:
        raise MODELS.unknown(model)
    return MODELS[model]


def _preset(options: ModelOptions) -> Preset:
    presets = presets_of(options.model)
    if options.preset not in presets:
        raise unknown_name(f"preset of {options.model}", options.preset, presets)
    return presets[options.preset]


Value = TypeVar("Value", int, float)


def _or(value: Value | None, otherwise: Value) -> Value:
    return otherwise if value is None else value


def _positive(name: str, value: Value) -> Value:
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}; it must be a number above 0")
    return value


def _not_negative(name: str, value: Value) -> Value:
    if not 0 <= value < math.inf:
        raise UserError(f"{name} is {value}; it must be 0 or a number above it")
    return value


def architecture(options: ModelOptions, channels: int) -> Model:
    """The model that the options and their preset describe, for images of so many channels."""
    preset = _preset(options)
    if options.model in COMPRESSORS:
        return Model(channels, options.model, 0, 0)
    return Model(
        channels=channels,
        name=options.model,
        depth=_positive("depth", _or(options.depth, preset.depth)),
        hidden=_positive("hidden", _or(options.hidden, preset.hidden)),
        mixtures=preset.mixtures,
        dropout=preset.dropout,
        patch=preset.patch,
        layers=preset.layers,
        plugin=MODELS.origin(options.model),
    )


def loss_of(
    options: LossOptions, general: str, channels: int = 3, supervised: bool = False
) -> Loss:
    """The outlier loss that the options describe; ``general`` is the dataset's general set.

    Supervised training uses T and λ for the wrong classes too, hence without an outlier loss as
    well (S4.4). A value that is ``tuned`` has to be found before.
    """
    name = options.outlier_loss
    temperature = weight = margin = 0.0
    if name == "binary" or supervised:
        temperature, weight = usual_loss("binary", channels)
        if options.temperature is not None:
            temperature = _positive("temperature", _number("temperature", options.temperature))
    if name == "margin":
        weight = usual_loss(name, channels)[1]
        margin = _not_negative("margin", _number("margin", options.margin))
    if weight and options.outlier_weight is not None:
        weight = _number("outlier_weight", options.outlier_weight)
    if name == "none":
        return Loss(name, "", temperature, weight and _positive("outlier_weight", weight))
    dataset = general if options.outlier_dataset == AUTO else options.outlier_dataset
    return Loss(
        name,
        _required(dataset),
        temperature,
        _positive("outlier_weight", weight),
        margin=margin,
    )


def classifier_loss(general: str) -> Loss:
    """The loss of the binary classifier (S9), whose other class is the general set."""
    return Loss("classifier", _required(general), 0.0, 0.0)


def _required(dataset: str) -> str:
    if not dataset:
        raise UserError(
            "the dataset has no general set to take outliers from; name one with --outlier-dataset"
        )
    return dataset


def _number(name: str, value: TunableNumber) -> float:
    if isinstance(value, str):
        raise UserError(f"{name} is {value!r}, which a study has to give; write a number")
    return value


def build_experiment(
    options: TrainingOptions,
    *,
    dataset: str,
    role: str,
    train_size: int,
    model: Model,
    loss: Loss,
    init: str,
) -> Experiment:
    """The experiment behind the options, for seed 0 and without the identities of images.

    ``init`` is ``scratch``, or anything else for a training that starts from other weights.
    """
    preset = _preset(options)
    limit = options.limit
    if limit < 0:
        raise UserError(f"limit is {limit}; it must be 0 (all images) or a number of images")
    batch_size = _positive("batch_size", _or(options.batch_size, preset.batch_size))
    one_pass = max(min(train_size, limit or train_size) // batch_size, 1)
    if options.steps is not None and options.epochs is not None:
        raise UserError(
            f"steps is {options.steps} and epochs is {options.epochs}; give one of the two"
        )
    if options.steps is not None:
        steps = options.steps
    elif options.epochs is not None:
        steps = options.epochs * one_pass
    elif init != "scratch":
        steps = preset.finetune_steps or preset.epochs * one_pass
    else:
        by_role = preset.general_steps if role == "general" else preset.scratch_steps
        steps = by_role or preset.epochs * one_pass
    lr = preset.lr if init == "scratch" else preset.finetune_lr
    optimisation = Optimisation(
        steps=_positive("steps", steps),
        batch_size=batch_size,
        lr=_positive("lr", _or(options.lr, lr)),
        weight_decay=_not_negative("weight_decay", _or(options.weight_decay, preset.weight_decay)),
        warmup=_not_negative("warmup", _or(options.warmup, preset.warmup)),
        cooldown=_not_negative("cooldown", _or(options.cooldown, round(preset.cooldown * steps))),
        report_every=_positive(
            "report_every", _or(options.report_every, preset.report_every or one_pass)
        ),
        precision=options.precision,
    )
    return Experiment(model, Data(dataset, limit), loss, optimisation, init, general="", seed=0)
