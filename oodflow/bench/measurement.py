"""Times an update of a training: its parts, its memory, and the device's lower bound for it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oodflow import console
from oodflow.bench.machine import arithmetic, attention_kernel, bandwidth, matmul_peak
from oodflow.bench.timed_training import IMAGES, PHASES, TimedTraining
from oodflow.errors import UserError
from oodflow.experiment import COMPRESSORS, Experiment
from oodflow.models.device import available_device
from oodflow.models.glow import Scale
from oodflow.options import BenchOptions, FinetuneOptions, carried
from oodflow.presets import architecture, build_experiment, classifier_loss, loss_of
from oodflow.registration import MODELS

__all__ = ["Bench", "Floor", "Update", "measure"]

WARM_UP = 3
"""Updates before those that are timed: they fill caches and choose kernels."""


@dataclass(frozen=True)
class Update:
    """The time of an update in one form: medians over the timed updates."""

    form: str
    ms: float
    images_per_second: float
    """Images that go through the model in training, outliers included."""
    share: dict[str, float]
    """Share of the time of each phase; they sum to 1."""
    memory_mb: float
    """Weights, gradients, optimiser and activations at the highest moment."""


@dataclass(frozen=True)
class Floor:
    """The lower bound for the time of an update on this device.

    By arithmetic: its products and convolutions at the rate of the fastest product. By bandwidth:
    its traffic at the rate of a copy, where weights are read twice and their gradients written
    once, the optimiser reads weights, gradients and state and writes weights and state, and each
    activation that the folded form keeps for the backward pass is written once and read once.
    """

    gflop: float
    gflop_per_second: float
    arithmetic_ms: float
    gb: float
    gb_per_second: float
    bandwidth_ms: float

    @property
    def ms(self) -> float:
        """The higher of the two bounds."""
        return max(self.arithmetic_ms, self.bandwidth_ms)


@dataclass(frozen=True)
class Bench:
    """The settings, the update, its lower bound, and on request the plain form beside it."""

    device: str
    threads: int
    preset: str
    model: str
    depth: int
    hidden: int
    loss: str
    precision: str
    batch_size: int
    update: Update
    floor: Floor
    fraction_of_floor: float
    """Time of the floor over time of the update."""
    report_ms: float
    """A validation on five sets of images, a line of the journal and a checkpoint; the least
    of three."""
    report_every: int
    """Updates between two reports."""
    epoch_overhead: float
    """The time that reports add to an epoch of 50 000 images, as a share of its updates."""
    paper_epochs: int
    paper_hours: float
    """A training on CIFAR10 of the paper's length at this rate, without its evaluations."""
    attention: str
    """The kernel that PyTorch chose for the attention; "" for models without."""
    eager: Update | None
    speed_up: float | None
    """Time of the plain form over that of the update; the two were made in turns."""


def measure(chosen: BenchOptions) -> Bench:
    """Time updates of the training that the options describe; UserError for wrong ones."""
    device = available_device(chosen.device)
    experiment = _experiment(chosen)
    # First, since the C library keeps memory for reuse once blocks of this size were freed. In a
    # training the data-dependent initialisation has the same effect.
    rates = matmul_peak(device, chosen.precision), bandwidth(device)
    trainings = [TimedTraining(experiment, device, "recomputed" if chosen.recompute else "fused")]
    if chosen.compare == "eager":
        if not any(isinstance(each, Scale) for each in trainings[0].trainer.model.modules()):
            raise UserError(f"{experiment.model.name} has one form only: leave compare out")
        trainings.append(TimedTraining(experiment, device, "plain"))
    _take_turns(trainings, WARM_UP + chosen.steps)
    update, *others = (_update(each) for each in trainings)
    floor = _floor(trainings[0], *rates)
    report_ms = 1e3 * min(trainings[0].report_seconds() for _ in range(3))
    every = experiment.optimisation.report_every
    presets = MODELS[experiment.model.name]
    epochs = presets.get("paper", presets["quick"]).epochs
    batch_size = experiment.optimisation.batch_size
    return Bench(
        device=str(device),
        threads=torch.get_num_threads(),
        preset=chosen.preset,
        model=experiment.model.name,
        depth=experiment.model.depth,
        hidden=experiment.model.hidden,
        loss=experiment.loss.outlier_loss,
        precision=chosen.precision,
        batch_size=batch_size,
        update=update,
        floor=floor,
        fraction_of_floor=floor.ms / update.ms,
        report_ms=report_ms,
        report_every=every,
        epoch_overhead=report_ms / (every * update.ms),
        paper_epochs=epochs,
        paper_hours=epochs * (IMAGES // batch_size) * update.ms / 3.6e6,
        attention=attention_kernel(trainings[0].update),
        eager=others[0] if others else None,
        speed_up=others[0].ms / update.ms if others else None,
    )


def _experiment(chosen: BenchOptions) -> Experiment:
    if chosen.model in COMPRESSORS:
        raise UserError(f"{chosen.model} has nothing to train, and so nothing to measure")
    if chosen.model == "wide-resnet" and chosen.loss != "none":
        raise UserError("wide-resnet has a loss of its own; leave loss out")
    if chosen.steps < 1:
        raise UserError(f"steps is {chosen.steps}; it must be at least 1")
    # Three more updates than are timed, for memory, arithmetic and kernels. Noise teaches nothing,
    # and weights that hardly change keep all updates alike.
    options = carried(
        FinetuneOptions,
        chosen,
        steps=WARM_UP + chosen.steps + 3,
        lr=1e-9,
        outlier_loss=chosen.loss,
    )
    classifier = chosen.model == "wide-resnet"
    return build_experiment(
        options,
        dataset="noise",
        role="in_distribution",
        train_size=IMAGES,
        model=architecture(options, channels=3),
        loss=classifier_loss("noise") if classifier else loss_of(options, "noise"),
        init="scratch",
    )


def _take_turns(trainings: Sequence[TimedTraining], updates: int) -> None:
    """Each makes an update in turn, so that other load on the machine affects all alike."""
    with console.progress("bench", updates) as advance:
        for done in range(updates):
            for each in trainings:
                each.update()
            advance(done + 1)


def _update(training: TimedTraining) -> Update:
    timed = training.seconds[WARM_UP:]
    seconds = statistics.median(sum(each.values()) for each in timed)
    parts = {phase: statistics.median(each[phase] for each in timed) for phase in PHASES}
    return Update(
        form=training.trainer.form,
        ms=1e3 * seconds,
        images_per_second=training.images_per_update / seconds,
        share={phase: part / sum(parts.values()) for phase, part in parts.items()},
        memory_mb=training.peak_bytes() / 1e6,
    )


def _floor(training: TimedTraining, flop_rate: float, byte_rate: float) -> Floor:
    # Recomputation belongs to the form, not to the lower bound.
    training.trainer.form = "fused"
    flop, traffic = arithmetic(training.update), training.traffic_bytes()
    return Floor(
        gflop=flop / 1e9,
        gflop_per_second=flop_rate / 1e9,
        arithmetic_ms=1e3 * flop / flop_rate,
        gb=traffic / 1e9,
        gb_per_second=byte_rate / 1e9,
        bandwidth_ms=1e3 * traffic / byte_rate,
    )
