"""Glow with conditioned latents (S1.3), and weights of the public Glow-PyTorch (S6) for it."""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.glow import Glow, LatentLayer
from oodflow.models.layers import CouplingNetwork, FlowStep, lu_factors, scaled_conv

__all__ = ["ConditionalGlow", "convert_public_state", "infer_public_shape"]


class _GaussianLatent(nn.Module):
    """z ~ N(m, exp(s)²) with m, s a function of what goes on to the next scale.

    Standardised, ε = (z − m)·exp(−s) is N(0, I) under the model and the map from z has
    log|det| = −Σ s. Hence everything that holds for independent latents holds for ε (S1.3).
    """

    takes_first = False

    def mean_and_log_std(self, onward: Tensor) -> tuple[Tensor, Tensor]:
        """m and s of every dimension of z, N×d or 1×d."""
        raise NotImplementedError

    def standardise(self, kept: Tensor, onward: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.mean_and_log_std(onward)
        return (kept - mean) * (-log_std).exp(), -log_std.sum(1)

    def restore(self, latent: Tensor, onward: Tensor) -> Tensor:
        mean, log_std = self.mean_and_log_std(onward)
        return latent * log_std.exp() + mean

    def initialise(self, kept: Tensor) -> Tensor:
        """Nothing depends on data: m and s are zero until they are trained."""
        return kept


class ConditionedLatent(_GaussianLatent):
    """m and s are the even and odd channels of a zero-initialised conv3×3, times exp(3·logs)."""

    def __init__(self, kept: int, onward: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * kept, onward, 3, 3))
        self.bias = nn.Parameter(torch.zeros(2 * kept))
        self.logs = nn.Parameter(torch.zeros(2 * kept))

    def mean_and_log_std(self, onward: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = scaled_conv(onward, self.weight, self.bias, self.logs)
        return mean.flatten(1).to(onward.dtype), log_std.flatten(1).to(onward.dtype)


class TopLatent(_GaussianLatent):
    """m and s of the last scale are learned per channel, the halves of bias·exp(3·logs).

    The public implementation writes this as a convolution of zeros, whose weights never enter.
    """

    def __init__(self, kept: int, size: int) -> None:
        super().__init__()
        self.positions = size**2
        self.bias = nn.Parameter(torch.zeros(2 * kept))
        self.logs = nn.Parameter(torch.zeros(2 * kept))

    def mean_and_log_std(self, onward: Tensor) -> tuple[Tensor, Tensor]:
        both = self.bias * (3 * self.logs).exp()
        mean, log_std = both.repeat_interleave(self.positions)[None].chunk(2, dim=1)
        return mean, log_std


def _latent(kept: int, onward: int, size: int) -> LatentLayer:
    return ConditionedLatent(kept, onward) if onward else TopLatent(kept, size)


def _step(channels: int, size: int, hidden: int) -> FlowStep:
    return FlowStep(
        channels, lambda given, wanted: CouplingNetwork(given, wanted, hidden, 0), correction=0
    )


class ConditionalGlow(Glow):
    """Glow with z_1 ~ N(f(z_2, z_3), g(z_2, z_3)²), z_2 ~ N(f(z_3), g(z_3)²), a learned N for z_3.

    f and log g are a convolution of what goes on to the next scale, before its flow. The first
    half of the channels goes on and the second is the latent, there is no affine of the latents,
    and actnorms are initialised with the biased variance (Glow-PyTorch, METHOD 2).

    c_i = log p(z_i | what goes on) + log|det| of scale i. The latents of :meth:`encode` are the
    standardised ε_i, N(0, I) under the model; :meth:`decode` and samples come from ε_3 first, then
    from ε_2 given what z_3 became, and so on.
    """

    def __init__(
        self, channels: int, depth: int = 32, hidden: int = 512, size: int = 32, scales: int = 3
    ) -> None:
        super().__init__(channels, depth, hidden, size, scales, step=_step, latent=_latent)


SCALES = 3
"""Scales of the public model: "L" of its options."""

# Public name of what a layer of theirs holds → the name in ours.
_MIXING_NAMES = {
    "invconv.p": "permutation",
    "invconv.sign_s": "sign",
    "invconv.lower": "lower",
    "invconv.upper": "upper",
    "invconv.log_s": "log_abs",
}
_NETWORK_NAMES = {
    "block.0.conv.weight": "conv1.weight",
    "block.0.actnorm.bias": "actnorm1.loc",
    "block.0.actnorm.logs": "actnorm1.log_scale",
    "block.2.conv.weight": "conv2.weight",
    "block.2.actnorm.bias": "actnorm2.loc",
    "block.2.actnorm.logs": "actnorm2.log_scale",
    "block.4.conv.weight": "conv3.weight",
    "block.4.conv.bias": "bias",
    "block.4.logs": "logs",
}
_STEP_NAMES = {
    "actnorm.bias": "actnorm.loc",
    "actnorm.logs": "actnorm.log_scale",
    **{public: f"mixing.{own}" for public, own in _MIXING_NAMES.items()},
    **{public: f"coupling.network.{own}" for public, own in _NETWORK_NAMES.items()},
}
_SPLIT_NAMES = {"conv.conv.weight": "weight", "conv.conv.bias": "bias", "conv.logs": "logs"}
_TOP_NAMES = {"learn_top_fn.conv.bias": "bias", "learn_top_fn.logs": "logs"}
_INERT = {"prior_h", "learn_top_fn.conv.weight"}
"""The zeros that the prior of z_3 convolves, and the weights it convolves them with."""


def infer_public_shape(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(channels, depth, hidden) of the :class:`ConditionalGlow` that a public state dict fills.

    Raises UserError where the names are not those of Glow-PyTorch.
    """
    splits = [re.fullmatch(r"flow\.layers\.(\d+)\.conv\.conv\.weight", name) for name in state]
    # Layers: the squeeze, K steps, the split; then the same for the next scale.
    depth = min((int(match[1]) for match in splits if match), default=0) - 1
    first = state.get("flow.layers.1.actnorm.bias")
    conv = state.get("flow.layers.1.block.0.conv.weight")
    if depth < 1 or first is None or conv is None or first.numel() % 4 or conv.dim() != 4:
        raise UserError(
            "not the weights of a public Glow-PyTorch model: expected names such as "
            "flow.layers.1.actnorm.bias, flow.layers.1.block.0.conv.weight and "
            f"flow.layers.3.conv.conv.weight, got {_some(state)}"
        )
    return first.numel() // 4, depth, len(conv)


def convert_public_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a :class:`ConditionalGlow` from one of the public Glow-PyTorch.

    1×1 convolutions may be stored factorised (``LU_decomposed``) or as ``invconv.weight``, which is
    factorised here in float64. The prior of z_3 must be the learned one (``learn_top``).

    Raises UserError for missing, unknown or misshapen entries, as those of a model conditioned on
    class labels (``y_condition``) or one with additive couplings.
    """
    channels, depth, hidden = infer_public_shape(state)
    given = dict(_factorised(state))
    if "prior_h" in given and given["prior_h"].any():
        raise UserError("prior_h is not zero: this model has no counterpart here")
    names = _names(depth)
    missing, unknown = names.keys() - given.keys(), given.keys() - names.keys() - _INERT
    if missing or unknown:
        problem = f"lacks {_some(missing)}" if missing else f"also has {_some(unknown)}"
        raise UserError(
            f"weights of a public Glow with {channels} channels, {depth} steps and {hidden} hidden "
            f"channels were expected, but the state dict {problem}"
        )
    with torch.device("meta"):
        wanted = ConditionalGlow(channels, depth, hidden).state_dict()
    converted = {"initialised": torch.tensor(True)}
    for public, own in names.items():
        # Theirs are spread over dimensions of size 1, such as 1×C×1×1 for C values.
        if given[public].squeeze().shape != wanted[own].squeeze().shape:
            raise UserError(
                f"{public} has the shape {tuple(given[public].shape)}; "
                f"expected the values of {tuple(wanted[own].shape)}"
            )
        converted[own] = given[public].reshape(wanted[own].shape)
    return converted


def _names(depth: int) -> dict[str, str]:
    """Public name → own name of everything that enters the likelihood."""
    names = {public: f"flow.{SCALES - 1}.latent.{own}" for public, own in _TOP_NAMES.items()}
    for scale in range(SCALES):
        # A squeeze comes before the steps of a scale, and a split behind them.
        first = scale * (depth + 2) + 1
        for step in range(depth):
            for public, own in _STEP_NAMES.items():
                names[f"flow.layers.{first + step}.{public}"] = f"flow.{scale}.steps.{step}.{own}"
        if scale < SCALES - 1:
            for public, own in _SPLIT_NAMES.items():
                names[f"flow.layers.{first + depth}.{public}"] = f"flow.{scale}.latent.{own}"
    return names


def _factorised(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The entries of the state, with the factors of W in place of each W."""
    for name, value in state.items():
        layer, found, _ = name.partition("invconv.weight")
        if not found:
            yield name, value
            continue
        factors = lu_factors(value.flatten(1))
        for public, own in _MIXING_NAMES.items():
            yield layer + public, factors[own]


def _some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return (", ".join(ordered[:3]) or "nothing") + more
