"""The authors' pickled models: their own numbers, classes, and structures that are refused."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.foreign.authors import glow_from_authors
from oodflow.foreign.formats import read_model
from oodflow.foreign.pickles import read_torch_file
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.glow import Glow

PARITY = Path(__file__).parent / "parity"
FILE = PARITY / "authors_format_glow_K2_h16.th"
LEVELS = 3072 * math.log(256)

pytestmark = pytest.mark.filterwarnings("ignore:.*source code.*")


def expected() -> tuple[Tensor, np.ndarray]:
    """Images of the parity file, and log p(v) of the authors' implementation."""
    arrays = np.load(PARITY / f"{FILE.stem}_expected.npz")
    return torch.from_numpy(arrays["images_uint8_nchw"]), arrays["log_prob"].astype(np.float64)


def difference(found: Tensor, wanted: np.ndarray) -> float:
    """Largest one; ours is over the levels, theirs without − D ln 256."""
    return float(np.abs(found.detach().double().numpy() + LEVELS - wanted).max())


def test_agrees_with_the_authors_implementation() -> None:
    images, log_prob = expected()
    model, fields = read_model(FILE, "authors")
    assert fields == {"name": "glow", "channels": 3, "depth": 2, "hidden": 16, "classes": 0}
    assert type(model) is Glow and model.initialised and not model.training
    assert difference(model.log_prob(images), log_prob) < 1e-2
    assert difference(model.double().log_prob(images), log_prob) < 5e-3
    assert not [name for name in sys.modules if name.split(".")[0] == "invglow"]


@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
def test_a_model_in_either_serialisation_is_the_same(
    tmp_path: Path, authors: Callable, new: bool
) -> None:
    make = authors("glow_grey")
    file = tmp_path / "model.th"
    torch.save(make.glow(), file, _use_new_zipfile_serialization=new)
    model, fields = read_model(file, "authors")
    assert fields == {"name": "glow", "channels": 1, "depth": 2, "hidden": 16, "classes": 0}
    with torch.no_grad():
        found = model.log_prob(torch.from_numpy(make.arrays["images_uint8_nchw"])).double()
    wanted = make.arrays["log_prob"].astype(np.float64) - 1024 * math.log(256)
    assert np.abs(found.numpy() - wanted).max() < 1e-2


def converted(tmp_path: Path, saved: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    torch.save(saved, tmp_path / "model.th")
    return glow_from_authors(read_torch_file(tmp_path / "model.th"))


def loaded(tmp_path: Path, saved: object) -> Any:
    torch.save(saved, tmp_path / "model.th")
    return read_model(tmp_path / "model.th", "authors")[0]


def test_steps_without_lu_are_factorised(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_rgb")
    images = torch.from_numpy(make.arrays["images_uint8_nchw"])
    model = loaded(tmp_path, make.glow(use_lu=False))
    assert difference(model.log_prob(images), make.arrays["log_prob"]) < 2e-2


def test_a_wrapped_model_is_found(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_grey")
    state = converted(tmp_path, make.glow())[1]
    for wrapped in (
        {"model": make.glow(), "epoch": 3},
        [make.glow()],
        nn.ModuleList([make.glow()]),
    ):
        other = converted(tmp_path, wrapped)[1]
        assert all(torch.equal(other[name], value) for name, value in state.items())


def test_a_gaussian_other_than_standard_becomes_part_of_the_affine(
    tmp_path: Path, authors: Callable
) -> None:
    """log N(y; m, s²), against the standard normal model, image by image."""
    make = authors("glow_grey")
    images = torch.from_numpy(make.arrays["images_uint8_nchw"])
    random = np.random.default_rng(0)
    sizes = [make.arrays[f"param/scale{i}/latent/loc"].size for i in (1, 2, 3)]
    means = [random.normal(size=(1, size)).astype(np.float32) for size in sizes]
    log_stds = [random.normal(size=(1, size), scale=0.3).astype(np.float32) for size in sizes]
    model = loaded(tmp_path, make.with_gaussians(make.latents(), means, log_stds)).double()
    standard = loaded(tmp_path, make.glow()).double()
    with torch.no_grad():
        v = standard.preprocess(images, 0.5)
        latents, log_dets = standard.transform(v)
        wanted = log_dets.clone()
        for i, z in enumerate(latents):
            mean = torch.from_numpy(means[i].astype(np.float64))
            std = torch.from_numpy(np.exp(log_stds[i].astype(np.float64)))
            wanted[:, i] += torch.distributions.Normal(mean, std).log_prob(z).sum(1)
        assert torch.allclose(model.encode(v)[1], wanted, rtol=1e-6, atol=1e-3)


def connected(make: Any) -> nn.Module:
    """One top a class over the shared latents, in a list of modules."""
    latents = make.latents()
    tops = []
    for label in range(4):
        ends = [
            make.node(node, module=make.actnorm(f"param/class{label}/scale{i + 1}/actnorm/"))
            for i, node in enumerate(latents)
        ]
        gaussians = (
            make.per_class(label, "gaussian/mean"),
            make.per_class(label, "gaussian/log_std"),
        )
        tops.append(make.with_gaussians(ends, *gaussians))
    return nn.ModuleList(tops)


def selected(make: Any) -> nn.Module:
    """The same, but each class chooses its inputs from a top without Gaussians."""
    trunk = make.top(make.latents())
    tops = [trunk]
    for label in range(4):
        ends = [
            make.node(
                make.node(trunk, kind="SelectNode", index=i),
                module=make.actnorm(f"param/class{label}/scale{i + 1}/actnorm/"),
            )
            for i in range(3)
        ]
        gaussians = (
            make.per_class(label, "gaussian/mean"),
            make.per_class(label, "gaussian/log_std"),
        )
        tops.append(make.with_gaussians(ends, *gaussians))
    return nn.ModuleList(tops)


def separate(make: Any) -> dict[str, object]:
    """A flow without Gaussians, and tops of the classes that begin at the latents."""
    tops = []
    for label in range(4):
        ends = [
            make.node(module=make.actnorm(f"param/class{label}/scale{i}/actnorm/"))
            for i in (1, 2, 3)
        ]
        gaussians = (
            make.per_class(label, "gaussian/mean"),
            make.per_class(label, "gaussian/log_std"),
        )
        tops.append(make.with_gaussians(ends, *gaussians))
    return {"flow": make.top(make.latents()), "classes": tops}


@pytest.mark.parametrize("form", [connected, selected, separate])
def test_class_conditional_models_agree_with_the_public_implementation(
    tmp_path: Path, authors: Callable, form: Callable
) -> None:
    make = authors("glow_class_conditional_rgb")
    torch.save(form(make), tmp_path / "model.th")
    model, fields = read_model(tmp_path / "model.th", "authors")
    assert fields == {"name": "glow", "channels": 3, "depth": 2, "hidden": 16, "classes": 4}
    assert isinstance(model, ClassConditionalGlow) and model.initialised
    images = torch.from_numpy(make.arrays["images_uint8_nchw"])
    assert difference(model.class_log_probs(images, 0.5), make.arrays["log_prob_per_class"]) < 1e-2
    assert difference(model.log_prob(images), make.arrays["log_prob_marginal"]) < 1e-2


def test_gaussians_with_a_row_per_class_are_class_conditional(
    tmp_path: Path, authors: Callable
) -> None:
    """The same model, with the affines of the classes written into their Gaussians."""
    make = authors("glow_class_conditional_rgb")
    means, log_stds = [], []
    for i in range(3):
        columns = {
            kind: np.concatenate([make.per_class(label, kind)[i] for label in range(4)])
            for kind in ("actnorm/loc", "actnorm/log_scale", "gaussian/mean", "gaussian/log_std")
        }
        shrink = np.exp(-columns["actnorm/log_scale"])
        means.append(columns["gaussian/mean"] * shrink - columns["actnorm/loc"])
        log_stds.append(columns["gaussian/log_std"] - columns["actnorm/log_scale"])
    model = loaded(tmp_path, make.with_gaussians(make.latents(), means, log_stds))
    images = torch.from_numpy(make.arrays["images_uint8_nchw"])
    assert difference(model.class_log_probs(images, 0.5), make.arrays["log_prob_per_class"]) < 1e-2


def change(name: str, **attributes: Any) -> Callable[[nn.Module], None]:
    """Set attributes of the first part of that class."""

    def apply(model: nn.Module) -> None:
        part = next(part for part in model.modules() if type(part).__name__ == name)
        for attribute, value in attributes.items():
            if attribute in dict(part.named_parameters(recurse=False)):
                delattr(part, attribute)
            setattr(part, attribute, value)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("AffineModifier", sigmoid_or_exp_scale="exp"), "has sigmoid_or_exp_scale 'exp'"),
        (change("AffineModifier", add_first=False), "add_first False"),
        (change("AffineModifier", eps=0.1), "has eps 0.1"),
        (change("ActNorm", scale_fn="softplus"), "scale_fn 'softplus'"),
        (change("ActNorm", eps=math.nan), "has eps nan"),
        (change("ActNorm", loc=None), "no numbers 'loc'"),
        (change("ActNorm", loc=torch.zeros(12, dtype=torch.int64)), "no numbers 'loc'"),
        (change("SubsampleSplitter", checkerboard=True), "checkerboard True"),
        (change("ChunkChans", n_parts=3), "n_parts 3"),
        (change("SelectNode", index=1), "has index 1"),
        (change("NClassIndependentDist", truncate_to=3), "truncate_to 3"),
        (change("Conv2dZeros", logscale_factor=1), "logscale_factor 1"),
        (change("CouplingLayer", condition_merger=3), "condition_merger 3"),
        (change("CouplingLayer", split_merger=None), "no part 'split_merger'"),
        (change("InvPermute", w_l=nn.Parameter(torch.zeros(3, 3))), r"\(3, 3\) instead of"),
        (change("Conv2d", conv=nn.Conv2d(2, 16, 3, padding=1)), "has a bias"),
        (change("Conv2d", conv=nn.Conv2d(2, 16, 3, bias=False)), "has padding"),
        (change("Conv2d", conv=nn.Conv2d(2, 9, 3, padding=1, bias=False)), "instead of"),
        (change("Node", module=nn.ReLU()), "'torch.nn.modules.activation.ReLU'"),
        (change("Node", prev=nn.ModuleList([nn.ReLU(), nn.ReLU()])), "2 nodes before it"),
        (change("CatAsListNode", prev=nn.ModuleList()), "3 scales, found 0"),
    ],
)
def test_models_that_differ_are_refused(
    tmp_path: Path, authors: Callable, damage: Callable, message: str
) -> None:
    model = authors("glow_grey").glow()
    damage(model)
    with pytest.raises(UserError, match=message) as caught:
        converted(tmp_path, model)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_flow_is_refused(tmp_path: Path, authors: Callable) -> None:
    for thing in (nn.ReLU(), {"a": torch.zeros(2)}, [], 7):
        with pytest.raises(UserError, match="0 flows with Gaussians, 0 without"):
            converted(tmp_path, thing)


def test_two_different_flows_are_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_grey")
    with pytest.raises(UserError, match="do not share one flow"):
        converted(tmp_path, [make.glow(), make.glow()])


def test_scales_with_different_numbers_of_steps_are_refused(
    tmp_path: Path, authors: Callable
) -> None:
    model = authors("glow_grey").glow()
    sequences = [
        part.sequential for part in model.modules() if type(part).__name__ == "InvertibleSequential"
    ]
    long = next(layers for layers in sequences if type(layers[0]).__name__ == "SubsampleSplitter")
    del long[2]
    with pytest.raises(UserError, match=r"as many steps in every scale, found \[1, 2\]"):
        converted(tmp_path, model)


def test_circles_are_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_grey")
    model = make.glow()
    node = model.prev[0]
    node.module = make.make("InvertibleSequential", sequential=nn.Sequential())
    node.module.sequential.append(node.module)
    with pytest.raises(UserError, match="twice"):
        converted(tmp_path, model)
    model = make.glow()
    model.prev[0].prev = nn.ModuleList([model.prev[0]])
    with pytest.raises(UserError, match="twice"):
        converted(tmp_path, model)


def test_mixtures_within_a_scale_are_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_grey")
    latents = make.latents()
    mean = np.zeros((3, 4), np.float32)
    mixed = make.make("Unlabeled", dist=make.gaussian(mean, mean))
    model = make.top([make.node(node, module=mixed) for node in latents])
    with pytest.raises(UserError, match="sums over classes in every scale"):
        converted(tmp_path, model)
