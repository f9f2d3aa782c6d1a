"""Weights of the public Glow-PyTorch (S6) under the names of :class:`ConditionalGlow`."""

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.layers import lu_factors

__all__ = ["convert_public_state", "infer_public_shape"]

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

    Raises UserError where the names are not those of Glow-PyTorch, and for its options that have no
    counterpart here: other than three scales, additive couplings, permutations, classes.
    """
    names = ("actnorm.bias", "block.0.conv.weight", "block.4.logs")
    first, conv, last = (state.get(f"flow.layers.1.{name}") for name in names)
    if first is None or conv is None or last is None or first.numel() % 4 or conv.dim() != 4:
        raise UserError(
            "not the weights of a public Glow-PyTorch model: expected names such as "
            "flow.layers.1.actnorm.bias, flow.layers.1.block.0.conv.weight and "
            f"flow.layers.1.block.4.logs, got {_some(state)}"
        )
    found = [re.fullmatch(r"flow\.layers\.(\d+)\.conv\.conv\.weight", name) for name in state]
    splits = [int(match[1]) for match in found if match]
    shuffled = not any(name.startswith("flow.layers.1.invconv.") for name in state)
    differences = {
        f"{len(splits) + 1} scales (L), where ours has {SCALES}": len(splits) + 1 != SCALES,
        "additive couplings (flow_coupling)": 2 * last.numel() == first.numel(),
        "channels in another order (flow_permutation), which no state dict tells": shuffled,
        "classes as a condition (y_condition)": any(name.startswith("project_") for name in state),
    }
    for difference, is_there in differences.items():
        if is_there:
            raise UserError(f"this Glow-PyTorch model cannot be imported: it has {difference}")
    # Layers: the squeeze, K steps, the split; then the same for the next scale.
    return first.numel() // 4, max(min(splits) - 1, 1), len(conv)


def convert_public_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a :class:`ConditionalGlow` from one of the public Glow-PyTorch.

    1×1 convolutions may be stored factorised (``LU_decomposed``) or as ``invconv.weight``, which is
    factorised here in float64. Without a learned prior of z_3 (``learn_top``) that is N(0, I).

    Raises UserError for missing, unknown or misshapen entries, and for models that have no
    counterpart here.
    """
    channels, depth, hidden = infer_public_shape(state)
    given = dict(_factorised(state))
    if not given.keys() & _TOP_NAMES.keys():
        given |= {name: torch.zeros(32 * channels) for name in _TOP_NAMES}
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
