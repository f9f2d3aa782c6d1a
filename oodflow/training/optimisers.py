"""Optimisers and learning-rate schedules, by model family (S4.1, S4.2, S9)."""

from collections.abc import Callable, Iterable, Mapping

from torch import nn
from torch.optim import SGD, Adam, Adamax, Optimizer

from oodflow.experiment import Experiment

__all__ = ["learning_rate", "make_optimiser"]

Maker = Callable[[Iterable[nn.Parameter], float, float], Optimizer]

OPTIMISERS: Mapping[str, Maker] = {
    "pixelcnn": lambda parameters, lr, decay: Adam(parameters, lr=lr, weight_decay=decay),
    "wide-resnet": lambda parameters, lr, decay: SGD(
        parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay
    ),
}
"""Families that do not use Adamax, with their own published optimiser."""

PIXELCNN_DECAY = 0.999995
"""Factor an epoch of PixelCNN++'s learning rate (S4.2)."""

RESNET_DROPS = (0.3, 0.6, 0.8)
"""Shares of the training after which Wide-ResNet's rate falls by 0.2: epochs 60, 120, 160."""


def make_optimiser(experiment: Experiment, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The family's optimiser with the experiment's learning rate and weight decay."""
    settings = experiment.optimisation
    if maker := OPTIMISERS.get(experiment.model.name):
        return maker(parameters, settings.lr, settings.weight_decay)
    return Adamax(parameters, lr=settings.lr, weight_decay=settings.weight_decay, foreach=True)


def learning_rate(experiment: Experiment, step: int, steps_per_pass: int) -> float:
    """The rate of update ``step``, counted from 0: linear warm-up, then the family's schedule."""
    settings = experiment.optimisation
    rate = settings.lr * min(1.0, (step + 1) / max(settings.warmup, 1))
    if experiment.model.name == "pixelcnn":
        return rate * PIXELCNN_DECAY ** (step // steps_per_pass)
    if experiment.model.name == "wide-resnet":
        return rate * 0.2 ** sum(step >= share * settings.steps for share in RESNET_DROPS)
    return rate
