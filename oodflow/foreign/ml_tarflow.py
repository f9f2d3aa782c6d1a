"""State dicts of the public TarFlow (arXiv:2412.06329) under the names of ours."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.tarflow import TarFlow

__all__ = ["convert_public_state", "infer_public_shape"]

SIZE = 32
"""Pixels a side of the images that a model of ours scores."""

# Public name of what a block, or a layer of a block, holds → the name in ours.
_BLOCK_NAMES = {"proj_in": "enter", "proj_out": "leave"}
_LAYER_NAMES = {
    "attention.norm": "norm1",
    "attention.qkv": "query_key_value",
    "attention.proj": "merge",
    "mlp.norm": "norm2",
    "mlp.main.0": "expand",
    "mlp.main.2": "contract",
}
_KINDS = ("weight", "bias")
_PRIOR = "var"
"""Variances of the prior, which only models without scales learn."""


class Shape(TypedDict):
    """Arguments of a :class:`TarFlow`."""

    channels: int
    patch: int
    depth: int
    layers: int
    width: int


def infer_public_shape(state: Mapping[str, Tensor]) -> Shape:
    """The arguments of the :class:`TarFlow` that a public state dict fills, from its shapes.

    Raises UserError for other names, for images that are not 32×32, and for blocks that only
    shift.
    """
    embed, enter = state.get("blocks.0.pos_embed"), state.get("blocks.0.proj_in.weight")
    leave = state.get("blocks.0.proj_out.weight")
    if embed is None or enter is None or leave is None:
        raise UserError(
            "not the weights of a public TarFlow: expected names such as blocks.0.pos_embed, "
            f"blocks.0.proj_in.weight and blocks.0.proj_out.weight, got {_some(state)}"
        )
    (tokens, width), features = embed.shape, enter.shape[1]
    patch = SIZE // max(math.isqrt(tokens), 1)
    if tokens * patch**2 != SIZE**2 or features % patch**2:
        raise UserError(
            f"a TarFlow of {tokens} patches of {features} values is not one of {SIZE}×{SIZE} images"
        )
    if len(leave) != 2 * features:
        raise UserError("a TarFlow whose blocks shift and do not scale has no counterpart here")
    return {
        "channels": features // patch**2,
        "patch": patch,
        "depth": _count(state, r"blocks\.(\d+)\."),
        "layers": _count(state, r"blocks\.0\.attn_blocks\.(\d+)\."),
        "width": width,
    }


def convert_public_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a :class:`TarFlow` from one of the public implementation.

    Of a model conditioned on classes it is the unlabelled one, in which every token is given the
    mean of the classes' embeddings. Masks are left out, which follow from the shapes.

    Raises UserError for missing, unknown or misshapen entries, and for a learned prior.
    """
    shape = infer_public_shape(state)
    given = dict(_unlabelled(state))
    prior = given.pop(_PRIOR, torch.ones(1))
    if not torch.equal(prior, torch.ones_like(prior)):
        raise UserError(f"{_PRIOR} is not one everywhere: this prior has no counterpart here")
    names = _names(shape["depth"], shape["layers"])
    missing, unknown = names.keys() - given.keys(), given.keys() - names.keys()
    if missing or unknown:
        problem = f"lacks {_some(missing)}" if missing else f"also has {_some(unknown)}"
        raise UserError(
            f"weights of a public TarFlow with {shape['depth']} blocks of {shape['layers']} layers "
            f"were expected, but the state dict {problem}"
        )
    with torch.device("meta"):
        wanted = TarFlow(**shape).state_dict()
    converted = {}
    for public, own in names.items():
        if given[public].shape != wanted[own].shape:
            raise UserError(
                f"{public} has the shape {tuple(given[public].shape)}; "
                f"expected {tuple(wanted[own].shape)}"
            )
        # Theirs are in raster order. Ours are in that of the block, and every second one reads
        # from the last token to the first.
        reverse = own.endswith("position") and int(own.split(".")[1]) % 2
        converted[own] = given[public].flip(0) if reverse else given[public]
    return converted


def _unlabelled(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The entries without masks, and with the classes' mean embedding in that of the position."""
    for name, value in state.items():
        block, _, kind = name.rpartition(".")
        if kind == "pos_embed" and (classes := state.get(f"{block}.class_embed")) is not None:
            yield name, value + classes.mean(0)
        elif kind not in ("attn_mask", "class_embed"):
            yield name, value


def _names(depth: int, layers: int) -> dict[str, str]:
    """Public name → own name of everything that enters the likelihood."""
    names = {}
    for block in (f"blocks.{index}." for index in range(depth)):
        names[f"{block}pos_embed"] = f"{block}position"
        pairs = {block + public: block + own for public, own in _BLOCK_NAMES.items()}
        for layer in range(layers):
            pairs |= {
                f"{block}attn_blocks.{layer}.{public}": f"{block}layers.{layer}.{own}"
                for public, own in _LAYER_NAMES.items()
            }
        names |= {f"{p}.{kind}": f"{own}.{kind}" for p, own in pairs.items() for kind in _KINDS}
    return names


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the names have at a place."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _some(names: Mapping[str, Tensor] | set[str]) -> str:
    """The first three names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return (", ".join(ordered[:3]) or "nothing") + more
