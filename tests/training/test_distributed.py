"""Two processes under torchrun have the numbers of one with the joint batch, infinities included.

This file is also what torchrun starts: each process then trains every case and saves what it got.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oodflow.data.batches import Batches
from oodflow.data.images import Images
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.glow import Glow
from oodflow.training.distributed import process_group, rank, total, world
from oodflow.training.loop import Trainer, initialise

CPU = torch.device("cpu")
STEPS, CLASSES = 6, 3
INFINITE = 255
"""Images whose first pixel has this value get log-likelihood −∞."""

LOSSES = {
    "likelihood": Loss("none", "", 100.0, 50.0),
    "binary": Loss("binary", "out", 100.0, 50.0),
    "margin": Loss("margin", "out", 0.0, 3.0, margin=200.0),
    "supervised": Loss("none", "", 100.0, 50.0),
    "supervised-binary": Loss("binary", "out", 100.0, 50.0),
}

SOME, FIRST, SECOND, MOST = {1, 9, 10, 13}, set(range(8)), set(range(8, 16)), set(range(13))
MARKED = {1: (SOME, {0, 9}), 2: (SECOND, SOME), 3: (set(), FIRST), 4: (SECOND, SECOND)}
MARKED |= {5: (set(), MOST)}
"""Step → positions in the batches of 16 of inliers and outliers that are infinite. Rank 0 has the
first 8 of each, rank 1 the others. At the last step more than 75 % of the outliers are."""

CASES = [(loss, marked) for loss in LOSSES for marked in (False, True)]


def _with_pole(values: Tensor, images: Tensor) -> Tensor:
    """−∞ for the marked images; then the gradients of the whole batch are NaN."""
    finite = (images[:, 0, 0, 0] != INFINITE).to(values)
    return values + torch.log(finite * (1 + 0 * values.sum()))[:, None]


class MarkedGlow(Glow):
    def forward(self, images, noise):
        return _with_pole(super().forward(images, noise), images)


class MarkedClasses(ClassConditionalGlow):
    def class_log_probs(self, images, noise):
        return _with_pole(super().class_log_probs(images, noise), images)


def batches(name: str, size: int, marked: dict[int, set[int]]) -> Batches:
    """16 images a step; those at the marked positions of their batch carry the mark."""
    generator = torch.Generator().manual_seed(len(name))
    count = STEPS * size
    pixels = torch.randint(40, 90, (count, 1, 32, 32), dtype=torch.uint8, generator=generator)
    pixels += torch.arange(count, dtype=torch.uint8)[:, None, None, None] % 50
    numbered = Batches(
        Images(name, "train", pixels, torch.arange(count), ""), size, 1, 0, False, CPU
    )
    for step, positions in marked.items():
        pixels[numbered.at(step).labels[sorted(positions)], 0, 0, 0] = INFINITE
    labels = torch.arange(count) % CLASSES
    return Batches(Images(name, "train", pixels, labels, ""), size, 1, 0, False, CPU)


def trained(case: str, marked: bool) -> tuple[list[tuple[float, ...]], dict[str, Tensor]]:
    """Reports of every update and the final weights of one case."""
    loss, supervised = LOSSES[case], case.startswith("supervised")
    # Without marks the parts are uneven as well: 7 images and 8.
    size = 16 if marked else 15
    inliers = batches("in", size, {s: pair[0] for s, pair in MARKED.items()} if marked else {})
    outliers = batches("out", size, {s: pair[1] for s, pair in MARKED.items()} if marked else {})
    torch.manual_seed(0)
    classes = CLASSES if supervised else 0
    model = MarkedClasses(1, classes, 1, 4) if supervised else MarkedGlow(1, 1, 4)
    contrast = Glow(1, 1, 4).double()
    # Double precision: what is left is not rounding, which Adamax would blow up.
    initialise(model.double(), batches("init", size, {}))
    initialise(contrast, outliers if not marked else batches("out", size, {}))
    if rank():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
    optimisation = Optimisation(STEPS, size, 1e-3, 1e-4, 2, 1, "fp32")
    spec = Model(1, "glow", 1, 4, classes=classes)
    experiment = Experiment(spec, Data("in", 0), loss, optimisation, "scratch", "", seed=1)
    trainer = Trainer(
        experiment,
        model,
        inliers,
        outliers if loss.outlier_loss != "none" else None,
        contrast if supervised or loss.outlier_loss == "binary" else None,
    )
    counted = ("dropped_images", "skipped_batches", "skipped_updates")
    reports = [
        (each.bpd, each.outlier_loss, *(getattr(each, name) for name in counted))
        for each in trainer.run()
    ]
    return reports, model.state_dict()


def torchrun(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def threads() -> list[str]:
    """Names of this process's threads, those of C++ included."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> list[dict]:
    """What each of two processes got in every case, and its threads within the group and after."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.long
@pytest.mark.parametrize(("loss", "marked"), CASES)
def test_two_processes_have_the_curve_and_the_weights_of_one(of_two, loss, marked) -> None:
    reports, weights = trained(loss, marked)
    assert len(reports) == STEPS
    for process in of_two:
        own_reports, own_weights = process[loss, marked]
        for own, expected in zip(own_reports, reports, strict=True):
            assert own == pytest.approx(expected, rel=1e-7, nan_ok=True)
        for name, tensor in weights.items():
            assert torch.allclose(own_weights[name], tensor, rtol=1e-5, atol=1e-9), name


@pytest.mark.long
@pytest.mark.parametrize(("loss", "marked"), CASES)
def test_all_processes_have_the_same_bits(of_two, loss, marked) -> None:
    first, second = (process[loss, marked][1] for process in of_two)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
def test_processes_drop_and_skip_together(of_two, loss) -> None:
    """The counts are those of the marks, over the images of both; no update has bad gradients."""
    paired = LOSSES[loss].outlier_loss != "none"
    for process in of_two:
        dropped, batches_skipped, updates_skipped = zip(
            *(report[2:] for report in process[loss, True][0]), strict=True
        )
        marked = [MARKED.get(step, (set(), set())) for step in range(STEPS)]
        assert list(dropped) == [len(a) + len(b) * paired for a, b in marked]
        assert list(batches_skipped) == [0, 0, 0, 0, 0, int(paired)]
        assert list(updates_skipped) == [0] * STEPS


@pytest.mark.long
def test_no_thread_of_the_group_outlives_it(of_two) -> None:
    """One that does can abort the process at its exit."""
    for process in of_two:
        assert any("gloo" in name for name in process["threads inside"])
        assert not any("gloo" in name for name in process["threads after"])


def test_parts_of_a_batch_are_the_batch() -> None:
    whole = batches("in", 15, {}).at(2)
    parts = [whole.part(number, 4) for number in range(4)]
    assert [len(part.images) for part in parts] == [3, 4, 4, 4]
    for name in ("images", "labels", "noise"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))


def test_without_torchrun_there_is_one_process() -> None:
    with process_group(CPU) as device:
        assert device == CPU
        assert (rank(), world()) == (0, 1)
        values = torch.ones(2)
        assert total(values) is values


if __name__ == "__main__":
    with process_group(CPU):
        found = {(loss, marked): trained(loss, marked) for loss, marked in CASES}
        # Compiling imports it, and whatever else of torch binds the group that there is.
        importlib.import_module("torch._dynamo")
        found["threads inside"], number = threads(), rank()
    found["threads after"] = threads()
    torch.save(found, Path(sys.argv[1]) / f"{number}.pt")
