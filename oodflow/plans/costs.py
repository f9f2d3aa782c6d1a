"""The cost of tasks in seconds, from the durations of registered runs or measured now.

A training costs seconds per update, and any other task seconds as a whole. Trainings cost the same
where :data:`DECISIVE` parameters agree.
"""

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from oodflow.bench.timed_training import noise_batches
from oodflow.experiment import Experiment, parameters
from oodflow.plans.task_runs import TIMED_ON
from oodflow.plans.tasks import TRAINING, Task, outlined
from oodflow.tracking import runs
from oodflow.tracking.store import Store
from oodflow.training.loop import Trainer, new_model

__all__ = [
    "Kind",
    "cost",
    "describe_kind",
    "kind_of",
    "known_costs",
    "measure",
    "units",
]

Kind = tuple[str, ...]
"""What tasks of equal cost have in common: their entry point or their decisive parameters."""

DECISIVE = (
    "model.name",
    "model.depth",
    "model.hidden",
    "model.channels",
    "model.classes",
    "loss.outlier_loss",
    "optimisation.batch_size",
    "optimisation.precision",
)

SECONDS = 15.0
"""Seconds of a measurement: no update begins later, and none that would take longer."""

FEW = 8
"""Images of the first update, which shows how long one of a whole batch would take."""


def kind_of(task: Task) -> Kind:
    """Which tasks cost the same, per update or as a whole."""
    if task.entry_point not in TRAINING:
        return (task.entry_point,)
    return _decisive(parameters(outlined(task)))


def _decisive(values: Mapping[str, str]) -> Kind:
    return tuple(values.get(name, "") for name in DECISIVE)


def units(task: Task) -> int:
    """Updates of a training, and 1 for any other task."""
    return outlined(task).optimisation.steps if task.entry_point in TRAINING else 1


def cost(tasks: Iterable[Task], known: Mapping[Kind, float]) -> tuple[float, int]:
    """Seconds of those tasks whose kind is known, and how many others there are."""
    seconds, others = 0.0, 0
    for task in tasks:
        kind = kind_of(task)
        if kind in known:
            seconds += units(task) * known[kind]
        else:
            others += 1
    return seconds, others


def known_costs(store: Store, device: str) -> dict[Kind, float]:
    """Median seconds an update of the registered trainings made on a device, each in one go.

    Their evaluation is in it.
    """
    found: dict[Kind, list[float]] = {}
    for run in runs.find(store, {TIMED_ON: device, "registered": "true"}, status="FINISHED"):
        steps = int(run.params["optimisation.steps"])
        found.setdefault(_decisive(run.params), []).append(run.seconds / steps)
    return {kind: statistics.median(values) for kind, values in found.items()}


def measure(task: Task, device: torch.device) -> float:
    """Seconds an update of a training takes on this device, on random images, without evaluation.

    Where an update of a few images is so slow that one of a whole batch would take more than
    :data:`SECONDS`, it stands for the batch in proportion.
    """
    experiment = outlined(task)
    size = experiment.optimisation.batch_size
    few = min(size, FEW)
    projected = _seconds_an_update(experiment, few, 3, device) * size / few
    return projected if projected > SECONDS else _seconds_an_update(experiment, size, 8, device)


def _seconds_an_update(
    experiment: Experiment, batch_size: int, updates: int, device: torch.device
) -> float:
    """The fastest of so many updates after the first one, which fills caches; in at most 15 s.

    What other processes do on the machine makes updates slower, and none faster.
    """
    settings = replace(
        experiment.optimisation, batch_size=batch_size, steps=updates + 1, report_every=1
    )
    experiment = replace(experiment, optimisation=settings)
    needs_contrast = experiment.loss.outlier_loss == "binary" or experiment.model.classes > 0
    inliers, outliers = (
        noise_batches(name, experiment, device, batch_size) for name in ("inliers", "outliers")
    )
    trainer = Trainer(
        experiment,
        new_model(experiment, device),
        inliers,
        outliers if experiment.loss.outlier_loss != "none" else None,
        new_model(experiment, device) if needs_contrast else None,
    )
    begin = last = time.perf_counter()
    taken = []
    # A report copies numbers from the device, and so waits for the update to be over.
    for _ in trainer.run():
        now = time.perf_counter()
        taken.append(now - last)
        last = now
        if now - begin > SECONDS:
            break
    return min(taken[1:] or taken)


def describe_kind(kind: Kind) -> str:
    """A kind of training in words, such as ``glow 4×32, binary``."""
    name, depth, hidden, channels, classes, loss, _, precision = kind
    words = [f"{name} {depth}×{hidden}"]
    words += ["grey"] * (channels == "1") + [f"{classes} classes"] * (classes != "0")
    words += [loss] * (loss != "none") + [precision] * (precision != "fp32")
    return ", ".join(words)
