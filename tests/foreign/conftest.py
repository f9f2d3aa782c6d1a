"""What the tests share: models in the authors' format, made from neutral names."""

import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

PARITY = Path(__file__).parents[1] / "models" / "parity"

_CLASSES = {
    "invglow.invertible.graph": ("Node", "SelectNode", "CatAsListNode", "CatChansNode"),
    "invglow.invertible.actnorm": ("ActNorm",),
    "invglow.invertible.inv_permute": ("InvPermute", "Shuffle"),
    "invglow.invertible.identity": ("Identity",),
    "invglow.invertible.coupling": ("CouplingLayer",),
    "invglow.invertible.affine": ("AffineCoefs", "AdditiveCoefs", "AffineModifier"),
    "invglow.invertible.branching": ("ChunkChans", "ChunkByIndices", "CatChans"),
    "invglow.invertible.categorical_mixture": ("InvertibleClassConditional",),
    "invglow.invertible.split_merge": ("ChunkChansIn2", "EverySecondChan"),
    "invglow.invertible.splitter": ("SubsampleSplitter",),
    "invglow.invertible.sequential": ("InvertibleSequential",),
    "invglow.invertible.view_as": ("Flatten2d", "ViewAs"),
    "invglow.invertible.distribution": ("NClassIndependentDist", "Unlabeled", "MergeLogDets"),
    "invglow.models.glow": ("Conv2d", "Conv2dZeros"),
    "invglow.models.patch_glow": ("WrapForPatches",),
}


class Authors:
    """Makes models in the authors' format; their classes exist only while this does."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.classes = {
            name: type(name, (nn.Module,), {"__module__": module})
            for module, names in _CLASSES.items()
            for name in names
        }

    def make(self, class_name: str, **attributes: Any) -> nn.Module:
        """An object with tensors as parameters and the rest as they are."""
        made = self.classes[class_name]()
        for name, value in attributes.items():
            if isinstance(value, np.ndarray | Tensor):
                value = nn.Parameter(torch.as_tensor(value).clone())
            setattr(made, name, value)
        return made

    def node(self, *before: nn.Module, kind: str = "Node", **attributes: Any) -> nn.Module:
        node = self.make(kind, next=[], **attributes)
        node.prev = nn.ModuleList(before) if before else None  # type: ignore[assignment]
        for each in before:
            each.next.append(node)  # type: ignore[operator, union-attr]
        return node

    def sequence(self, *layers: nn.Module) -> nn.Module:
        return self.make("InvertibleSequential", sequential=nn.Sequential(*layers))

    def actnorm(self, prefix: str, loc: str = "loc", log_scale: str = "log_scale") -> nn.Module:
        values = (self.arrays[f"{prefix}{name}"] for name in (loc, log_scale))
        spread = [value.reshape(1, -1, 1, 1) for value in values]
        return self.make("ActNorm", loc=spread[0], log_scale=spread[1], scale_fn="exp", eps=0)

    def gaussian(self, mean: np.ndarray, log_std: np.ndarray) -> nn.Module:
        return self.make(
            "NClassIndependentDist", class_means=mean, class_log_stds=log_std, truncate_to=None
        )

    def step(self, prefix: str, use_lu: bool = True) -> nn.Module:
        """A fully connected one where there are linear layers."""
        given = self.arrays
        dense = f"{prefix}linear1/weight" in given
        names = ("w_p", "w_l", "w_u", "w_s", "s_sign") if use_lu and not dense else ("weight",)
        mixing = {name: given[f"{prefix}permutation/{name}"] for name in names}
        if dense:
            # Of a fixed one all are buffers.
            weight = torch.from_numpy(mixing.pop("weight"))
            permutation = self.make("InvPermute", use_lu=False, fixed=True)
            permutation.register_buffer("weight", weight)
            permutation.register_buffer("weight_inverse", weight.T)
            permutation.register_buffer("fixed_log_det", torch.zeros(()))
        else:
            permutation = self.make("InvPermute", use_lu=use_lu, fixed=False, **mixing)
        network = self.dense_network(prefix) if dense else self.network(prefix)
        coupling = self.make(
            "CouplingLayer",
            coef_extractor=self.make(
                "AffineCoefs", module=network, splitter=self.make("EverySecondChan")
            ),
            modifier=self.make(
                "AffineModifier", sigmoid_or_exp_scale="sigmoid", add_first=True, eps=0
            ),
            split_merger=self.make("ChunkChansIn2", swap_dims=True),
            condition_merger=None,
        )
        return self.sequence(self.actnorm(f"{prefix}actnorm/"), permutation, coupling)

    def network(self, prefix: str) -> nn.Module:
        layers: list[nn.Module] = []
        relu = nn.ReLU()
        for name in ("conv1", "conv2"):
            norm = self.actnorm(f"{prefix}{name}/actnorm_")
            layers.append(self.make("Conv2d", conv=self.conv(f"{prefix}{name}/"), actnorm=norm))
            layers.append(relu)
        last = self.conv(f"{prefix}conv3/", biased=True)
        logs = self.arrays[f"{prefix}conv3/logs"].reshape(-1, 1, 1)
        layers.append(self.make("Conv2dZeros", conv=last, logs=logs, logscale_factor=3))
        return nn.Sequential(*layers)

    def dense_network(self, prefix: str) -> nn.Module:
        layers: list[nn.Module] = []
        for number in (1, 2, 3):
            weight, bias = (
                torch.from_numpy(self.arrays[f"{prefix}linear{number}/{name}"])
                for name in ("weight", "bias")
            )
            layers += [nn.Linear(*weight.shape[::-1]), nn.ReLU()]
            layers[-2].load_state_dict({"weight": weight, "bias": bias})
        return nn.Sequential(*layers[:-1])

    def conv(self, prefix: str, biased: bool = False) -> nn.Conv2d:
        weight = torch.from_numpy(self.arrays[f"{prefix}weight"])
        outputs, inputs, size, _ = weight.shape
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=biased)
        conv.weight = nn.Parameter(weight.clone())
        if biased:
            conv.bias = nn.Parameter(torch.from_numpy(self.arrays[f"{prefix}bias"]).clone())
        return conv

    def steps(self, scale: int, use_lu: bool = True) -> nn.Module:
        """Squeeze and steps of a scale, as many as there are weights of."""
        splitter = self.make(
            "SubsampleSplitter",
            stride=(2, 2),
            chunk_chans_first=True,
            checkerboard=False,
            cat_at_end=True,
            via_reshape=True,
        )
        first = f"param/scale{scale}/step"
        places = (name.removeprefix(first) for name in self.arrays if name.startswith(first))
        numbers = sorted({int(place.partition("/")[0]) for place in places})
        steps = [self.step(f"{first}{number}/", use_lu) for number in numbers]
        if f"{first}1/linear1/weight" not in self.arrays:
            return self.sequence(splitter, *steps)
        flat = self.make("Flatten2d", dims_before=torch.Size((5, 12, 16, 16)))
        return self.sequence(splitter, flat, *steps, self.make("ViewAs", dims_before=(-1, 3072)))

    def latents(self, use_lu: bool = True) -> list[nn.Module]:
        """The nodes of the three latents, behind their own affines, over one flow."""
        nodes: list[nn.Module] = []
        before: tuple[nn.Module, ...] = ()
        for scale in (1, 2, 3):
            end = self.node(*before, module=self.steps(scale, use_lu))
            if scale < 3:
                chunk = self.node(end, module=self.make("ChunkChans", n_parts=2))
                end, onward = (self.node(chunk, kind="SelectNode", index=i) for i in (0, 1))
                before = (onward,)
            affine = self.actnorm(f"param/scale{scale}/latent/")
            nodes.append(self.node(end, module=self.sequence(self.make("Flatten2d"), affine)))
        return nodes

    def top(self, nodes: list[nn.Module]) -> nn.Module:
        return self.node(*nodes, kind="CatAsListNode")

    def with_gaussians(
        self, nodes: list[nn.Module], means: list[np.ndarray], log_stds: list[np.ndarray]
    ) -> nn.Module:
        """A top with one Gaussian a node, inside an ``Unlabeled`` where it has one class."""
        ends = []
        for node, mean, log_std in zip(nodes, means, log_stds, strict=True):
            gaussian = self.gaussian(mean, log_std)
            if len(mean) == 1:
                gaussian = self.make("Unlabeled", dist=gaussian)
            ends.append(self.node(node, module=gaussian))
        return self.top(ends)

    def glow(self, use_lu: bool = True) -> nn.Module:
        """A whole model with standard normal latents."""
        return self.with_gaussians(self.latents(use_lu), *self.zeros())

    def zeros(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Means and log stds of standard normal latents."""
        scales = [i for i in (1, 2, 3) if f"param/scale{i}/latent/loc" in self.arrays]
        sizes = [self.arrays[f"param/scale{i}/latent/loc"].size for i in scales]
        zeros = [np.zeros((1, size), np.float32) for size in sizes]
        return zeros, zeros

    def local(self) -> nn.Module:
        """A model of patches."""
        affine = self.sequence(self.make("Flatten2d"), self.actnorm("param/scale1/latent/"))
        [[mean], [log_std]] = self.zeros()
        gaussian = self.make("Unlabeled", dist=self.gaussian(mean, log_std))
        layers = self.sequence(self.steps(1), affine, gaussian)
        return self.make("WrapForPatches", model=layers, patch_size=8)

    def with_classes(self, use_lu: bool = True) -> nn.Module:
        """A class-conditional model: a flow, and heads on its joined latents."""
        trunk = self.node(*self.latents(use_lu), kind="CatChansNode", n_chans=None)
        labels = {name.split("/")[1] for name in self.arrays if name.startswith("param/class")}
        heads = [self.head(label) for label in range(len(labels))]
        classes = self.make(
            "InvertibleClassConditional",
            module_list=nn.ModuleList(heads),
            i_classes=list(range(len(heads))),
        )
        return self.sequence(trunk, self.make("MergeLogDets", module=classes))

    def head(self, label: int) -> nn.Module:
        """What a class makes of the joined latents."""
        scales = [f"param/class{label}/scale{i}/" for i in (1, 2, 3)]
        sizes = [self.arrays[f"{scale}actnorm/loc"].size for scale in scales]
        ends = (sizes[0], sizes[0] + sizes[1])
        chunks = self.node(module=self.make("ChunkByIndices", indices=ends))
        nodes = []
        for index, scale in enumerate(scales):
            selected = self.node(chunks, kind="SelectNode", index=index)
            affine = self.sequence(self.make("Flatten2d"), self.actnorm(f"{scale}actnorm/"))
            nodes.append(self.node(selected, module=affine))
        moments = (
            [self.arrays[f"{scale}gaussian/{kind}"][None] for scale in scales]
            for kind in ("mean", "log_std")
        )
        top = self.with_gaussians(nodes, *moments)
        return self.node(top, module=self.make("CatChans", n_chans=None))


Arrays = dict[str, np.ndarray]


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Arrays], Authors]:
    """From weights, or the name of a parity file that has some, to a maker of models."""

    def maker(weights: str | Arrays) -> Authors:
        if isinstance(weights, str):
            weights = dict(np.load(PARITY / f"{weights}.npz"))
        made = Authors(weights)
        for module, names in _CLASSES.items():
            fake = types.ModuleType(module)
            for class_name in names:
                setattr(fake, class_name, made.classes[class_name])
            monkeypatch.setitem(sys.modules, module, fake)
        for package in ("invglow", "invglow.invertible", "invglow.models"):
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        return made

    return maker


@pytest.fixture
def write_zip() -> Callable[[Path, dict[str, bytes]], Path]:
    """Writes the new serialisation from its members, with proper checksums."""

    def write(path: Path, members: dict[str, bytes]) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return write


@pytest.fixture
def write_saved(write_zip: Callable[..., Path]) -> Callable[[Path, bytes, bool], Path]:
    """Writes a pickle as the object of a file of torch.save, in the new or the old way."""

    def write(path: Path, pickled: bytes, new: bool) -> Path:
        if new:
            return write_zip(path, {"a/data.pkl": pickled, "a/byteorder": b"little"})
        start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        heads = b"".join(pickle.dumps(each, protocol=2) for each in start)
        path.write_bytes(heads + pickled + pickle.dumps([], protocol=2))
        return path

    return write
