"""What is expected of every model, as lines that can be tried on one: built-in or of a plug-in.

A line takes a model in float64 and eval mode, initialised and with all parameters random, and the
function that builds another one. It raises :class:`Violation` where the model breaks it, and
:class:`DoesNotApply` where it says nothing about such a model.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from oodflow.models.likelihood import LEVELS, NOISE_FREE, LikelihoodModel

__all__ = ["LINES", "DoesNotApply", "Verdict", "Violation", "check", "random_model"]

Build = Callable[[], LikelihoodModel]

SPREAD = 0.03
"""Standard deviation of what is added to every parameter: some start at 0, which hides errors."""

TOLERANCE = 1e-8
"""Relative error that is rounding, in float64."""

CHUNK = 128
"""Rows of a Jacobian that are computed together."""


class Violation(Exception):
    """The model breaks a line of the contract; the message says how."""


class DoesNotApply(Exception):
    """A line says nothing about a model; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """What came of trying a line on a model."""

    line: str
    verdict: str
    """passed, failed, or does not apply."""
    why: str


def check(build: Build) -> Iterator[Verdict]:
    """Try every line of :data:`LINES` on the model that ``build`` makes, one after the other.

    An error inside the model fails the line in which it comes up. Where no model can be made, all
    lines but the first are left out. The global random generator is as before.
    """
    try:
        random_model(build)
    except Exception as error:
        yield Verdict(next(iter(LINES)), "failed", _said(error))
        return
    for name, line in LINES.items():
        try:
            line(random_model(build), build)
        except DoesNotApply as reason:
            yield Verdict(name, "does not apply", str(reason))
        except Violation as violation:
            yield Verdict(name, "failed", str(violation))
        except Exception as error:
            yield Verdict(name, "failed", _said(error))
        else:
            yield Verdict(name, "passed", (line.__doc__ or "").splitlines()[0].rstrip("."))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def random_model(build: Build, seed: int = 3) -> LikelihoodModel:
    """A model in float64 and eval mode, initialised on random images, no parameter at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().double()
        model.initialise(random_images(64, model), NOISE_FREE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(SPREAD * torch.randn_like(parameter))
    return model.eval()


def random_images(count: int, model: LikelihoodModel) -> Tensor:
    """The same random uint8 images at every call."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (count, *model.image_shape), dtype=torch.uint8, generator=generator)


def shape(model: LikelihoodModel, build: Build) -> None:
    """N images have N×scales contributions, finite also for black and for white images."""
    images = random_images(4, model)
    images[0], images[1] = 0, LEVELS - 1
    values = model(images, NOISE_FREE)
    if tuple(values.shape) != (4, model.scales):
        raise Violation(
            f"4 images give {tuple(values.shape)}, not {(4, model.scales)}: N×scales in nats"
        )
    if not values.dtype.is_floating_point or not values.isfinite().all():
        raise Violation(f"contributions are {values.flatten()[:6].tolist()}, not finite numbers")


def gradients(model: LikelihoodModel, build: Build) -> None:
    """Every parameter gets a finite gradient of log p, and not only zeros."""
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not learned:
        raise DoesNotApply("it has no parameters")
    model.log_prob(random_images(4, model)).sum().backward()
    for name, parameter in learned:
        if parameter.grad is None or not parameter.grad.any():
            raise Violation(f"parameter {name} gets no gradient")
        if not parameter.grad.isfinite().all():
            raise Violation(f"the gradient of parameter {name} is not finite")


@torch.no_grad()
def independence(model: LikelihoodModel, build: Build) -> None:
    """An image has the same log p alone and beside others."""
    images = random_images(6, model)
    together = model(images, NOISE_FREE)
    alone = torch.cat([model(image[None], NOISE_FREE) for image in images])
    off = _difference(together, alone)
    if off > TOLERANCE:
        raise Violation(
            f"log p of an image changes by {off:.1e} of itself with the others of its batch"
        )


@torch.no_grad()
def modes(model: LikelihoodModel, build: Build) -> None:
    """Training mode changes nothing."""
    dropout = [m.p for m in model.modules() if isinstance(m, torch.nn.modules.dropout._DropoutNd)]
    if any(dropout) or getattr(model, "dropout", False):
        raise DoesNotApply("it has dropout, which acts in training alone")
    if not model.is_density:
        raise DoesNotApply("it is no density")
    images = random_images(4, model)
    evaluated = model(images, NOISE_FREE)
    off = _difference(evaluated, model.train()(images, NOISE_FREE))
    if off > TOLERANCE:
        raise Violation(f"log p in training mode differs by {off:.1e} of itself from eval mode")


@torch.no_grad()
def noise(model: LikelihoodModel, build: Build) -> None:
    """Dequantisation noise enters exactly where the model says so."""
    images = random_images(4, model)
    drawn = torch.rand(
        images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    constant = model(images, NOISE_FREE)
    same = torch.equal(constant, model(images, drawn))
    if model.uses_noise and same:
        raise Violation("the noise is ignored; use it, or set uses_noise = False")
    if not model.uses_noise and not same:
        raise Violation("the noise changes log p, but uses_noise is False")
    if _difference(constant, model(images, torch.full_like(drawn, NOISE_FREE))) > TOLERANCE:
        raise Violation("one number as noise gives something else than a tensor of that number")


def log_det(model: Any, build: Build) -> None:
    """log p − log p(z) is log|det dz/dx| by autograd, over the 256 levels."""
    if not hasattr(model, "transform") or not hasattr(model, "preprocess"):
        raise DoesNotApply("it has no preprocess(images, noise) and transform(v) to latents")
    images = random_images(1, model)
    size = images[0].numel()
    rows = []
    for part in torch.arange(size).split(CHUNK):
        # Copy i of the image gives row i of the Jacobian: images do not influence each other.
        copies = images.expand(len(part), *model.image_shape)
        shift = torch.full(copies.shape, NOISE_FREE, dtype=torch.float64, requires_grad=True)
        latents = _latents(model, model.preprocess(copies, shift))
        if latents.shape[1] != size:
            raise Violation(f"an image of {size} numbers has {latents.shape[1]} latents")
        picked = latents[torch.arange(len(part)), part].sum()
        rows.append(torch.autograd.grad(picked, shift)[0].flatten(1))
    expected = torch.linalg.slogdet(torch.cat(rows))[1].item()
    with torch.no_grad():
        contributions, priors = model.terms(images, NOISE_FREE)
        z = _latents(model, model.preprocess(images, NOISE_FREE))
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum()
        found = (contributions.sum() - (normal if priors is None else priors.sum())).item()
    if abs(found - expected) > TOLERANCE * max(abs(expected), size):
        raise Violation(
            f"log p − log p(z) is {found:.6g} nats, but log|det| by autograd is {expected:.6g}"
        )


def _latents(model: Any, v: Tensor) -> Tensor:
    """The latents of all scales, N×D."""
    latents = model.transform(v)[0]
    return torch.cat([each.flatten(1) for each in latents], dim=1)


@torch.no_grad()
def inverse(model: Any, build: Build) -> None:
    """decode(latents) gives back what transform made them from."""
    if not hasattr(model, "decode") or not hasattr(model, "transform"):
        raise DoesNotApply("it has no decode(latents)")
    v = model.preprocess(random_images(3, model), NOISE_FREE)
    back = model.decode(model.transform(v)[0])
    off = float((back - v).abs().max())
    if not off < TOLERANCE:
        raise Violation(f"decode(transform(v)) differs from v by {off:.1e}")


@torch.no_grad()
def probabilities(model: LikelihoodModel, build: Build) -> None:
    """All images of one pixel together have probability 1."""
    if model.uses_noise or not model.is_density:
        raise DoesNotApply("it is not a model of discrete pixels")
    if model.image_shape[0] != 1:
        raise DoesNotApply("images of one pixel are too many to sum over; try one channel")
    images = torch.arange(LEVELS, dtype=torch.uint8).view(LEVELS, 1, 1, 1)
    try:
        total = float(model.log_prob(images).exp().sum())
    except Exception as error:
        raise DoesNotApply(
            "it takes no images of one pixel, and larger ones are too many"
        ) from error
    # A code without parameters may leave words unused.
    learned = any(True for _ in model.parameters())
    if total > 1 + 1e-6 or learned and total < 1 - 1e-6:
        raise Violation(f"the probabilities of all images of one pixel add up to {total:.6g}")


@torch.no_grad()
def state(model: LikelihoodModel, build: Build) -> None:
    """Saved as safetensors and loaded into a new model, it gives the same numbers."""
    images = random_images(3, model)
    plain = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        other = build().double()
    other.load_state_dict(load(save(plain)), assign=True)
    off = _difference(model(images, NOISE_FREE), other.eval()(images, NOISE_FREE))
    if off > TOLERANCE:
        raise Violation(
            f"after loading log p differs by {off:.1e} of itself; keep what it is computed from in "
            "parameters or buffers"
        )


def _difference(first: Tensor, second: Tensor) -> float:
    """The largest difference relative to log p; infinite for NaN."""
    scale = float(first.abs().max().clamp(min=1.0))
    off = float((first - second).abs().max()) / scale
    return off if math.isfinite(off) else math.inf


LINES: Mapping[str, Callable[[LikelihoodModel, Build], None]] = {
    "shape": shape,
    "gradients": gradients,
    "independence": independence,
    "modes": modes,
    "noise": noise,
    "log-det": log_det,
    "inverse": inverse,
    "probabilities": probabilities,
    "state": state,
}
"""The contract by the names of its lines."""
