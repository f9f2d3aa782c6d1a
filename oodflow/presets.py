"""From options to an experiment: presets, and what follows from dataset and loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oodflow.errors import UserError, unknown_name
from oodflow.experiment import AUTO, Data, Experiment, Loss, Model, Optimisation

__all__ = ["PAPER_STEPS", "architecture", "build_experiment", "loss_of"]

PAPER_STEPS = 250 * (50_000 // 64)
"""Updates of a run on CIFAR10; the general set gets as many (S4.1)."""


@dataclass(frozen=True)
class Preset:
    """Settings of one model; ``steps`` 0 means ``epochs`` passes, ``report_every`` 0 one pass."""

    depth: int
    hidden: int
    batch_size: int
    lr: float
    finetune_lr: float
    weight_decay: float
    warmup: int
    report_every: int
    epochs: int
    scratch_steps: int
    general_steps: int
    finetune_steps: int


PRESETS: Mapping[tuple[str, str], Preset] = {
    ("glow", "quick"): Preset(
        depth=4, hidden=32, batch_size=64, lr=4e-3, finetune_lr=2e-3, weight_decay=5e-5,
        warmup=50, report_every=50,
        epochs=0, scratch_steps=1000, general_steps=1000, finetune_steps=300,
    ),
    ("glow", "paper"): Preset(
        depth=32, hidden=512, batch_size=64, lr=5e-4, finetune_lr=5e-4, weight_decay=5e-5,
        warmup=0, report_every=0,
        epochs=250, scratch_steps=0, general_steps=PAPER_STEPS, finetune_steps=0,
    ),
}  # fmt: skip
"""S4.1 for the paper's settings; the quick ones show the effect in minutes on a CPU."""

OUTLIER_WEIGHTS = {"binary": 6000.0, "margin": 1.0}
"""λ of S4.4, and the plain margin loss of S7.5."""


def _preset(given: Mapping[str, Any]) -> Preset:
    key = (given["model"], given["preset"])
    if key not in PRESETS:
        raise unknown_name("model and preset", " ".join(key), map(" ".join, PRESETS))
    return PRESETS[key]


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value == AUTO else value


def _positive(name: str, value: Any) -> Any:
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}; it must be a number above 0")
    return value


def _not_negative(name: str, value: Any) -> Any:
    if not 0 <= value < math.inf:
        raise UserError(f"{name} is {value}; it must be 0 or a number above it")
    return value


def architecture(given: Mapping[str, Any], channels: int) -> Model:
    """The model that the options and their preset describe, for images of so many channels."""
    preset = _preset(given)
    return Model(
        name=given["model"],
        depth=_positive("depth", _or(given["depth"], preset.depth)),
        hidden=_positive("hidden", _or(given["hidden"], preset.hidden)),
        channels=channels,
    )


def loss_of(given: Mapping[str, Any], general: str) -> Loss:
    """The outlier loss that the options describe; ``general`` is the dataset's general set."""
    name = given.get("outlier_loss", "none")
    if name == "none":
        return Loss("none", "", 0.0, 0.0)
    dataset = _or(given["outlier_dataset"], general)
    if not dataset:
        raise UserError(
            "the dataset has no general set to take outliers from; name one with --outlier-dataset"
        )
    temperature = _positive("temperature", given["temperature"]) if name == "binary" else 0.0
    weight = _positive("outlier_weight", _or(given["outlier_weight"], OUTLIER_WEIGHTS[name]))
    return Loss(name, dataset, temperature, weight)


def build_experiment(
    given: Mapping[str, Any],
    *,
    dataset: str,
    role: str,
    train_size: int,
    model: Model,
    loss: Loss,
    init: str,
    general: str,
    seed: int,
) -> Experiment:
    """The experiment behind the options; ``init`` and ``general`` are hashes of experiments."""
    preset = _preset(given)
    limit = given["limit"]
    if limit < 0:
        raise UserError(f"limit is {limit}; it must be 0 (all images) or a number of images")
    batch_size = _positive("batch_size", _or(given["batch_size"], preset.batch_size))
    one_pass = max(min(train_size, limit or train_size) // batch_size, 1)
    if given["steps"] != AUTO:
        steps = given["steps"]
    elif given["epochs"] != AUTO:
        steps = given["epochs"] * one_pass
    elif init != "scratch":
        steps = preset.finetune_steps or preset.epochs * one_pass
    else:
        by_role = preset.general_steps if role == "general" else preset.scratch_steps
        steps = by_role or preset.epochs * one_pass
    lr = preset.lr if init == "scratch" else preset.finetune_lr
    optimisation = Optimisation(
        steps=_positive("steps", steps),
        batch_size=batch_size,
        lr=_positive("lr", _or(given["lr"], lr)),
        weight_decay=_not_negative("weight_decay", _or(given["weight_decay"], preset.weight_decay)),
        warmup=_not_negative("warmup", _or(given["warmup"], preset.warmup)),
        report_every=_positive(
            "report_every", _or(given["report_every"], preset.report_every or one_pass)
        ),
        precision=given["precision"],
    )
    data = Data(dataset, limit)
    return Experiment(model, data, loss, optimisation, init, general, seed)
