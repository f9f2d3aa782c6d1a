"""The structure of the authors' pickled models: their layers, in the order an image passes them.

Three kinds of models come out of their training:

- **Several scales.** A graph of nodes. Each has a ``module``, a layer or an
  ``InvertibleSequential`` of layers, and ``prev``, the nodes before it. A ``CatAsListNode`` at the
  top has one ``prev`` a scale. The way of an image to scale i leads through the flows of the scales
  1 … i, then a ``Flatten2d``, the affine of the latent (``ActNorm``) and a Gaussian. In fully
  connected models a flow lies between a ``Flatten2d`` and a ``ViewAs``.
- **Class-conditional.** An ``InvertibleSequential`` of two: the graph up to the affines, with a
  ``CatChansNode`` that joins the latents to one vector, and an ``InvertibleClassConditional`` (in a
  ``MergeLogDets``) with a head for each class. A head cuts the vector again (``ChunkByIndices``);
  each part is selected, flattened, and goes through an affine and a Gaussian of the class.
- **Local patches.** A ``WrapForPatches`` around the layers of a single scale.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.pickles import state_dict_of
from oodflow.foreign.restricted import Foreign, StoredTensor, shown

__all__ = [
    "Density",
    "Flow",
    "Step",
    "Structure",
    "expect",
    "part",
    "parts",
    "structure_of",
    "supported",
    "tensor",
]

SCALES = 3
PATCH = 8

SPLITTER = {
    "stride": (2, 2),
    "chunk_chans_first": True,
    "checkerboard": False,
    "cat_at_end": True,
    "via_reshape": True,
}
"""The squeeze whose channels are in the order of a pixel-unshuffle."""

UNSUPPORTED = {
    "Shuffle": "shuffles its channels (flow_permutation 'shuffle')",
    "Identity": "does not mix its channels (flow_permutation 'identity')",
    "AdditiveCoefs": "has additive couplings (flow_coupling 'additive')",
    "CatChansNode": "is a flow without the density of its latents",
}
"""Parts that the authors' code can make and our models do not have, and what they mean."""

Step = tuple[Foreign, Foreign, Foreign]
"""An actnorm, a 1×1 convolution or a projection, and a coupling."""


@dataclass(frozen=True)
class Flow:
    """The steps of one scale."""

    steps: list[Step]
    dense: bool
    """Whether they are fully connected."""


@dataclass(frozen=True)
class Density:
    """An affine of a latent, and the Gaussian behind it; None where that is the classes' own."""

    affine: Foreign
    gaussian: Foreign | None


@dataclass(frozen=True)
class Structure:
    """A model, taken apart."""

    flows: list[Flow]
    latents: list[Density]
    """Of the scales."""

    classes: list[list[Density]]
    """Of the scales, for each class; empty for a model without classes."""

    local: bool
    """Whether the flow is that of patches of 8×8 pixels."""


def _section(module: Foreign, name: str) -> Mapping[str, Any]:
    """What PyTorch stores under ``_modules``, ``_parameters`` or ``_buffers``."""
    section = module.state.get(name)
    return section if isinstance(section, Mapping) else {}


def parts(module: Foreign) -> dict[str, Foreign]:
    """The modules of a module, by name, in order."""
    modules = _section(module, "_modules")
    return {str(name): inner for name, inner in modules.items() if isinstance(inner, Foreign)}


def part(module: Foreign, name: str) -> Foreign:
    """One of the modules of a module, or of its other attributes that are no modules."""
    found = parts(module).get(name, module.state.get(name))
    if not isinstance(found, Foreign):
        raise UserError(f"a {module.path!r} of the model has no part {name!r}")
    return found


def tensor(module: Foreign, name: str) -> Tensor:
    """A parameter or buffer of a module."""
    stored = _section(module, "_parameters").get(name, _section(module, "_buffers").get(name))
    if not isinstance(stored, StoredTensor) or not stored.storage.dtype.is_floating_point:
        raise UserError(f"a {module.path!r} of the model has no numbers {name!r}")
    return stored.tensor()


def expect(module: Foreign, wanted: Mapping[str, object], required: bool = False) -> Foreign:
    """The module, unless an attribute has another value; absent ones pass if not ``required``."""
    for name, value in wanted.items():
        found = module.state.get(name, None if required else value)
        if found != value:
            raise UserError(
                f"a {module.path!r} of the model has {name} {shown(found)}, where our Glow has "
                f"{value!r}"
            )
    return module


def supported(module: Foreign) -> Foreign:
    """The module, unless our models have nothing like it."""
    if module.name in UNSUPPORTED:
        raise UserError(
            f"the model {UNSUPPORTED[module.name]}: it has a {module.path!r}, and nothing here "
            "computes the same"
        )
    return module


def structure_of(saved: object) -> Structure:
    """The one model in what was saved, wherever it lies in containers and wrappers.

    Raises UserError for a model that is put together differently, and where there is none.
    """
    readers: Mapping[str, Callable[[Foreign], Structure]] = {
        "CatAsListNode": _several_scales,
        "InvertibleSequential": _class_conditional,
        "WrapForPatches": _local,
    }
    roots = list(_outermost(saved, {*readers, *UNSUPPORTED}))
    if not roots and _is_state_dict(saved):
        raise UserError(
            "a bare state dict: it does not say how the authors' model is put together; give the "
            "whole model, which their training saves beside it as EPOCH_model.th"
        )
    if len(roots) != 1:
        raise UserError(f"expected one whole model of the authors, found {len(roots)}")
    return readers[supported(roots[0]).name](roots[0])


def _is_state_dict(saved: object) -> bool:
    with suppress(UserError):
        return bool(state_dict_of(saved))
    return False


def _outermost(saved: object, names: set[str]) -> Iterator[Foreign]:
    """The objects of classes of these names, but not those inside others."""
    waiting, seen = [saved], set[int]()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Foreign) and thing.name in names:
            yield thing
        elif isinstance(thing, Foreign):
            waiting.extend(parts(thing).values())
        elif isinstance(thing, Mapping):
            waiting.extend(thing.values())
        elif isinstance(thing, list | tuple):
            waiting.extend(thing)


class _Way:
    """The layers that an image passes, taken one after the other."""

    def __init__(self, layers: Iterable[Foreign]) -> None:
        self._left = deque(layers)

    def next_is(self, *names: str) -> bool:
        return bool(self._left) and self._left[0].name in names

    def take(self, name: str, **wanted: object) -> Foreign:
        if not self.next_is(name):
            found = f"a {self._left[0].path!r}" if self._left else "the end"
            raise UserError(f"expected a {name} in the authors' model, found {found}")
        return expect(self._left.popleft(), wanted, required=True)

    def flow(self) -> Flow:
        expect(self.take("SubsampleSplitter"), SPLITTER)
        dense = self.next_is("Flatten2d")
        if dense:
            self.take("Flatten2d")
        steps = []
        while self.next_is("ActNorm", "InvPermute"):
            steps.append(
                (self.take("ActNorm"), self.take("InvPermute"), self.take("CouplingLayer"))
            )
        if dense:
            self.take("ViewAs")
        return Flow(steps, dense)

    def half(self, index: int) -> None:
        """The first half of the channels is a scale's latent, the second goes on."""
        self.take("ChunkChans", n_parts=2)
        self.take("SelectNode", index=index)

    def density(self, with_gaussian: bool) -> Density:
        """What comes last."""
        self.take("Flatten2d")
        affine = self.take("ActNorm")
        gaussian = self.take("NClassIndependentDist") if with_gaussian else None
        if self._left:
            raise UserError(f"expected nothing behind a latent, found a {self._left[0].path!r}")
        return Density(affine, gaussian)


def _several_scales(top: Foreign, with_gaussians: bool = True) -> Structure:
    """What lies below a node that puts the scales together."""
    flows: list[Flow] = []
    latents = []
    for number, end in enumerate(_scales_below(top)):
        way = _Way(_layers_to(end))
        passed = []
        for _ in range(number):
            passed.append(way.flow())
            way.half(1)
        if passed != flows:
            raise UserError("the scales of the model do not share their flows")
        flows.append(way.flow())
        if number < SCALES - 1:
            way.half(0)
        latents.append(way.density(with_gaussians))
    return Structure(flows, latents, classes=[], local=False)


def _class_conditional(model: Foreign) -> Structure:
    layers = list(parts(part(model, "sequential")).values())
    names = shown(tuple(each.name for each in layers))
    if len(layers) != 2 or layers[0].name != "CatChansNode":
        raise UserError(f"expected a flow and its classes, found {names}")
    trunk, heads = layers
    if heads.name == "MergeLogDets":
        heads = part(heads, "module")
    if heads.name != "InvertibleClassConditional":
        raise UserError(f"expected an InvertibleClassConditional, found {shown(heads)}")
    found = _several_scales(trunk, with_gaussians=False)
    sizes = [tensor(latent.affine, "loc").numel() for latent in found.latents]
    ends = tuple(accumulate(sizes[:-1]))
    modules = parts(part(heads, "module_list")).values()
    # Where a label names another head than that of its place, ours would be another class.
    expect(heads, {"i_classes": list(range(len(modules)))})
    classes = [_head(module, ends) for module in modules]
    return Structure(found.flows, found.latents, classes, local=False)


def _head(joined: Foreign, ends: tuple[int, ...]) -> list[Density]:
    """The densities of a class, whose latents lie in one vector and end at these places."""
    before = _nodes_before(joined)
    if len(before) != 1 or part(joined, "module").name != "CatChans":
        raise UserError(f"expected a class that joins its latents, found {shown(joined)}")
    densities = []
    for number, end in enumerate(_scales_below(before[0])):
        way = _Way(_layers_to(end))
        way.take("ChunkByIndices", indices=ends)
        way.take("SelectNode", index=number)
        densities.append(way.density(with_gaussian=True))
    return densities


def _local(wrapper: Foreign) -> Structure:
    way = _Way(
        _layers_of(part(expect(wrapper, {"patch_size": PATCH}, required=True), "model"), set())
    )
    return Structure([way.flow()], [way.density(with_gaussian=True)], classes=[], local=True)


def _scales_below(top: Foreign) -> list[Foreign]:
    scales = _nodes_before(top)
    if len(scales) != SCALES:
        raise UserError(f"expected a model of {SCALES} scales (L), found {len(scales)}")
    return scales


def _nodes_before(node: Foreign) -> list[Foreign]:
    before = parts(node).get("prev")
    if before is None:
        return []
    return list(parts(before).values()) if before.name == "ModuleList" else [before]


def _layers_to(end: Foreign) -> list[Foreign]:
    """All layers, and choices of a part of the values, that lead to a node, from the image on."""
    layers: list[Foreign] = []
    passed: set[int] = set()
    node: Foreign | None = end
    while node is not None:
        _pass_once(node, passed)
        if node.name == "SelectNode":
            layers.append(node)
        elif node.name == "Node":
            layers.extend(reversed(list(_layers_of(part(node, "module"), passed))))
        else:
            raise UserError(
                f"expected a node of the authors' graph, found a {supported(node).path!r}"
            )
        before = _nodes_before(node)
        if len(before) > 1:
            raise UserError(f"a {node.path!r} of the model has {len(before)} nodes before it")
        node = before[0] if before else None
    return layers[::-1]


def _layers_of(module: Foreign, passed: set[int]) -> Iterator[Foreign]:
    """A layer; or those of a sequence, one after the other."""
    _pass_once(module, passed)
    if module.name == "InvertibleSequential":
        for inner in parts(part(module, "sequential")).values():
            yield from _layers_of(inner, passed)
    elif module.name == "Unlabeled":
        # Of several classes it would be a mixture in every scale, which ours has not.
        gaussian = part(module, "dist")
        if len(tensor(gaussian, "class_means")) != 1:
            raise UserError("the model sums over classes in every scale, where ours has one sum")
        yield gaussian
    else:
        yield supported(module)


def _pass_once(module: Foreign, passed: set[int]) -> None:
    if id(module) in passed:
        raise UserError(f"the way of an image through the model passes a {module.path!r} twice")
    passed.add(id(module))
