"""Optimisers and learning-rate schedules, by model family (S4.1, S4.2, S9)."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer

from oodflow.experiment import Experiment
from oodflow.training.vector import ParameterVector

__all__ = ["learning_rate", "make_optimiser", "restore_state", "state_tensors"]

Maker = Callable[[Iterable[Tensor], float, float], Optimizer]

OPTIMISERS: Mapping[str, Maker] = {
    "pixelcnn": lambda parameters, lr, decay: Adam(
        parameters, lr=lr, weight_decay=decay, fused=True
    ),
    "tarflow": lambda parameters, lr, decay: AdamW(
        parameters, lr=lr, betas=(0.9, 0.95), weight_decay=decay, fused=True
    ),
    "wide-resnet": lambda parameters, lr, decay: SGD(
        parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
    ),
}
"""Families that do not use Adamax, with their own published optimiser."""

PIXELCNN_DECAY = 0.999995
"""Factor an epoch of PixelCNN++'s learning rate (S4.2)."""

RESNET_DROPS = (0.3, 0.6, 0.8)
"""Shares of the training after which Wide-ResNet's rate falls by 0.2: epochs 60, 120, 160."""

TARFLOW_LAST_RATE = 1e-6
"""What the learning rate of a TarFlow falls to, along half a cosine (arXiv:2412.06329)."""

STEP = "step"
"""The one state of an optimiser that is a number: how many updates it has made."""


def make_optimiser(experiment: Experiment, parameters: Iterable[Tensor]) -> Optimizer:
    """The family's optimiser with the experiment's learning rate and weight decay."""
    settings = experiment.optimisation
    if maker := OPTIMISERS.get(experiment.model.name):
        return maker(parameters, settings.lr, settings.weight_decay)
    return Adamax(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def learning_rate(experiment: Experiment, step: int, steps_per_pass: int) -> float:
    """The rate of update ``step``, counted from 0: the family's schedule between linear slopes."""
    settings = experiment.optimisation
    rate = settings.lr * min(1.0, (step + 1) / max(settings.warmup, 1))
    if settings.cooldown:
        rate *= min(1.0, (settings.steps - step) / settings.cooldown)
    if experiment.model.name == "pixelcnn":
        return rate * PIXELCNN_DECAY ** (step // steps_per_pass)
    if experiment.model.name == "tarflow":
        done = max(step - settings.warmup, 0) / max(settings.steps - settings.warmup, 1)
        last = min(TARFLOW_LAST_RATE, rate)
        return last + (rate - last) * (1 + math.cos(math.pi * done)) / 2
    if experiment.model.name == "wide-resnet":
        return rate * 0.2 ** sum(step >= share * settings.steps for share in RESNET_DROPS)
    return rate


def state_tensors(optimiser: Optimizer, vector: ParameterVector) -> dict[str, Tensor]:
    """The state of an optimiser of the vector's chunks: parameter's position, then state's name.

    It says nothing of the chunks, so that others can go on with it; none before the first update.
    """
    states = list(optimiser.state_dict()["state"].values())
    tensors: dict[str, Tensor] = {}
    for name, value in (states[0] if states else {}).items():
        if name == STEP:
            parts = [value.clone() for _ in vector.sizes]
        else:
            parts = vector.parts(torch.cat([state[name] for state in states]))
        tensors |= {f"{position}/{name}": part for position, part in enumerate(parts)}
    return tensors


def restore_state(
    optimiser: Optimizer, vector: ParameterVector, tensors: Mapping[str, Tensor]
) -> None:
    """Put what :func:`state_tensors` gave back into an optimiser of the vector's chunks."""
    groups = optimiser.state_dict()["param_groups"]
    sizes = [len(chunk) for chunk in optimiser.param_groups[0]["params"]]
    states: list[dict[str, Tensor]] = [{} for _ in sizes]
    for name in {key.partition("/")[2] for key in tensors}:
        if name == STEP:
            chunks = [tensors[f"0/{name}"].clone() for _ in sizes]
        else:
            joined = torch.zeros_like(vector.values)
            for position, part in enumerate(vector.parts(joined)):
                part.copy_(tensors[f"{position}/{name}"])
            chunks = list(joined.split(sizes))
        for state, chunk in zip(states, chunks, strict=True):
            state[name] = chunk
    numbered = dict(enumerate(states)) if tensors else {}
    optimiser.load_state_dict({"state": numbered, "param_groups": groups})
