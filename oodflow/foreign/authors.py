"""The authors' whole pickled models, as descriptions and state dicts of our Glow."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.graph import Branch, Step, expect, heads_of, part, parts, tensor
from oodflow.foreign.restricted import Foreign, shown
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.glow import Glow
from oodflow.models.layers import lu_factors

__all__ = ["glow_from_authors"]

LARGEST_EPS = 1e-6
"""What the authors add to a scale, and we do not; below this no likelihood shows it."""

NETWORK = ("Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2dZeros")
CONV = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
MIXING = {
    "w_p": "permutation",
    "s_sign": "sign",
    "w_l": "lower",
    "w_u": "upper",
    "w_s": "log_abs",
}

Affine = tuple[Tensor, Tensor]
"""loc and log_scale of y = exp(log_scale)·(x + loc), flat."""


def glow_from_authors(saved: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of a model's description, and the state dict that our model loads.

    The fields are name, channels, depth, hidden and classes, read from the shapes. With classes 0
    the state is one of :class:`Glow`, else of :class:`ClassConditionalGlow`.

    Raises UserError for anything but the authors' Glow on 32×32 images.
    """
    try:
        return _glow(saved)
    except RecursionError:
        raise UserError("not a model of the authors: its parts are nested too deeply") from None


def _glow(saved: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    heads = heads_of(saved)
    flow = heads[0].flow
    depths = {len(steps) for steps in flow}
    if len(depths) > 1 or 0 in depths:
        raise UserError(f"expected as many steps in every scale, found {sorted(depths)}")
    actnorm, _, coupling = flow[0][0]
    fields = {
        "name": "glow",
        "channels": tensor(actnorm, "loc").numel() // 4,
        "depth": depths.pop(),
        "hidden": tensor(part(_network(coupling)[0], "conv"), "weight").shape[:1].numel(),
        "classes": 0,
    }
    tensors = {
        f"flow.{i}.steps.{k}.{name}": value
        for i, steps in enumerate(flow)
        for k, step in enumerate(steps)
        for name, value in _step(step)
    }
    for i, branches in enumerate(zip(*heads, strict=True)):
        (loc, log_scale), classes = _latent(branches)
        tensors |= {f"flow.{i}.latent.loc": loc, f"flow.{i}.latent.log_scale": log_scale}
        tensors |= {f"per_class.{i}.{name}": value for name, value in classes.items()}
        fields["classes"] = len(classes.get("mean", ()))
    return fields, _checked(fields, tensors)


def _checked(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the shapes of our model; none may be missing or of another shape."""
    channels, shape = fields["channels"], (fields["depth"], fields["hidden"])
    # Without memory: until its shapes are checked, a file may claim any size.
    with torch.device("meta"):
        model = (
            ClassConditionalGlow(channels, fields["classes"], *shape)
            if fields["classes"]
            else Glow(channels, *shape)
        )
    # The authors' flags of the initialisation are no part of the state; stored models are past it.
    state = {"initialised": torch.tensor(True)}
    for name, wanted in model.state_dict().items():
        if name in state:
            continue
        given = tensors.get(name, torch.empty(0))
        # Theirs are spread over dimensions of size 1, such as 1×C×1×1 for C values.
        if given.squeeze().shape != wanted.squeeze().shape:
            raise UserError(
                f"the model seems to be a Glow of {channels} channels, {shape[0]} steps and "
                f"{shape[1]} hidden channels on 32×32 images, but what should be its {name} has "
                f"the shape {tuple(given.shape)} instead of {tuple(wanted.shape)}"
            )
        state[name] = given.reshape(wanted.shape).to(torch.float32)
    return state


def _step(step: Step) -> Iterator[tuple[str, Tensor]]:
    """Our names and the tensors of one step."""
    actnorm, mixing, coupling = step
    yield from _named_affine("actnorm", actnorm)
    for name, value in _mixing(mixing).items():
        yield f"mixing.{name}", value
    layers = _network(coupling)
    for number, layer in ((1, layers[0]), (2, layers[2])):
        yield f"coupling.network.conv{number}.weight", _conv_weight(layer)
        yield from _named_affine(f"coupling.network.actnorm{number}", part(layer, "actnorm"))
    last = expect(layers[4], {"logscale_factor": 3})
    yield "coupling.network.conv3.weight", _conv_weight(last, biased=True)
    yield "coupling.network.bias", tensor(part(last, "conv"), "bias")
    yield "coupling.network.logs", tensor(last, "logs")


def _network(coupling: Foreign) -> list[Foreign]:
    """The five layers of a coupling's network, after a look at how their output is used."""
    expect(coupling, {"condition_merger": None})
    expect(part(coupling, "modifier"), {"sigmoid_or_exp_scale": "sigmoid", "add_first": True})
    _has_small_eps(part(coupling, "modifier"))
    # The first half of the channels decides how the second moves.
    halves = part(coupling, "split_merger")
    coefficients = part(coupling, "coef_extractor")
    splitter = part(coefficients, "splitter")
    if (halves.name, splitter.name) != ("ChunkChansIn2", "EverySecondChan"):
        raise UserError(f"expected other halves than those of {halves.path!r}, {splitter.path!r}")
    expect(halves, {"swap_dims": True})
    layers = list(parts(part(coefficients, "module")).values())
    found = tuple(layer.name for layer in layers)
    if found != NETWORK:
        raise UserError(f"expected a coupling network of {NETWORK}, found {shown(found)}")
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


def _gaussian(layer: Foreign | None) -> tuple[Tensor, Tensor]:
    """Means and log standard deviations, classes×d each."""
    assert layer is not None
    expect(layer, {"truncate_to": None})
    mean, log_std = tensor(layer, "class_means"), tensor(layer, "class_log_stds")
    if mean.dim() != 2 or mean.shape != log_std.shape:
        raise UserError(
            f"expected means and log stds of classes, found {(*mean.shape,)}, {(*log_std.shape,)}"
        )
    return mean.double(), log_std.double()


def _latent(branches: Sequence[Branch]) -> tuple[Affine, dict[str, Tensor]]:
    """The affine of a scale's latent; and what its classes have, if there are any."""
    gaussians = [_gaussian(branch.gaussian) for branch in branches]
    ways = [branch.affines for branch in branches]
    shapes = {tuple(mean.shape) for mean, _ in gaussians}
    if len(shapes) > 1 or (len(branches) > 1 and len(gaussians[0][0]) > 1):
        raise UserError(f"expected one Gaussian for each class of the model, found {shapes}")
    mean = torch.cat([mean for mean, _ in gaussians])
    log_std = torch.cat([log_std for _, log_std in gaussians])
    # What every class passes is the latent's own affine.
    ranks = zip(*ways, strict=False)
    common = list(takewhile(lambda layers: all(layer is layers[0] for layer in layers), ranks))
    latent = _composed([_affine(layers[0]) for layers in common], mean[0])
    if len(mean) == 1:
        # N(mean, std²) of y is N(0, 1) of (y − mean)/std: an affine like the others.
        return _composed([latent, (-mean[0], -log_std[0])], mean[0]), {}
    own = [_composed([_affine(layer) for layer in way[len(common) :]], mean[0]) for way in ways]
    loc, log_scale = (torch.stack(column).expand_as(mean) for column in zip(*own, strict=True))
    return latent, {"loc": loc, "log_scale": log_scale, "mean": mean, "log_std": log_std}


def _composed(affines: Sequence[Affine], like: Tensor) -> Affine:
    """Several affines, one after the other, as one; the identity for none."""
    loc, log_scale = torch.zeros_like(like), torch.zeros_like(like)
    for next_loc, next_log_scale in affines:
        if not next_loc.shape == next_log_scale.shape == like.shape:
            raise UserError(
                f"an affine of {len(next_loc)} dimensions leads to a Gaussian of {len(like)}"
            )
        loc = loc + next_loc * (-log_scale).exp()
        log_scale = log_scale + next_log_scale
    return loc, log_scale
