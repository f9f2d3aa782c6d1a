"""``oodflow bench``: what an update of a training takes, where, and how near the device's floor."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from oodflow import console
from oodflow.bench.machine import arithmetic, bandwidth, matmul_peak
from oodflow.bench.timed_training import IMAGES, PHASES, TimedTraining
from oodflow.console import duration
from oodflow.errors import UserError
from oodflow.experiment import COMPRESSORS, Experiment
from oodflow.models.glow import Scale
from oodflow.options import ENTRY_POINTS, Benchmark, pick
from oodflow.presets import PRESETS, architecture, build_experiment, loss_of
from oodflow.workflow.session import available_device

__all__ = ["Bench", "Floor", "Update", "command", "measure"]

WARM_UP = 3
"""Updates before those that are timed: they fill caches and choose kernels."""


@dataclass(frozen=True)
class Update:
    """What an update takes in one form: medians over the updates that were timed."""

    form: str
    ms: float
    images_per_second: float
    """Images that go through the model in training, outliers included."""
    share: dict[str, float]
    """Part of the time that each phase has; together 1."""
    memory_mb: float
    """Weights, gradients, optimiser and activations at the highest moment."""


@dataclass(frozen=True)
class Floor:
    """What an update cannot be faster than on this device.

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
        """The higher of the two."""
        return max(self.arithmetic_ms, self.bandwidth_ms)


@dataclass(frozen=True)
class Bench:
    """What was measured, the update, its floor, and beside it the plain form where asked for."""

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
    """What its reports add to an epoch of 50 000 images, as a part of its updates."""
    paper_epochs: int
    paper_hours: float
    """A training on CIFAR10 of the paper's length at this rate, without its evaluations."""
    eager: Update | None
    speed_up: float | None
    """Time of the plain form over that of the update; the two were made in turns."""


def command(given: Mapping[str, Any]) -> None:
    """Measure and print, as a table or as JSON."""
    found = measure(given)
    if given["json"]:
        console.say(json.dumps(asdict(found), indent=2))
        return
    from rich.table import Table

    table = Table("figure", "value")
    for row in _rows(found):
        table.add_row(*row)
    console.show(table)


def _rows(found: Bench) -> Iterator[tuple[str, str]]:
    update, floor = found.update, found.floor
    yield "model", f"{found.model} {found.depth}×{found.hidden}, {found.precision}"
    yield "device", f"{found.device}, {found.threads} threads"
    yield "batch", f"{found.batch_size}, outlier loss {found.loss}"
    yield f"an update, {update.form}", _speed(update)
    for phase in PHASES:
        yield phase, f"{100 * update.share[phase]:.1f} %"
    rate = f"{floor.gflop_per_second:.0f} GFLOP/s"
    yield "floor by arithmetic", f"{floor.arithmetic_ms:.1f} ms: {floor.gflop:.2f} GFLOP at {rate}"
    rate = f"{floor.gb_per_second:.0f} GB/s"
    yield "floor by bandwidth", f"{floor.bandwidth_ms:.1f} ms: {floor.gb:.2f} GB at {rate}"
    yield "fraction of the floor", f"{100 * found.fraction_of_floor:.1f} %"
    every = f"every {found.report_every} updates"
    cost = f"{100 * found.epoch_overhead:.1f} % of an epoch"
    yield "a report", f"{found.report_ms:.0f} ms {every}: {cost}"
    yield f"{found.paper_epochs} epochs of CIFAR10", duration(3600 * found.paper_hours)
    if found.eager:
        yield "an update, eager", _speed(found.eager)
        yield "speed-up against eager", f"{found.speed_up:.2f}"


def _speed(update: Update) -> str:
    return f"{update.ms:.1f} ms, {update.images_per_second:.0f} images/s, {update.memory_mb:.0f} MB"


def measure(given: Mapping[str, Any]) -> Bench:
    """Time updates of the training that the options describe; UserError for wrong ones."""
    chosen = pick(Benchmark, given)
    device = available_device(chosen.device)
    experiment = _experiment(given)
    # First, since blocks of this size, once freed, teach the C library to keep memory instead of
    # fetching it for every tensor. In a training the data-dependent initialisation does so.
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
    epochs = PRESETS[experiment.model.name, "paper"].epochs
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
        eager=others[0] if others else None,
        speed_up=others[0].ms / update.ms if others else None,
    )


def _experiment(given: Mapping[str, Any]) -> Experiment:
    name = given["model"]
    if name in COMPRESSORS:
        raise UserError(f"{name} has nothing to train, and so nothing to measure")
    if name == "wide-resnet" and given["loss"] != "none":
        raise UserError("wide-resnet has a loss of its own; leave loss out")
    if given["steps"] < 1:
        raise UserError(f"steps is {given['steps']}; it must be at least 1")
    options = {each.name: each.default for each in ENTRY_POINTS["finetune"].options()}
    options |= {name: value for name, value in given.items() if name in options}
    # Two more than are timed, for the memory and for the arithmetic. From noise there is nothing to
    # learn, and weights that stay where they are keep every update alike.
    steps = WARM_UP + given["steps"] + 2
    options |= {"steps": steps, "lr": 1e-9, "outlier_loss": given["loss"]}
    return build_experiment(
        options,
        dataset="noise",
        digest="",
        role="in_distribution",
        train_size=IMAGES,
        model=architecture(options, channels=3),
        loss=loss_of(options, "noise"),
        init="scratch",
        general="",
        seed=0,
    )


def _take_turns(trainings: Sequence[TimedTraining], updates: int) -> None:
    """Each makes an update in turn: what else the machine does meanwhile concerns all alike."""
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
    # What is computed a second time belongs to the form and not to the floor.
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
