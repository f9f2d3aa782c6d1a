"""The authors' pickled models: their own numbers, classes, and structures that are refused."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_flow import drawn, log_probs
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.foreign.authors import model_from_authors
from oodflow.foreign.formats import read_model
from oodflow.foreign.pickles import read_torch_file
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import DenseGlow, LocalGlow

PARITY = Path(__file__).parent / "parity"
FILE = PARITY / "authors_format_glow_K2_h16.th"
LEVELS = 3072 * math.log(256)

pytestmark = pytest.mark.filterwarnings("ignore:.*source code.*")


def expected() -> tuple[Tensor, np.ndarray]:
    """Images of the parity file, and log p(v) of the authors' implementation."""
    arrays = np.load(PARITY / f"{FILE.stem}_expected.npz")
    return torch.from_numpy(arrays["images_uint8_nchw"]), arrays["log_prob"].astype(np.float64)


def difference(found: Tensor, wanted: np.ndarray, channels: int = 3) -> float:
    """Largest one; ours is over the levels, theirs without − D ln 256."""
    levels = channels * 1024 * math.log(256)
    return float(np.abs(found.detach().double().numpy() + levels - wanted).max())


def test_agrees_with_the_authors_implementation() -> None:
    images, log_prob = expected()
    model, fields = read_model(FILE, "authors")
    assert fields == {"name": "glow", "channels": 3, "depth": 2, "hidden": 16, "classes": 0}
    assert type(model) is Glow and model.initialised and not model.training
    assert difference(model.log_prob(images), log_prob) < 1e-2
    assert difference(model.double().log_prob(images), log_prob) < 5e-3
    assert not [name for name in sys.modules if name.split(".")[0] == "invglow"]


PUBLIC = (
    "glow_rgb",
    "glow_grey",
    "glow_dense_grey",
    "glow_local_rgb",
    "glow_class_conditional_rgb",
)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_formulas_of_these_tests_are_those_of_the_public_implementation(name: str) -> None:
    arrays = dict(np.load(Path(__file__).parents[1] / "models" / "parity" / f"{name}.npz"))
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    found = log_probs(arrays, images, local="local" in name)
    per_class = arrays.get("log_prob_per_class")
    wanted = arrays["log_prob"][:, None] if per_class is None else per_class
    assert np.abs(found - wanted).max() < 1e-2


def read(tmp_path: Path, saved: nn.Module, monkeypatch: pytest.MonkeyPatch, new: bool) -> Any:
    """What becomes of the file of a model, in whose reading no class of the authors can help."""
    torch.save(saved, tmp_path / "model.th", _use_new_zipfile_serialization=new)
    for name in [name for name in sys.modules if name.split(".")[0] == "invglow"]:
        monkeypatch.delitem(sys.modules, name)
    model, fields = read_model(tmp_path / "model.th", "authors")
    assert not model.training
    assert not [name for name in sys.modules if name.split(".")[0] == "invglow"]
    return model, fields


@pytest.mark.parametrize("new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize("use_lu", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_glow_in_either_serialisation(
    tmp_path: Path,
    authors: Callable,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    use_lu: bool,
    new: bool,
) -> None:
    arrays = drawn(channels)
    model, fields = read(tmp_path, authors(arrays).glow(use_lu), monkeypatch, new)
    sizes = {"channels": channels, "depth": 2, "hidden": 8, "classes": 0}
    assert fields == {"name": "glow"} | sizes and type(model) is Glow
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    assert difference(model.log_prob(images), log_probs(arrays, images)[:, 0], channels) < 1e-2


@pytest.mark.parametrize("classes", [3, 7, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_class_conditional_model(
    tmp_path: Path,
    authors: Callable,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    classes: int,
) -> None:
    arrays = drawn(channels, classes=classes)
    saved = authors(arrays).with_classes(use_lu=classes != 7)
    model, fields = read(tmp_path, saved, monkeypatch, new=classes != 3)
    sizes = {"channels": channels, "depth": 2, "hidden": 8, "classes": classes}
    assert fields == {"name": "glow"} | sizes and type(model) is ClassConditionalGlow
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    wanted = log_probs(arrays, images)
    # Each class is another density, so that two in each other's place would show.
    assert (
        np.abs(wanted[:, :, None] - wanted[:, None]).max(0)[~np.eye(classes, dtype=bool)].min() > 1
    )
    assert difference(model.class_log_probs(images, 0.5), wanted, channels) < 1e-2
    marginal = np.logaddexp.reduce(wanted, axis=1) - math.log(classes)
    assert difference(model.log_prob(images), marginal, channels) < 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_fully_connected_model(
    tmp_path: Path, authors: Callable, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    arrays = drawn(channels, depth=2 if channels == 1 else 1, kind="dense")
    model, fields = read(tmp_path, authors(arrays).glow(), monkeypatch, new=True)
    sizes = {"channels": channels, "depth": 2 if channels == 1 else 1, "hidden": 8, "classes": 0}
    assert fields == {"name": "glow-dense"} | sizes and type(model) is DenseGlow
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    assert difference(model.log_prob(images), log_probs(arrays, images)[:, 0], channels) < 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_local_patches(
    tmp_path: Path, authors: Callable, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    arrays = drawn(channels, kind="local")
    model, fields = read(tmp_path, authors(arrays).local(), monkeypatch, new=channels == 3)
    sizes = {"channels": channels, "depth": 2, "hidden": 8, "classes": 0}
    assert fields == {"name": "glow-local"} | sizes and type(model) is LocalGlow
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    wanted = log_probs(arrays, images, local=True)[:, 0]
    assert difference(model.log_prob(images), wanted, channels) < 1e-2


def converted(tmp_path: Path, saved: object) -> Any:
    torch.save(saved, tmp_path / "model.th")
    return model_from_authors(read_torch_file(tmp_path / "model.th"))[0]


def test_a_wrapped_model_is_found(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_grey")
    state = converted(tmp_path, make.glow()).state_dict()
    for wrapped in (
        {"model": make.glow(), "epoch": 3},
        [make.glow()],
        nn.ModuleList([make.glow()]),
        nn.DataParallel(make.glow()),
    ):
        other = converted(tmp_path, wrapped).state_dict()
        assert all(torch.equal(other[name], value) for name, value in state.items())


def test_an_imported_model_shares_no_memory_between_its_weights(
    tmp_path: Path, authors: Callable
) -> None:
    """A file may store one tensor for several; trained further, each has to move by itself."""
    make = authors("glow_grey")
    saved = make.glow()
    norms = [part for part in saved.modules() if type(part).__name__ == "ActNorm"]
    first, second = [norm for norm in norms if norm.loc.numel() == 4]
    first.loc = second.loc
    weights = [weight.data_ptr() for weight in converted(tmp_path, saved).state_dict().values()]
    assert len(set(weights)) == len(weights)


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
    model = converted(tmp_path, make.with_gaussians(make.latents(), means, log_stds)).double()
    standard = converted(tmp_path, make.glow()).double()
    with torch.no_grad():
        v = standard.preprocess(images, 0.5)
        latents, log_dets = standard.transform(v)
        wanted = log_dets.clone()
        for i, z in enumerate(latents):
            mean = torch.from_numpy(means[i].astype(np.float64))
            std = torch.from_numpy(np.exp(log_stds[i].astype(np.float64)))
            wanted[:, i] += torch.distributions.Normal(mean, std).log_prob(z).sum(1)
        assert torch.allclose(model.encode(v)[1], wanted, rtol=1e-6, atol=1e-3)


Damage = Callable[[nn.Module, Any], None]


def part_of(model: nn.Module, name: str) -> nn.Module:
    """The first part of that class."""
    return next(part for part in model.modules() if type(part).__name__ == name)


def change(name: str, **attributes: Any) -> Damage:
    """Set attributes of the first part of that class."""

    def apply(model: nn.Module, make: Any) -> None:
        part = part_of(model, name)
        for attribute, value in attributes.items():
            for section in (part._parameters, part._buffers):
                section.pop(attribute, None)
            setattr(part, attribute, value)

    return apply


def mixing(name: str) -> Damage:
    """Something else in place of the first 1×1 convolution."""

    def apply(model: nn.Module, make: Any) -> None:
        step = next(p for p in model.modules() if type(p).__name__ == "InvertibleSequential"
                    and type(p.sequential[1]).__name__ == "InvPermute")  # fmt: skip
        step.sequential[1] = make.make(name)

    return apply


def additive(model: nn.Module, make: Any) -> None:
    coupling = part_of(model, "CouplingLayer")
    coupling.coef_extractor = make.make("AdditiveCoefs", module=coupling.coef_extractor.module)


def scales(count: int) -> Damage:
    def apply(model: nn.Module, make: Any) -> None:
        ends = list(model.prev)
        model.prev = nn.ModuleList((ends + ends)[:count])

    return apply


def without_actnorms(model: nn.Module, make: Any) -> None:
    sequences = [p.sequential for p in model.modules() if hasattr(p, "sequential")]
    del next(layers for layers in sequences if type(layers[-1]).__name__ == "CouplingLayer")[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (mixing("Shuffle"), r"shuffles its channels \(flow_permutation 'shuffle'\)"),
        (mixing("Identity"), r"does not mix its channels \(flow_permutation 'identity'\)"),
        (additive, r"additive couplings \(flow_coupling 'additive'\)"),
        (scales(2), r"3 scales \(L\), found 2"),
        (scales(4), r"3 scales \(L\), found 4"),
        (without_actnorms, "expected a ActNorm .* found a 'invglow.*InvPermute'"),
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
        (change("CatAsListNode", prev=nn.ModuleList()), r"3 scales \(L\), found 0"),
    ],
)
def test_models_that_differ_are_refused(
    tmp_path: Path, authors: Callable, damage: Damage, message: str
) -> None:
    make = authors("glow_grey")
    model = make.glow()
    damage(model, make)
    with pytest.raises(UserError, match=message) as caught:
        converted(tmp_path, model)
    assert "\n" not in str(caught.value)


def swapped_scales(model: nn.Module, make: Any) -> None:
    trunk = part_of(model, "CatChansNode")
    trunk.prev = nn.ModuleList([trunk.prev[i] for i in (1, 0, 2)])


def other_heads(model: nn.Module, make: Any) -> None:
    model.sequential[1] = nn.ReLU()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("ChunkByIndices", indices=(512, 1024)), r"has indices \(512, 1024\), where"),
        (change("ChunkByIndices", indices=(512, 768, 800)), r"has indices \(512, 768, 800\)"),
        (swapped_scales, "has index 1, where our Glow has 0"),
        (change("InvertibleClassConditional", i_classes=[1, 0, 2]), r"has i_classes \[1, 0, 2\]"),
        (change("NClassIndependentDist", class_means=nn.Parameter(torch.zeros(1, 7))), "sizes"),
        (other_heads, "expected an InvertibleClassConditional"),
        (change("CatChans", n_chans=None), None),
    ],
)
def test_class_conditional_models_that_differ_are_refused(
    tmp_path: Path, authors: Callable, damage: Damage, message: str | None
) -> None:
    make = authors(drawn(1, classes=3))
    model = make.with_classes()
    damage(model, make)
    if message is None:
        assert converted(tmp_path, model).classes == 3
        return
    with pytest.raises(UserError, match=message) as caught:
        converted(tmp_path, model)
    assert "\n" not in str(caught.value)


def test_heads_that_select_other_parts_are_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors(drawn(1, classes=3))
    model = make.with_classes()
    top = model.sequential[1].module.module_list[1].prev[0]
    top.prev = nn.ModuleList([top.prev[i] for i in (0, 2, 1)])
    with pytest.raises(UserError, match="has index 2, where our Glow has 1"):
        converted(tmp_path, model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("InvPermute", fixed=False), "has fixed False"),
        (change("InvPermute", weight=nn.Parameter(2 * torch.eye(1024))), "not orthogonal"),
        (
            change("InvPermute", weight=nn.Parameter(torch.zeros(4, 3))),
            r"square projection, found \(4, 3\)",
        ),
        (change("InvPermute", weight=nn.Parameter(math.nan * torch.eye(1024))), "not orthogonal"),
    ],
)
def test_fully_connected_models_that_differ_are_refused(
    tmp_path: Path, authors: Callable, damage: Damage, message: str
) -> None:
    make = authors("glow_dense_grey")
    model = make.glow()
    damage(model, make)
    with pytest.raises(UserError, match=message):
        converted(tmp_path, model)


def test_other_patches_are_refused(tmp_path: Path, authors: Callable) -> None:
    model = authors(drawn(1, kind="local")).local()
    model.patch_size = 16
    with pytest.raises(UserError, match="has patch_size 16, where our Glow has 8"):
        converted(tmp_path, model)


def test_classes_on_a_fully_connected_flow_are_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_dense_grey")
    sizes = {i: make.arrays[f"param/scale{i}/latent/loc"] for i in (1, 2, 3)}
    for i, zeros in sizes.items():
        for name in ("actnorm/loc", "actnorm/log_scale", "gaussian/mean", "gaussian/log_std"):
            make.arrays[f"param/class0/scale{i}/{name}"] = zeros
    with pytest.raises(UserError, match="fully connected and has classes"):
        converted(tmp_path, make.with_classes())


def test_a_bare_state_dict_is_refused_by_name(tmp_path: Path, authors: Callable) -> None:
    make = authors(drawn(1, classes=3))
    for model in (make.glow(), make.with_classes()):
        for saved in (model.state_dict(), {"state_dict": model.state_dict()}):
            with pytest.raises(UserError, match="a bare state dict"):
                converted(tmp_path, saved)


def test_a_sequence_of_something_else_is_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors(drawn(1, classes=3))
    for layers in ((), (nn.ReLU(),), (nn.ReLU(), nn.ReLU())):
        with pytest.raises(UserError, match="expected a flow and its classes, found "):
            converted(tmp_path, make.sequence(*layers))


def test_a_flow_alone_is_refused(tmp_path: Path, authors: Callable) -> None:
    trunk = authors(drawn(1, classes=3)).with_classes().sequential[0]
    with pytest.raises(UserError, match="a flow without the density of its latents"):
        converted(tmp_path, trunk)


def test_what_is_not_one_model_is_refused(tmp_path: Path, authors: Callable) -> None:
    make = authors("glow_grey")
    for thing, count in ((nn.ReLU(), 0), ([], 0), (7, 0), ([make.glow(), make.glow()], 2)):
        with pytest.raises(UserError, match=f"one whole model of the authors, found {count}"):
            converted(tmp_path, thing)


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
