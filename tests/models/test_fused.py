"""The folded steps of Glow: their derivatives, their rounding, and what they keep in memory."""

import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.form import FORMS, computed_as, current_form
from oodflow.models.fused import Folds, fold, folded_once
from oodflow.models.glow import Glow, convolutional_step
from oodflow.models.glow_variants import DenseStep
from oodflow.models.layers import FlowStep
from oodflow.models.pixelcnn import PixelCNN


def random_steps(count: int, channels: int, hidden: int) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    steps = torch.nn.ModuleList(convolutional_step(channels, 4, hidden) for _ in range(count))
    with torch.no_grad():
        for parameter in steps.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return steps.double()


def random_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_folded_steps_are_the_steps_one_by_one() -> None:
    steps = random_steps(3, channels=6, hidden=5)
    x = torch.randn(4, 6, 5, 3, dtype=torch.float64)
    folded, shared = fold(steps)
    for step, run in zip(steps, folded, strict=True):
        assert isinstance(step, FlowStep)
        expected, log_det = step(x)
        y, own_log_det = run(x)
        assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
        constant = step.actnorm.log_scale.sum() + torch.linalg.slogdet(step.mixing.weight())[1]
        assert torch.allclose(own_log_det + 15 * constant, log_det, rtol=1e-12)
        shared = shared - constant
        x = y
    assert abs(shared.item()) < 1e-12


def test_folded_once_the_numbers_are_the_same_bits_until_the_block_ends() -> None:
    model = Glow(3, 2, 4).eval()
    images = random_images(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        before = model(images, 0.5)
        with folded_once():
            assert torch.equal(model(images, 0.5), before)
            assert torch.equal(model(images, 0.5), before)
        for parameter in model.parameters():
            parameter += 0.1
        after = model(images, 0.5)
        with folded_once():
            assert torch.equal(model(images, 0.5), after)
    assert not torch.equal(after, before)


def test_folds_are_kept_for_later_blocks_where_they_are_given() -> None:
    steps, kept = random_steps(2, channels=4, hidden=3), Folds()
    with folded_once(kept):
        first = fold(steps)
        with folded_once():
            assert fold(steps) is first
    with folded_once(kept):
        assert fold(steps) is first
    with folded_once():
        assert fold(steps) is not first


def test_the_derivatives_written_by_hand_are_those_of_finite_differences() -> None:
    steps = random_steps(2, channels=4, hidden=3)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        folded, shared = fold(steps)
        first, one = folded[0](x)
        second, two = folded[1](first)
        return second, one + two + shared

    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(both, (x,))
    for name, parameter in steps[0].named_parameters():
        given = parameter.detach().clone().requires_grad_()

        def of_parameter(value: Tensor, name: str = name) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(_Both(steps), {f"steps.0.{name}": value}, x.detach())

        assert torch.autograd.gradcheck(of_parameter, (given,), fast_mode=True), name


class _Both(torch.nn.Module):
    """All the steps as one module, whose parameters a call can replace."""

    def __init__(self, steps: torch.nn.ModuleList) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        folded, total = fold(self.steps)
        for run in folded:
            x, log_det = run(x)
            total = total + log_det
        return x, total


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    folded, _ = fold(random_steps(1, channels=4, hidden=3))
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(folded[0](x)[1].sum(), x, create_graph=True)


def test_a_scale_that_underflows_keeps_its_log_det_and_slope() -> None:
    """σ(r + 2) is 0 in float32 where r is −200, and log σ is r + 2."""
    step = convolutional_step(2, 4, 3)
    with torch.no_grad():
        step.coupling.network.bias[1] = -200.0
    folded, shared = fold(torch.nn.ModuleList([step]))
    y, log_det = folded[0](torch.randn(3, 2, 4, 4))
    assert log_det.tolist() == pytest.approx([-198 * 16] * 3)
    log_det.sum().backward()
    assert step.coupling.network.bias.grad.tolist() == [0.0, 3 * 16]
    assert shared.isfinite() and y.isfinite().all()


def test_other_steps_and_the_plain_form_are_left_alone() -> None:
    dense = torch.nn.ModuleList([DenseStep(1, 2, 3)])
    assert fold(dense) == ([dense[0]], 0.0)
    steps = random_steps(2, channels=4, hidden=3)
    with computed_as("plain"):
        assert fold(steps) == (list(steps), 0.0)


def test_forms_are_named_nested_and_undone() -> None:
    assert current_form() == FORMS[0] == "fused"
    with computed_as("plain"):
        with pytest.raises(KeyError), computed_as("recomputed"):
            raise KeyError
        assert current_form() == "plain"
    assert current_form() == "fused"
    with pytest.raises(UserError, match="fused, recomputed, plain"), computed_as("eager"):
        pass


def test_in_float32_forms_differ_by_rounding_alone() -> None:
    """The tolerances that are stated for training: 1e-6 of log p, 1e-4 of each gradient's norm."""
    torch.manual_seed(0)
    glow = Glow(3, depth=4, hidden=32)
    images = random_images(8)
    glow.initialise(images, 0.5)
    with torch.no_grad():
        for parameter in glow.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    found = {}
    for form in FORMS:
        glow.zero_grad()
        with computed_as(form):
            log_prob = glow.log_prob(images)
        log_prob.mean().backward()
        found[form] = log_prob.detach(), [p.grad.clone() for p in glow.parameters()]
    plain, plain_gradients = found["plain"]
    for form in ("fused", "recomputed"):
        log_prob, gradients = found[form]
        assert float(((log_prob - plain) / plain).abs().max()) < 1e-6
        for gradient, expected in zip(gradients, plain_gradients, strict=True):
            assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize(("form", "layers"), [("fused", 2), ("plain", 4), ("recomputed", 0)])
def test_how_many_hidden_layers_a_step_keeps_for_the_backward_pass(form: str, layers: int) -> None:
    glow = Glow(3, depth=3, hidden=64)
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with computed_as(form), hooks:
        log_prob = glow.log_prob(random_images(8))
    # Only a hidden layer of the first scale has this size.
    assert list(kept.values()).count(4 * 8 * 64 * 16 * 16) == 3 * layers
    assert log_prob.shape == (8,)


def test_dropout_is_the_same_when_it_is_computed_again() -> None:
    torch.manual_seed(0)
    model = PixelCNN(1, filters=4, blocks=1, mixtures=2, dropout=0.5)
    images = random_images(2)[:, :1]
    gradients = []
    for form in ("fused", "recomputed"):
        model.zero_grad()
        torch.manual_seed(7)
        with computed_as(form):
            loss = model.log_prob(images).sum()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-5)
