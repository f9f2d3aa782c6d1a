"""``oodflow bench``: the cost of a training update, as a table or as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table

from oodflow import console
from oodflow.bench.measurement import Bench, Update, measure
from oodflow.bench.timed_training import PHASES
from oodflow.console import duration
from oodflow.options import BenchOptions

__all__ = ["command"]


def command(options: BenchOptions) -> None:
    """Measure and print, as a table or as JSON."""
    found = measure(options)
    if options.json:
        console.say(json.dumps(asdict(found), indent=2))
        return
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
    if found.attention:
        yield "attention", found.attention
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
