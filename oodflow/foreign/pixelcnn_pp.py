"""Weights of the public PyTorch PixelCNN++ under the names of :class:`PixelCNN` (S1.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.models.logistic_mixture import PARAMETERS_PER_COMPONENT
from oodflow.models.pixelcnn import STAGES, PixelCNN

__all__ = ["convert_public_state", "infer_public_shape"]


def infer_public_shape(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Constructor arguments of the model that a public implementation's state belongs to.

    Returns channels, filters, blocks and mixtures, read from names and shapes. Raises
    :class:`UserError` if the state is of something else.
    """
    tensors = _plain_names(state)
    try:
        filters, inputs = tensors["u_init.conv.weight_v"].shape[:2]
        outputs = tensors["nin_out.lin_a.bias"].shape[0]
        per_component = PARAMETERS_PER_COMPONENT[inputs - 1]
    except KeyError as missing:
        raise UserError(
            f"not a state of the public PixelCNN++: {missing} is missing; expected its "
            "parameters, for images of 1 or 3 channels"
        ) from None
    prefix, suffix = "up_layers.0.u_stream.", ".conv_input.conv.bias"
    blocks = sum(name.startswith(prefix) and name.endswith(suffix) for name in tensors)
    return {
        "channels": inputs - 1,
        "filters": filters,
        "blocks": blocks,
        "mixtures": outputs // per_component,
    }


def convert_public_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of the public implementation under the names that :class:`PixelCNN` loads.

    Accepts both spellings of weight normalisation (``weight_g`` and ``weight_v``, or
    ``parametrizations.weight.original0`` and ``…1``) and the ``module.`` that DataParallel puts
    in front. Raises :class:`UserError` for parameters that are missing, unknown or misshapen.
    """
    tensors = _plain_names(state)
    shape = infer_public_shape(tensors)
    with torch.device("meta"):
        expected = PixelCNN(**shape).state_dict()
    kinds = {"bias": "bias", "weight_g": f"{_NORM}0", "weight_v": f"{_NORM}1"}
    names = {
        f"{public}.{kind}": f"{own}.{own_kind}"
        for public, own in _module_names(shape["blocks"]).items()
        for kind, own_kind in kinds.items()
        if f"{own}.{own_kind}" in expected
    }
    differences = (names.keys() - tensors.keys(), tensors.keys() - names.keys())
    for kind, differing in zip(("missing", "unknown"), differences, strict=True):
        if differing:
            raise UserError(
                f"state of the public PixelCNN++ with {len(differing)} {kind} parameter(s): "
                f"{', '.join(sorted(differing)[:3])}"
            )
    converted = {}
    for name, own in names.items():
        # The public 1×1 layers are linear ones; a convolution's weight has two more axes.
        missing_axes = expected[own].dim() - tensors[name].dim()
        converted[own] = tensors[name][(...,) + (None,) * missing_axes]
        if converted[own].shape != expected[own].shape:
            raise UserError(f"public PixelCNN++ parameter {name} has a wrong shape")
    return converted


_NORM = "parametrizations.weight.original"


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("module.")
        .replace(f"{_NORM}0", "weight_g")
        .replace(f"{_NORM}1", "weight_v"): tensor
        for name, tensor in state.items()
    }


def _module_names(blocks: int) -> dict[str, str]:
    """Names of the public implementation's layers to names of this one's."""
    names = {
        "u_init.conv": "rows_above",
        "ul_init.0.conv": "row_above",
        "ul_init.1.conv": "column_left",
        "nin_out.lin_a": "output",
    }
    layers = {"conv_input.conv": "first", "nin_skip.lin_a": "side", "conv_out.conv": "second"}
    for public, own in (("u_stream", "vertical"), ("ul_stream", "horizontal")):
        for index in range(STAGES - 1):
            names[f"downsize_{public}.{index}.conv"] = f"{own}.shrink.{index}"
            names[f"upsize_{public}.{index}.deconv"] = f"{own}.grow.{index}"
        for index in range(STAGES):
            for way, own_way in (("up_layers", "encode"), ("down_layers", "decode")):
                for block in range(blocks + (own_way == "decode" and index > 0)):
                    for layer, own_layer in layers.items():
                        names[f"{way}.{index}.{public}.{block}.{layer}"] = (
                            f"{own}.{own_way}.{index}.{block}.{own_layer}"
                        )
    return names
