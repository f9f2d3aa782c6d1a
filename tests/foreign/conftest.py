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
    "invglow.invertible.graph": ("Node", "SelectNode", "CatAsListNode"),
    "invglow.invertible.actnorm": ("ActNorm",),
    "invglow.invertible.inv_permute": ("InvPermute",),
    "invglow.invertible.coupling": ("CouplingLayer",),
    "invglow.invertible.affine": ("AffineCoefs", "AffineModifier"),
    "invglow.invertible.branching": ("ChunkChans",),
    "invglow.invertible.split_merge": ("ChunkChansIn2", "EverySecondChan"),
    "invglow.invertible.splitter": ("SubsampleSplitter",),
    "invglow.invertible.sequential": ("InvertibleSequential",),
    "invglow.invertible.view_as": ("Flatten2d",),
    "invglow.invertible.distribution": ("NClassIndependentDist", "Unlabeled"),
    "invglow.models.glow": ("Conv2d", "Conv2dZeros"),
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
        given = self.arrays
        names = ("w_p", "w_l", "w_u", "w_s", "s_sign") if use_lu else ("weight",)
        mixing = {name: given[f"{prefix}permutation/{name}"] for name in names}
        layers: list[nn.Module] = []
        for name in ("conv1", "conv2"):
            norm = self.actnorm(f"{prefix}{name}/actnorm_")
            layers.append(self.make("Conv2d", conv=self.conv(f"{prefix}{name}/"), actnorm=norm))
            layers.append(nn.ReLU())
        last = self.conv(f"{prefix}conv3/", biased=True)
        logs = given[f"{prefix}conv3/logs"].reshape(-1, 1, 1)
        layers.append(self.make("Conv2dZeros", conv=last, logs=logs, logscale_factor=3))
        coupling = self.make(
            "CouplingLayer",
            coef_extractor=self.make(
                "AffineCoefs", module=nn.Sequential(*layers), splitter=self.make("EverySecondChan")
            ),
            modifier=self.make(
                "AffineModifier", sigmoid_or_exp_scale="sigmoid", add_first=True, eps=0
            ),
            split_merger=self.make("ChunkChansIn2", swap_dims=True),
            condition_merger=None,
        )
        return self.sequence(
            self.actnorm(f"{prefix}actnorm/"),
            self.make("InvPermute", use_lu=use_lu, **mixing),
            coupling,
        )

    def conv(self, prefix: str, biased: bool = False) -> nn.Conv2d:
        weight = torch.from_numpy(self.arrays[f"{prefix}weight"])
        outputs, inputs, size, _ = weight.shape
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=biased)
        conv.weight = nn.Parameter(weight.clone())
        if biased:
            conv.bias = nn.Parameter(torch.from_numpy(self.arrays[f"{prefix}bias"]).clone())
        return conv

    def latents(self, depth: int = 2, use_lu: bool = True) -> list[nn.Module]:
        """The nodes of the three latents, behind their own affines, over one flow."""
        nodes: list[nn.Module] = []
        before: tuple[nn.Module, ...] = ()
        for scale in (1, 2, 3):
            splitter = self.make(
                "SubsampleSplitter",
                stride=(2, 2),
                chunk_chans_first=True,
                checkerboard=False,
                cat_at_end=True,
                via_reshape=True,
            )
            steps = (self.step(f"param/scale{scale}/step{k + 1}/", use_lu) for k in range(depth))
            end = self.node(*before, module=self.sequence(splitter, *steps))
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

    def glow(self, depth: int = 2, use_lu: bool = True) -> nn.Module:
        """A whole model with standard normal latents."""
        nodes = self.latents(depth, use_lu)
        zeros = [
            np.zeros((1, self.arrays[f"param/scale{i}/latent/loc"].size), np.float32)
            for i in (1, 2, 3)
        ]
        return self.with_gaussians(nodes, zeros, zeros)

    def per_class(self, label: int, kind: str) -> list[np.ndarray]:
        """``kind`` of a class in the three scales, 1×d each."""
        return [self.arrays[f"param/class{label}/scale{i}/{kind}"][None] for i in (1, 2, 3)]


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Authors]:
    """From the name of a parity file to a maker of models with its weights."""

    def maker(name: str) -> Authors:
        made = Authors(dict(np.load(PARITY / f"{name}.npz")))
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
