"""The graph of the authors' pickled models: the layers from the image to each latent.

Every node has a ``module``, a layer or an ``InvertibleSequential`` of layers, and ``prev``, the
node before it. A ``CatAsListNode`` at the top has one ``prev`` for each scale. Their paths from
the image share nodes: the path of scale i goes through the flows of the scales 1 … i, then a
``Flatten2d``, affines of the latent (``ActNorm``) and a Gaussian.

A class-conditional model has several Gaussians over one flow: a top per class, each with affines of
its own behind the shared ones, or one top whose Gaussians have a row per class. The tops may lie in
any container, and those of the classes may also begin at the latents, next to a flow without
Gaussians. (No class-conditional file of the authors was available to check these forms.)
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.restricted import Foreign, StoredTensor, shown

__all__ = ["Branch", "Head", "Step", "expect", "heads_of", "part", "parts", "tensor"]

SCALES = 3

SPLITTER = {
    "stride": (2, 2),
    "chunk_chans_first": True,
    "checkerboard": False,
    "cat_at_end": True,
    "via_reshape": True,
}
"""The squeeze whose channels are in the order of a pixel-unshuffle."""

Step = tuple[Foreign, Foreign, Foreign]
"""An actnorm, a 1×1 convolution and a coupling."""


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


@dataclass(frozen=True)
class Branch:
    """The way from the image to the latent of one scale."""

    flows: list[list[Step]]
    """Of the scales up to this one; empty where the way begins at the latent."""

    split: bool
    """Whether a part of the channels goes on to another scale."""

    affines: list[Foreign]
    gaussian: Foreign | None


class Head(list[Branch]):
    """The ways below one top, in the order of their scales."""

    @property
    def flow(self) -> list[list[Step]]:
        """The steps of every scale; empty where the ways begin at the latents."""
        return self[-1].flows

    @property
    def has_gaussians(self) -> bool:
        return all(branch.gaussian is not None for branch in self)


def heads_of(saved: object) -> list[Head]:
    """One head, or one per class, all with the same flow and with Gaussians.

    Raises UserError for a model that is put together differently.
    """
    heads = [_head(top) for top in _tops(saved)]
    complete = [head for head in heads if head.flow and head.has_gaussians]
    trunks = [head for head in heads if head.flow and not head.has_gaussians]
    separate = [head for head in heads if not head.flow and head.has_gaussians]
    if separate and len(trunks) == 1 and not complete:
        complete = [
            Head(
                replace(trunk, affines=trunk.affines + own.affines, gaussian=own.gaussian)
                for trunk, own in zip(trunks[0], head, strict=True)
            )
            for head in separate
        ]
    elif separate or not complete:
        raise UserError(
            "expected a Glow of the authors, with one Gaussian a scale or several for classes; "
            f"found {len(complete)} flows with Gaussians, {len(trunks)} without, and "
            f"{len(separate)} sets of Gaussians alone"
        )
    if any(head.flow != complete[0].flow for head in complete):
        raise UserError("the classes of the model do not share one flow")
    return complete


def _tops(saved: object) -> Iterator[Foreign]:
    """The CatAsListNodes of the object, wherever they are, but not those below others."""
    waiting, seen = [saved], set[int]()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Foreign) and thing.name == "CatAsListNode":
            yield thing
        elif isinstance(thing, Foreign):
            waiting.extend(reversed(list(parts(thing).values())))
        elif isinstance(thing, Mapping):
            waiting.extend(reversed(list(thing.values())))
        elif isinstance(thing, list | tuple):
            waiting.extend(reversed(thing))


def _head(top: Foreign) -> Head:
    head = Head(sorted(map(_branch, _nodes_before(top)), key=lambda branch: len(branch.flows)))
    if len(head) != SCALES:
        raise UserError(f"expected a model of {SCALES} scales, found {len(head)}")
    depths = [len(branch.flows) for branch in head]
    if any(depths):
        if depths != [1, 2, 3] or [branch.split for branch in head] != [True, True, False]:
            raise UserError(f"expected latents behind 1, 2 and 3 scales, found {depths}")
        if any(branch.flows != head.flow[: len(branch.flows)] for branch in head):
            raise UserError("the scales of the model do not share their flows")
    return head


def _branch(end: Foreign) -> Branch:
    layers = deque(_layers_to(end))

    def next_is(name: str) -> bool:
        return bool(layers) and layers[0].name == name

    def take(name: str) -> Foreign:
        if not next_is(name):
            found = f"a {layers[0].path!r}" if layers else "the end"
            raise UserError(f"expected a {name} in the authors' model, found {found}")
        return layers.popleft()

    flows: list[list[Step]] = []
    split = False
    while next_is("SubsampleSplitter") and split == bool(flows):
        expect(take("SubsampleSplitter"), SPLITTER)
        flows.append([])
        while next_is("ActNorm"):
            flows[-1].append((take("ActNorm"), take("InvPermute"), take("CouplingLayer")))
        split = next_is("ChunkChans")
        if split:
            expect(take("ChunkChans"), {"n_parts": 2})
            # The first half of the channels stays as the latent, the second goes on.
            select = take("SelectNode")
            expect(select, {"index": int(next_is("SubsampleSplitter"))}, required=True)
    if flows:
        take("Flatten2d")
    affines = []
    while next_is("ActNorm"):
        affines.append(take("ActNorm"))
    gaussian = take("NClassIndependentDist") if layers else None
    if layers:
        raise UserError(f"expected nothing behind a Gaussian, found a {layers[0].path!r}")
    return Branch(flows, split, affines, gaussian)


def _nodes_before(node: Foreign) -> list[Foreign]:
    before = parts(node).get("prev")
    if before is None:
        return []
    return list(parts(before).values()) if before.name == "ModuleList" else [before]


def _layers_to(end: Foreign) -> list[Foreign]:
    """All layers, and choices of a half of the channels, that lead to a node, from the image on."""
    layers: list[Foreign] = []
    passed: set[int] = set()
    node: Foreign | None = end
    while node is not None:
        _pass_once(node, passed)
        before = _nodes_before(node)
        if node.name == "SelectNode" and before and before[0].name == "CatAsListNode":
            # One of the latents of another top, not one half of the channels.
            before, index = _nodes_before(before[0]), node.state.get("index")
            if type(index) is not int or not 0 <= index < len(before):
                raise UserError(f"a {node.path!r} of the model selects {shown(index)}")
            before = before[index : index + 1]
        elif node.name == "SelectNode":
            layers.append(node)
        elif node.name == "Node":
            layers.extend(reversed(list(_layers_of(part(node, "module"), passed))))
        else:
            raise UserError(f"expected a node of the authors' graph, found a {node.path!r}")
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
        yield module


def _pass_once(module: Foreign, passed: set[int]) -> None:
    if id(module) in passed:
        raise UserError(f"the way of an image through the model passes a {module.path!r} twice")
    passed.add(id(module))
