"""The steps of a scale of Glow, folded: four convolutions a step, and gradients written by hand.

The numbers are those of :mod:`oodflow.models.layers` up to rounding. What is folded:

- Actnorm and 1×1 convolution are one affine map of the channels, W·diag(e^s)·(x + loc). The
  weights W of all steps come from one batched product, and so do the other small tensors.
- In the coupling network e^s·(conv(x) + loc) is a convolution with scaled weights and a bias. The
  second actnorm's e^s passes through its ReLU, ReLU(e^s·u) = e^s·ReLU(u), into the weights of the
  last convolution, which are fewer.
- Those weights also take exp(3·logs), and their order puts all scales before all shifts.
- Terms of log|det| that do not depend on the image are summed from the parameters alone.

Everything is in channels_last, in which convolutions are fastest on CPUs and tensor cores.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodflow.models.form import current_form
from oodflow.models.layers import FlowStep, lu_product
from oodflow.models.precision import full_precision

__all__ = ["Folds", "fold", "folded_once"]

Step = Callable[[Tensor], tuple[Tensor, Tensor]]

Folded = tuple[Sequence[Step], Tensor | float]
"""What :func:`fold` makes of the steps of a scale."""

Folds = dict[nn.ModuleList, Folded]

_folds: ContextVar[Folds | None] = ContextVar("folds", default=None)

# What autograd itself calls.
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
_THRESHOLD_BACKWARD = torch.ops.aten.threshold_backward.grad_input


@contextmanager
def folded_once(known: Folds | None = None) -> Iterator[None]:
    """Fold each scale once for the block, in which no parameter, form or precision changes.

    ``known`` keeps what was folded for later blocks, of models that never change again. Without it
    the folds of an outer block serve here too.
    """
    if known is None:
        outer = _folds.get()
        known = {} if outer is None else outer
    token = _folds.set(known)
    try:
        yield
    finally:
        _folds.reset(token)


def fold(steps: nn.ModuleList) -> Folded:
    """Functions of x, N×C×H×W, to a step's y and the image's part of its log|det|, N.

    The other result is what all images share of log|det| a position, summed over the steps. Steps
    of another kind are returned as they are, and so are all in the plain form.
    """
    known = _folds.get()
    if known is None:
        return _fold(steps)
    if steps not in known:
        known[steps] = _fold(steps)
    return known[steps]


def _fold(steps: nn.ModuleList) -> Folded:
    foldable = [step for step in steps if isinstance(step, FlowStep)]
    if current_form() == "plain" or len(foldable) < len(steps):
        return list(steps), 0.0
    with full_precision(foldable[0].actnorm.loc.device):
        mixings, log_det = _mixings(foldable)
    networks = _networks(foldable)
    return [partial(_run_step, *each) for each in zip(mixings, networks, strict=True)], log_det


def _mixings(steps: Sequence[FlowStep]) -> tuple[Iterable[tuple[Tensor, ...]], Tensor]:
    """Weight and bias of each step's actnorm and 1×1 convolution, and their log|det| together."""
    log_scale = _stack(steps, "actnorm.log_scale")
    names = ("permutation", "sign", "lower", "upper", "log_abs")
    factors = [_stack(steps, f"mixing.{name}") for name in names]
    weight = lu_product(*factors) * log_scale.exp()[:, None]
    bias = (weight @ _stack(steps, "actnorm.loc")[:, :, None]).squeeze(2)
    weights = weight[..., None, None].unbind()
    return zip(weights, bias.unbind(), strict=True), log_scale.sum() + factors[-1].sum()


def _networks(steps: Sequence[FlowStep]) -> Iterable[tuple[Tensor, ...]]:
    """Weight and bias of each of the three convolutions of each step's coupling network."""
    networks: list[Any] = [step.coupling.network for step in steps]
    scale1, scale2 = (_stack(networks, f"actnorm{i}.log_scale").exp() for i in (1, 2))
    weight1 = _stack(networks, "conv1.weight") * scale1[..., None, None, None]
    bias1 = scale1 * _stack(networks, "actnorm1.loc")
    scale3 = _deinterleave((3 * _stack(networks, "logs")).exp())
    columns = scale3[:, :, None] * scale2[:, None, :]
    weight3 = _deinterleave(_stack(networks, "conv3.weight")) * columns[..., None, None]
    bias3 = scale3 * _deinterleave(_stack(networks, "bias"))
    return zip(
        _typed(weight1).unbind(),
        _typed(bias1).unbind(),
        # Of the second convolution nothing is folded: its actnorm's scale is in the third.
        [_typed(network.conv2.weight) for network in networks],
        [_typed(network.actnorm2.loc) for network in networks],
        _typed(weight3).unbind(),
        _typed(bias3).unbind(),
        strict=True,
    )


def _stack(modules: Sequence[nn.Module], name: str) -> Tensor:
    return torch.stack([attrgetter(name)(module) for module in modules])


def _deinterleave(stacked: Tensor) -> Tensor:
    """K×C×… with the odd of the C entries, raw scales, before the even ones, shifts."""
    return stacked.unflatten(1, (-1, 2)).flip(2).transpose(1, 2).flatten(1, 2)


def _typed(parameter: Tensor) -> Tensor:
    """A parameter of a network in the type that networks are to compute in."""
    kind = parameter.device.type
    return (
        parameter.to(torch.get_autocast_dtype(kind))
        if torch.is_autocast_enabled(kind)
        else parameter
    )


def _run_step(
    mixing: tuple[Tensor, ...], network: tuple[Tensor, ...], x: Tensor
) -> tuple[Tensor, Tensor]:
    return _Step.apply(x.contiguous(memory_format=torch.channels_last), *mixing, *network)


class _Step(torch.autograd.Function):
    """y and log|det| of a folded step, from x and the weights and biases of its convolutions.

    With a, b the halves of u = W·x + c, and t, r those of what the network makes of a,

        y = (a, (b + t)·σ),    log|det| = Σ log σ,    σ = sigmoid(r + 2).

    For the gradients g of y's second half y₂ and d of log|det|, those of b and t are g·σ, and that
    of r is (g·y₂ + d)·(1 − σ).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mixing: Tensor,
        mixing_bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        weight3: Tensor,
        bias3: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with full_precision(x.device):
            y = F.conv2d(x, mixing, mixing_bias)
        fixed, moved = y.chunk(2, dim=1)
        fixed = fixed.to(weight1.dtype, copy=True, memory_format=torch.channels_last)
        hidden1 = F.conv2d(fixed, weight1, bias1, padding=1).relu_()
        hidden2 = F.conv2d(hidden1, weight2, bias2).relu_()
        raw_scale, shift = F.conv2d(hidden2, weight3, bias3, padding=1).chunk(2, dim=1)
        raw_scale = raw_scale.to(y.dtype) + 2
        scale = raw_scale.sigmoid()
        # As in sigmoid_and_log, but for the gradient, which needs no care here.
        log_scale = torch.where(raw_scale < -60, raw_scale, scale.log())
        moved.add_(shift).mul_(scale)
        ctx.save_for_backward(
            x, y, fixed, scale, hidden1, hidden2, mixing, weight1, weight2, weight3
        )
        return y, log_scale.sum((1, 2, 3))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # What is done here in place has no derivative.
            raise RuntimeError("a folded step of Glow has no second derivative; the plain form has")
        x, y, fixed, scale, hidden1, hidden2, mixing, weight1, weight2, weight3 = ctx.saved_tensors
        grad_fixed, grad_moved = grad_y.chunk(2, dim=1)
        grad = torch.empty_like(y)
        first, second = grad.chunk(2, dim=1)
        torch.mul(grad_moved, scale, out=second)
        torch.addcmul(grad_log_det.view(-1, 1, 1, 1), grad_moved, y.chunk(2, dim=1)[1], out=first)
        first.mul_(1 - scale)
        hidden, *grads3 = _conv_backward(grad.to(hidden2.dtype), hidden2, weight3)
        hidden, *grads2 = _conv_backward(_relu_backward(hidden, hidden2), hidden1, weight2)
        hidden, *grads1 = _conv_backward(_relu_backward(hidden, hidden1), fixed, weight1)
        # The gradient of t is that of b as well, and is in its place.
        torch.add(grad_fixed, hidden, out=first)
        with full_precision(x.device):
            grad_x, *grads0 = _conv_backward(grad, x, mixing, ctx.needs_input_grad[0])
        return grad_x, *grads0, *grads1, *grads2, *grads3


def _relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    """The gradient ahead of a ReLU, in place of the one behind it."""
    return _THRESHOLD_BACKWARD(grad, output, 0, grad_input=grad)


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, of_x: bool = True) -> list[Tensor]:
    """Gradients of x (if wanted), weight and bias of a convolution that keeps the image's size."""
    padding = [weight.shape[2] // 2] * 2
    grad_x, grad_weight, _ = _CONVOLUTION_BACKWARD(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [of_x, True, False]
    )
    # Summed here and not by the convolution: on CPUs that takes five times as long.
    return [grad_x, grad_weight, grad.sum((0, 2, 3))]
