"""The authors' whole pickled models, as models of ours."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.experiment import Model
from oodflow.foreign.graph import (
    Density,
    Step,
    Structure,
    expect,
    part,
    parts,
    structure_of,
    supported,
    tensor,
)
from oodflow.foreign.restricted import Foreign, shown
from oodflow.models.build import build_model
from oodflow.models.layers import lu_factors
from oodflow.models.likelihood import LikelihoodModel

__all__ = ["model_from_authors"]

LARGEST_EPS = 1e-6
"""What the authors add to a scale, and we do not; below this no likelihood shows it."""

LARGEST_SKEW = 1e-4
"""By how much a projection, applied and then transposed, may change a value of size 1."""

CONVOLUTIONAL = ("Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2dZeros")
DENSE = ("Linear", "ReLU", "Linear", "ReLU", "Linear")
CONV = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
MIXING = {
    "w_p": "permutation",
    "s_sign": "sign",
    "w_l": "lower",
    "w_u": "upper",
    "w_s": "log_abs",
}

PER_CLASS = ("loc", "log_scale", "mean", "log_std")

Affine = tuple[Tensor, Tensor]
"""loc and log_scale of y = exp(log_scale)·(x + loc), flat."""


def model_from_authors(saved: object) -> tuple[LikelihoodModel, dict[str, Any]]:
    """The model, in eval mode, and the fields of its description.

    The fields are name (glow, glow-dense or glow-local), channels, depth, hidden and classes, read
    from the structure and the shapes.

    Raises UserError for anything but a Glow of the authors on 32×32 images.
    """
    try:
        structure = structure_of(saved)
    except RecursionError:
        raise UserError("not a model of the authors: its parts are nested too deeply") from None
    fields = _fields(structure)
    prefix = "flow." if structure.local else ""
    tensors = {f"{prefix}{name}": value for name, value in _tensors(structure)}
    return _loaded(fields, tensors), fields


def _fields(structure: Structure) -> dict[str, Any]:
    depths = {len(flow.steps) for flow in structure.flows}
    if len(depths) > 1 or 0 in depths:
        raise UserError(f"expected as many steps in every scale, found {sorted(depths)}")
    dense = structure.flows[0].dense
    if any(flow.dense != dense for flow in structure.flows):
        raise UserError("some scales of the model are fully connected and others are not")
    if dense and structure.classes:
        raise UserError("the model is fully connected and has classes; ours has either")
    actnorm, _, coupling = structure.flows[0].steps[0]
    first = _network(coupling, dense)[0]
    weight = tensor(first if dense else part(first, "conv"), "weight")
    # In a fully connected step every value of the squeezed image has a loc, else every channel.
    per_channel = 4 * 16**2 if dense else 4
    return {
        "name": "glow-local" if structure.local else "glow-dense" if dense else "glow",
        "channels": tensor(actnorm, "loc").numel() // per_channel,
        "depth": depths.pop(),
        "hidden": weight.shape[:1].numel(),
        "classes": len(structure.classes),
    }


def _tensors(structure: Structure) -> Iterator[tuple[str, Tensor]]:
    """Our names and the tensors of a flow and its densities."""
    for i, (flow, latent) in enumerate(zip(structure.flows, structure.latents, strict=True)):
        for k, step in enumerate(flow.steps):
            for name, value in _dense_step(step) if flow.dense else _step(step):
                yield f"flow.{i}.steps.{k}.{name}", value
        loc, log_scale = _latent(latent)
        yield f"flow.{i}.latent.loc", loc
        yield f"flow.{i}.latent.log_scale", log_scale
        of_heads = [
            (*_affine(head[i].affine), *_gaussian(head[i].gaussian)) for head in structure.classes
        ]
        # Nothing where there are no classes.
        for name, values in zip(PER_CLASS, zip(*of_heads, strict=True), strict=False):
            if len({value.shape for value in values}) > 1:
                raise UserError("the latents of the model's classes are of different sizes")
            yield f"per_class.{i}.{name}", torch.stack(values)


def _loaded(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LikelihoodModel:
    """The model with these tensors; none may be missing or of another shape."""
    # Without memory: until its shapes are checked, a file may claim any size.
    with torch.device("meta"):
        model = build_model(Model(**fields))
    state = {}
    for name, wanted in model.state_dict().items():
        if name.endswith("initialised"):
            # The authors' flags are no part of the state; stored models are past it.
            state[name] = torch.tensor(True)
            continue
        given = tensors.get(name, torch.empty(0))
        # Theirs are spread over dimensions of size 1, such as 1×C×1×1 for C values.
        if given.squeeze().shape != wanted.squeeze().shape:
            raise UserError(
                f"the model seems to be a {fields['name']} of {fields['channels']} channels, "
                f"{fields['depth']} steps and {fields['hidden']} hidden channels on 32×32 images, "
                f"but what should be its {name} has the shape {tuple(given.shape)} instead of "
                f"{tuple(wanted.shape)}"
            )
        state[name] = given.reshape(wanted.shape).to(torch.float32, copy=True)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _step(step: Step) -> Iterator[tuple[str, Tensor]]:
    """Our names and the tensors of one step."""
    actnorm, mixing, coupling = step
    yield from _named_affine("actnorm", actnorm)
    for name, value in _mixing(mixing).items():
        yield f"mixing.{name}", value
    layers = _network(coupling, dense=False)
    for number, layer in ((1, layers[0]), (2, layers[2])):
        yield f"coupling.network.conv{number}.weight", _conv_weight(layer)
        yield from _named_affine(f"coupling.network.actnorm{number}", part(layer, "actnorm"))
    last = expect(layers[4], {"logscale_factor": 3})
    yield "coupling.network.conv3.weight", _conv_weight(last, biased=True)
    yield "coupling.network.bias", tensor(part(last, "conv"), "bias")
    yield "coupling.network.logs", tensor(last, "logs")


def _dense_step(step: Step) -> Iterator[tuple[str, Tensor]]:
    actnorm, mixing, coupling = step
    yield from _named_affine("actnorm", actnorm)
    yield "mixing.weight", _projection(mixing)
    for number, layer in enumerate(_network(coupling, dense=True)[::2], start=1):
        for name in ("weight", "bias"):
            yield f"coupling.network.linear{number}.{name}", tensor(layer, name)


def _network(coupling: Foreign, dense: bool) -> list[Foreign]:
    """The five layers of a coupling's network, after a look at how their output is used."""
    expect(coupling, {"condition_merger": None})
    expect(part(coupling, "modifier"), {"sigmoid_or_exp_scale": "sigmoid", "add_first": True})
    _has_small_eps(part(coupling, "modifier"))
    # The first half of the channels decides how the second moves.
    halves = part(coupling, "split_merger")
    coefficients = supported(part(coupling, "coef_extractor"))
    splitter = part(coefficients, "splitter")
    if (halves.name, splitter.name) != ("ChunkChansIn2", "EverySecondChan"):
        raise UserError(f"expected other halves than those of {halves.path!r}, {splitter.path!r}")
    expect(halves, {"swap_dims": True})
    layers = list(parts(part(coefficients, "module")).values())
    found, wanted = tuple(layer.name for layer in layers), DENSE if dense else CONVOLUTIONAL
    if found != wanted:
        raise UserError(f"expected a coupling network of {wanted}, found {shown(found)}")
    return layers


def _conv_weight(layer: Foreign, biased: bool = False) -> Tensor:
    conv = expect(part(layer, "conv"), CONV)
    weight = tensor(conv, "weight")
    expect(conv, {"padding": tuple(size // 2 for size in weight.shape[2:])})
    if not biased and (conv.state.get("_parameters") or {}).get("bias") is not None:
        raise UserError("a hidden convolution of a coupling network has a bias")
    return weight


def _mixing(layer: Foreign) -> dict[str, Tensor]:
    if layer.state.get("use_lu", True):
        return {own: tensor(layer, name) for name, own in MIXING.items()}
    weight = tensor(layer, "weight")
    weight = weight.reshape(weight.shape[:2])
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise UserError(f"expected a square 1×1 convolution, found {tuple(weight.shape)}")
    return lu_factors(weight)


def _projection(layer: Foreign) -> Tensor:
    """W of a fixed projection, d×d; ours has no log|det|, so it must be a rotation."""
    expect(layer, {"fixed": True, "use_lu": False}, required=True)
    weight = tensor(layer, "weight")
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise UserError(f"expected a square projection, found {tuple(weight.shape)}")
    x = torch.linspace(-1, 1, len(weight), dtype=weight.dtype)
    if not (weight.T @ (weight @ x) - x).abs().max() <= LARGEST_SKEW:
        raise UserError("a fixed projection of the model is not orthogonal, where ours is")
    return weight


def _has_small_eps(layer: Foreign) -> None:
    eps = layer.state.get("eps", 0)
    if not isinstance(eps, int | float) or not 0 <= eps <= LARGEST_EPS:
        raise UserError(f"a {layer.path!r} of the model has eps {shown(eps)}, where our Glow has 0")


def _affine(layer: Foreign) -> Affine:
    expect(layer, {"scale_fn": "exp"})
    _has_small_eps(layer)
    return tensor(layer, "loc").double().flatten(), tensor(layer, "log_scale").double().flatten()


def _named_affine(name: str, layer: Foreign) -> Iterator[tuple[str, Tensor]]:
    loc, log_scale = _affine(layer)
    yield f"{name}.loc", loc
    yield f"{name}.log_scale", log_scale


def _gaussian(layer: Foreign | None) -> Affine:
    """Mean and log standard deviation, flat."""
    assert layer is not None
    expect(layer, {"truncate_to": None})
    mean, log_std = tensor(layer, "class_means"), tensor(layer, "class_log_stds")
    return mean.double().flatten(), log_std.double().flatten()


def _latent(density: Density) -> Affine:
    """The affine that makes a latent standard normal; for classes, the one before theirs."""
    loc, log_scale = _affine(density.affine)
    if density.gaussian is None:
        return loc, log_scale
    # N(mean, std²) of y is N(0, 1) of (y − mean)/std: one affine more.
    mean, log_std = _gaussian(density.gaussian)
    if not loc.shape == log_scale.shape == mean.shape == log_std.shape:
        raise UserError(f"an affine of {len(loc)} dimensions leads to a Gaussian of {len(mean)}")
    return loc - mean * (-log_scale).exp(), log_scale - log_std
