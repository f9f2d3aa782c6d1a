"""``oodflow bench``: where the time of a training step goes, and how near the machine's limit."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from oodflow import console
from oodflow.data.batches import Batches
from oodflow.data.catalog import data_folder, lookup
from oodflow.data.images import load
from oodflow.options import ENTRY_POINTS
from oodflow.presets import architecture, build_experiment, loss_of
from oodflow.tracking import runs
from oodflow.tracking.store import open_store
from oodflow.training.loop import Trainer, initialise, new_model, resolve_device

__all__ = ["command", "matmul_peak", "measure"]

WARM_UP = 5
PHASES = ("data", "forward", "backward", "optimiser", "logging")


def command(given: Mapping[str, Any]) -> None:
    """Measure and print, as a table or as JSON."""
    figures = measure(given)
    if given["as_json"]:
        console.say(json.dumps(figures, indent=2))
        return
    from rich.table import Table

    table = Table("figure", "value")
    table.add_row("device", figures["device"])
    table.add_row(
        "a step", f"{figures['step_ms']:.1f} ms, {figures['images_per_second']:.0f} img/s"
    )
    for phase in PHASES:
        table.add_row(phase, f"{100 * figures['share'][phase]:.1f} %")
    compute = sum(figures["share"][phase] for phase in ("forward", "backward", "optimiser"))
    table.add_row("forward + backward + optimiser", f"{100 * compute:.1f} %")
    table.add_row("arithmetic of a step", f"{figures['step_gflop']:.2f} GFLOP")
    table.add_row("matrix-product peak, measured", f"{figures['peak_gflops']:.0f} GFLOP/s")
    table.add_row("fraction of the peak", f"{100 * figures['fraction_of_peak']:.1f} %")
    console.show(table)


def measure(given: Mapping[str, Any]) -> dict[str, Any]:
    """Train for some updates as ``oodflow train`` does, with its logging, and time the parts."""
    options = {each.name: each.default for each in ENTRY_POINTS["train"].options()}
    options |= {"preset": given["preset"], "steps": given["steps"] + WARM_UP}
    device = resolve_device(given["device"])
    facts = lookup("sketch-general")
    images = load(facts.name, "train", data_folder(given["data_dir"]))
    experiment = build_experiment(
        options,
        dataset=facts.name,
        digest=images.digest,
        role=facts.role,
        train_size=len(images.pixels),
        model=architecture(options, facts.channels),
        loss=loss_of({"model": "glow"}, ""),
        init="scratch",
        general="",
        seed=0,
    )
    batch_size = experiment.optimisation.batch_size
    batches = Batches(images, batch_size, 0, facts.translate, facts.flip, device)
    model = new_model(experiment, device)
    initialise(model, batches)
    spent: dict[str, float] = defaultdict(float)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        begin = wait()
        yield
        spent[phase] += wait() - begin

    trainer = Trainer(experiment, model, batches, timed=timed)
    begin = 0.0
    with console.progress("bench", given["steps"]) as advance:

        def on_step(step: int, bpd: Callable[[], float]) -> None:
            nonlocal begin
            advance(step - WARM_UP, lambda: f"{bpd():.3f} bpd")
            if step == WARM_UP:
                spent.clear()
                begin = wait()

        with _throw_away_run() as log:
            for report in trainer.run(on_step):
                if report.step > WARM_UP:
                    log(report.step, {"train/bpd": report.bpd})
            total = wait() - begin
    spent["logging"] = total - sum(spent.values())
    batch = batches.at(0)
    with FlopCounterMode(display=False) as counter:
        model.log_prob(batch.images, batch.noise).mean().backward()
    step_seconds = total / given["steps"]
    peak = matmul_peak(device)
    return {
        "device": f"{device} ({torch.get_num_threads()} threads)",
        "preset": given["preset"],
        "step_ms": 1000 * step_seconds,
        "images_per_second": batch_size / step_seconds,
        "share": {phase: spent[phase] / total for phase in PHASES},
        "step_gflop": counter.get_total_flops() / 1e9,
        "peak_gflops": peak / 1e9,
        "fraction_of_peak": counter.get_total_flops() / step_seconds / peak,
    }


def matmul_peak(device: torch.device, size: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations a second of a float32 matrix product, the best of some."""
    left, right = torch.randn(2, size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
        del product
    return 2 * size**3 / best


@contextmanager
def _throw_away_run() -> Iterator[Any]:
    """Log into a real SQLite store that is deleted afterwards; yields ``log(step, metrics)``."""
    with tempfile.TemporaryDirectory(prefix="oodflow-") as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        run_id = runs.start(store, "bench", {"kind": "bench"})
        yield lambda step, metrics: runs.log_metrics(store, run_id, metrics, step)
