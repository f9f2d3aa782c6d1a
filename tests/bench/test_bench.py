"""Bench: what it counts and how its numbers belong together. Never how long anything takes."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from oodflow.bench import machine, timed_training
from oodflow.bench.machine import arithmetic, attention_kernel, kept_bytes, matmul_peak, peak_memory
from oodflow.bench.measurement import measure
from oodflow.errors import UserError
from oodflow.models.form import computed_as
from oodflow.models.glow import Glow
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.tarflow import TarFlow
from oodflow.options import BenchOptions
from oodflow.registration import MODELS

CPU = torch.device("cpu")
SMALL = {"depth": 1, "hidden": 4, "batch_size": 4, "steps": 2, "device": "cpu"}


def options(**given: Any) -> BenchOptions:
    return BenchOptions(**(SMALL | given))


@pytest.fixture(scope="module", autouse=True)
def small_measurements() -> Iterator[None]:
    """Less is timed than a measurement needs that is to mean something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "SIZES", {"cpu": 256})
        patch.setattr(machine, "COPIED", {"cpu": 2**20})
        patch.setattr(timed_training, "VALIDATION_IMAGES", 20)
        few = partial(timed_training.noise_batches, count=200)
        patch.setattr(timed_training, "noise_batches", few)
        yield


# What a computation asks of a device


def test_arithmetic_of_two_convolutions_by_hand() -> None:
    images = torch.randn(2, 3, 8, 8)
    first = torch.randn(5, 3, 3, 3, requires_grad=True)
    second = torch.randn(4, 5, 1, 1, requires_grad=True)

    def work() -> None:
        F.conv2d(F.conv2d(images, first, padding=1).relu(), second).sum().backward()

    # Forward and weights; behind the first convolution also the gradient of what goes in.
    expected = 2 * (2 * 64) * (2 * 3 * 5 * 9 + 3 * 5 * 4)
    assert arithmetic(work) == expected


def test_arithmetic_of_a_flow_step_by_hand() -> None:
    glow = Glow(1, depth=1, hidden=5, size=8, scales=1)
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    positions, channels = 3 * 4 * 4, 4
    convolutions = 2 * channels**2 + 3 * (2 * 5 * 9 + 5 * 5 + 5 * channels * 9)
    # P·L and (P·L)·U, of which P gets no gradient; W·loc with the gradients of both.
    products = 5 * channels**3 + 3 * channels**2
    counted = arithmetic(lambda: glow.log_prob(images).sum().backward())
    assert counted == 2 * (positions * convolutions + products)


def test_kept_bytes_are_those_of_the_tensors_a_gradient_needs() -> None:
    weight = torch.ones(10, requires_grad=True)
    known = {weight.untyped_storage().data_ptr()}
    x = torch.ones(10)
    # exp keeps its result, which the product keeps too, once; and the product keeps x.
    assert kept_bytes(lambda: (weight.exp() * x).sum(), known) == 4 * 20
    assert kept_bytes(lambda: (weight.detach().exp() * x).sum(), known) == 0


def test_peak_memory_is_that_of_the_highest_moment() -> None:
    x = torch.zeros(1000)

    def work() -> Tensor:
        total = torch.zeros(())
        for _ in range(3):
            first = x + 1
            second = first.view(10, 100).t() * 2
            first.add_(second.reshape(-1))
            total = total + first.sum()
        return total

    # Old "first" and "second" are there while new ones are made; then the copy of "reshape".
    assert 4 * 3000 <= peak_memory(work, CPU) <= 4 * 3010
    assert peak_memory(lambda: x.view(10, 100).t().add_(1), CPU) == 0


def memory_of_an_update(model: LikelihoodModel, images: Tensor, form: str) -> int:
    def work() -> None:
        with computed_as(form):
            loss = -model.log_prob(images).mean()
        loss.backward()

    model.zero_grad()
    return peak_memory(work, CPU)


def test_tensors_without_content_take_the_same_memory_in_the_books() -> None:
    """So that the next test can look at a model which this machine might not hold."""
    real = memory_of_an_update(Glow(3, depth=2, hidden=16), _images(4), "fused")
    with FakeTensorMode():
        assert memory_of_an_update(Glow(3, depth=2, hidden=16), _images(4), "fused") == real


@pytest.mark.long
def test_recomputation_takes_less_than_40_percent_of_the_plain_form_at_the_papers_size() -> None:
    with FakeTensorMode():
        glow, images = Glow(3, depth=32, hidden=512), _images(64)
        plain, recomputed = (
            memory_of_an_update(glow, images, form) for form in ("plain", "recomputed")
        )
        # Weights, and the two moments of Adamax; the gradients are among what was counted.
        lasting = 3 * sum(parameter.nbytes for parameter in glow.parameters())
    assert recomputed < 0.1 * plain
    assert recomputed + lasting < 0.4 * (plain + lasting)
    assert recomputed + lasting < 1e9


def test_recomputation_of_tarflow_takes_less_than_15_percent_at_the_papers_size() -> None:
    with FakeTensorMode():
        model, images = TarFlow(3, patch=2, depth=8, layers=8, width=768), _images(256)
        plain, recomputed = (
            memory_of_an_update(model, images, form) for form in ("plain", "recomputed")
        )
        # Weights, and the two moments of AdamW.
        lasting = 3 * sum(parameter.nbytes for parameter in model.parameters())
    assert recomputed + lasting < 0.15 * (plain + lasting)
    assert recomputed + lasting < 25e9


def _images(count: int) -> Tensor:
    return torch.zeros(count, 3, 32, 32, dtype=torch.uint8)


def test_both_products_of_the_peak_are_of_the_same_arithmetic() -> None:
    # One to warm up and five that are timed, as matrices and as a convolution.
    assert arithmetic(lambda: matmul_peak(CPU, size=256)) == 2 * 6 * 2 * 256**3


def test_attention_counts_as_the_products_that_it_consists_of() -> None:
    query, key, value = torch.randn(3, 2, 3, 8, 4, requires_grad=True).unbind()
    product = 2 * (2 * 3) * 8 * 8 * 4

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    assert arithmetic(attend) == 2 * product
    # Backwards two for each product, and the attention's weights again.
    assert arithmetic(lambda: attend().sum().backward()) == (2 + 5) * product


# The figures


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return asdict(measure(options(loss="binary", compare="eager", precision="bf16")))


def test_figures_belong_together(found: dict[str, Any]) -> None:
    for update in (found["update"], found["eager"]):
        assert set(update["share"]) == {"data", "forward", "backward", "optimiser", "logging"}
        assert sum(update["share"].values()) == pytest.approx(1)
        assert all(0 <= share < 1 for share in update["share"].values())
        # 4 inliers and as many outliers.
        assert update["images_per_second"] * update["ms"] == pytest.approx(8000)
    assert [found["update"]["form"], found["eager"]["form"]] == ["fused", "plain"]
    assert found["speed_up"] == pytest.approx(found["eager"]["ms"] / found["update"]["ms"])
    floor = found["floor"]
    assert floor["arithmetic_ms"] == pytest.approx(
        1000 * floor["gflop"] / floor["gflop_per_second"]
    )
    assert floor["bandwidth_ms"] == pytest.approx(1000 * floor["gb"] / floor["gb_per_second"])
    slowest = max(floor["arithmetic_ms"], floor["bandwidth_ms"])
    assert found["fraction_of_floor"] == pytest.approx(slowest / found["update"]["ms"])
    between = found["report_every"] * found["update"]["ms"]
    assert found["epoch_overhead"] == pytest.approx(found["report_ms"] / between)
    assert found["report_every"] == MODELS["glow"]["quick"].report_every
    updates = 250 * (50_000 // 4)
    assert found["paper_hours"] == pytest.approx(updates * found["update"]["ms"] / 3.6e6)
    assert (found["loss"], found["precision"], found["batch_size"]) == ("binary", "bf16", 4)


def test_the_floors_arithmetic_is_that_of_all_images_and_of_the_frozen_model(
    found: dict[str, Any],
) -> None:
    glow = Glow(3, depth=1, hidden=4)
    trained = arithmetic(lambda: glow.log_prob(_images(8)).sum().backward())
    frozen = arithmetic(lambda: glow.log_prob(_images(4)))
    assert found["floor"]["gflop"] == pytest.approx((trained + frozen) / 1e9)


def test_the_floors_traffic_is_at_least_that_of_the_weights(found: dict[str, Any]) -> None:
    weights = sum(parameter.nbytes for parameter in Glow(3, depth=1, hidden=4).parameters())
    # 6 passes over weights and gradients, 2 over each of two moments, 1 over the frozen weights.
    assert found["floor"]["gb"] > 11 * weights / 1e9
    assert found["update"]["memory_mb"] > 5 * weights / 1e6


def test_recomputation_shows_in_the_memory_and_not_in_the_floor() -> None:
    first, second = (
        measure(options(depth=6, hidden=32, batch_size=16, recompute=recompute))
        for recompute in (False, True)
    )
    assert [each.update.form for each in (first, second)] == ["fused", "recomputed"]
    assert second.update.memory_mb < 0.6 * first.update.memory_mb
    assert second.floor.gflop == pytest.approx(first.floor.gflop)
    assert first.eager is None and first.speed_up is None


@pytest.mark.parametrize("model", ["glow-local", "pixelcnn"])
def test_every_family_can_be_measured(model: str) -> None:
    found = measure(options(model=model, steps=1))
    assert found.model == model and math.isfinite(found.update.ms) and found.floor.gflop > 0


def test_the_classifier_has_outliers_without_being_asked() -> None:
    found = measure(options(model="wide-resnet", depth=10, hidden=1, steps=1))
    assert found.update.images_per_second * found.update.ms == pytest.approx(8000)
    assert found.loss == "classifier"


# The command


def test_json_has_all_figures_and_stderr_nothing(blank) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = blank.oodflow("bench", *words, "--json")
    assert (done.code, done.err) == (0, "")
    figures = json.loads(done.out)
    assert set(figures) >= {"device", "threads", "update", "floor", "fraction_of_floor", "eager"}
    assert figures["eager"] is None
    assert not blank.all_runs()


def test_the_table_shows_both_forms(blank) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    done = blank.oodflow("bench", *words, "--compare", "eager")
    assert done.code == 0
    for line in ("an update, fused", "an update, eager", "speed-up against eager", "backward"):
        assert line in done.out


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model": "png"}, "nothing to train"),
        ({"model": "pixelcnn", "compare": "eager"}, "one form"),
        ({"model": "wide-resnet", "loss": "binary"}, "loss of its own"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "above 0"),
        ({"device": "cuda:99"}, "not available"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        measure(options(**given))


@pytest.mark.parametrize("option", ["model", "loss", "compare", "precision", "preset"])
def test_unknown_names_are_refused(blank, option: str) -> None:
    done = blank.oodflow("bench", f"--{option}", "glwo")
    assert done.code == 2
    assert f"--{option}" in done.err and "glwo" in done.err and done.err.count("\n") == 1


def test_the_kernel_of_the_attention_is_the_one_that_a_profiler_sees() -> None:
    query, key, value = torch.randn(3, 2, 1, 16, 64)

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    with torch.profiler.profile() as profile:
        attend()
    seen = {each.key for each in profile.key_averages()}
    kernel = attention_kernel(attend)
    assert f"aten::_scaled_dot_product_{kernel.replace(' ', '_')}" in seen
    assert attention_kernel(lambda: query @ key.mT) == ""
