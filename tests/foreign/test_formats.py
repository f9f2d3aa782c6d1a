"""Checkpoints of the public implementations become models of ours, with their numbers."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.formats import FORMATS, read_model

MODELS_PARITY = Path(__file__).parents[1] / "models" / "parity"
AUTHORS_FILE = Path(__file__).parent / "parity" / "authors_format_glow_K2_h16.th"
BOTH = pytest.mark.parametrize("new", [True, False], ids=["new", "old"])


def parity(name: str) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """The public state dict of a parity file, and its arrays."""
    arrays = dict(np.load(MODELS_PARITY / f"{name}.npz"))
    state = {
        key.removeprefix("state/"): torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith("state/")
    }
    return state, arrays


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
@BOTH
def test_pixelcnn_agrees_with_the_public_implementation(
    tmp_path: Path, new: bool, spelling: str, prefix: str
) -> None:
    state, arrays = parity("pixelcnnpp_grey")
    if spelling == "parametrizations":
        norm = "parametrizations.weight.original"
        state = {
            name.replace("weight_g", f"{norm}0").replace("weight_v", f"{norm}1"): value
            for name, value in state.items()
        }
    file = tmp_path / "pcnn.pth"
    torch.save(
        {prefix + name: value for name, value in state.items()},
        file,
        _use_new_zipfile_serialization=new,
    )
    model, fields = read_model(file, "pixelcnn-pp")
    sizes = {"channels": 1, "depth": 1, "hidden": 8, "mixtures": 3}
    assert fields == {"name": "pixelcnn"} | sizes
    assert not model.training
    with torch.no_grad():
        found = model.log_prob(torch.from_numpy(arrays["images_uint8_nchw"]))
    assert np.abs(found.numpy() - arrays["log_prob"]).max() < 1e-2


@BOTH
def test_glow_pytorch_agrees_with_the_public_implementation(tmp_path: Path, new: bool) -> None:
    state, arrays = parity("glow_conditional_rgb")
    file = tmp_path / "glow.pt"
    torch.save({"model": state}, file, _use_new_zipfile_serialization=new)
    model, fields = read_model(file, "glow-pytorch")
    sizes = {"channels": 3, "depth": 2, "hidden": 16}
    assert fields == {"name": "glow-conditional"} | sizes
    assert model.initialised and not model.training
    with torch.no_grad():
        found = model.log_prob(torch.from_numpy(arrays["images_uint8_nchw"])).double().numpy()
    assert np.abs(found + 3072 * math.log(256) - arrays["log_prob"]).max() < 1e-2


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tarflow_rgb", {"channels": 3, "depth": 3, "hidden": 64, "patch": 4, "layers": 2}),
        ("tarflow_grey", {"channels": 1, "depth": 2, "hidden": 64, "patch": 2, "layers": 1}),
    ],
)
@BOTH
def test_tarflow_agrees_with_the_public_implementation(
    tmp_path: Path, new: bool, name: str, sizes: dict[str, int], prefix: str
) -> None:
    state, arrays = parity(name)
    tokens = len(state["var"])
    masks = {f"blocks.{i}.attn_mask": torch.ones(tokens, tokens) for i in range(sizes["depth"])}
    file = tmp_path / "tarflow.pth"
    torch.save(
        {prefix + key: value for key, value in (state | masks).items()},
        file,
        _use_new_zipfile_serialization=new,
    )
    model, fields = read_model(file, "tarflow")
    assert fields == {"name": "tarflow"} | sizes
    assert not model.training
    with torch.no_grad():
        found = model.log_prob(torch.from_numpy(arrays["images_uint8_nchw"]))
    assert np.abs(found.numpy() - arrays["log_prob"]).max() < 1e-2


def test_a_tarflow_with_classes_is_the_unlabelled_one(tmp_path: Path) -> None:
    """The mean of the classes' embeddings in every token: opposite ones leave the numbers alone."""
    state, arrays = parity("tarflow_grey")
    embedding = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "tarflow.pth"
    images = torch.from_numpy(arrays["images_uint8_nchw"])
    found = []
    for other in (-embedding, embedding):
        classes = torch.cat((embedding, other))
        torch.save(state | {f"blocks.{i}.class_embed": classes for i in (0, 1)}, file)
        with torch.no_grad():
            found.append(read_model(file, "tarflow")[0].log_prob(images).numpy())
    assert np.abs(found[0] - arrays["log_prob"]).max() < 1e-2
    assert np.abs(found[1] - arrays["log_prob"]).min() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.pos_embed": None}, "lacks blocks.1.pos_embed"),
        ({"blocks.0.extra": torch.zeros(2)}, "also has blocks.0.extra"),
        ({"blocks.0.proj_out.weight": torch.zeros(4, 64)}, "shift and do not scale"),
        ({"blocks.0.pos_embed": torch.zeros(4096, 64)}, "4096 patches of 4 values"),
        ({"blocks.0.proj_in.weight": torch.zeros(64, 6)}, "256 patches of 6 values"),
        ({"blocks.1.proj_in.bias": torch.zeros(63)}, r"the shape \(63,\); expected \(64,\)"),
        ({"var": torch.full((256, 4), 0.9)}, "var is not one"),
    ],
)
def test_other_tarflows_are_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    state = {k: v for k, v in (parity("tarflow_grey")[0] | changes).items() if v is not None}
    file = tmp_path / "tarflow.pth"
    torch.save(state, file)
    with pytest.raises(UserError, match=message):
        read_model(file, "tarflow")


def test_an_unknown_format_is_named_with_those_there_are() -> None:
    with pytest.raises(
        UserError, match="unknown format 'author'; available: authors, glow-pytorch"
    ):
        read_model(AUTHORS_FILE, "author")


@pytest.mark.parametrize("format", FORMATS)
def test_every_error_names_the_file_once_and_has_one_line(tmp_path: Path, format: str) -> None:
    empty = tmp_path / "empty.pt"
    torch.save({"a": torch.zeros(2)}, empty)
    for file in (empty, tmp_path / "absent.pt"):
        with pytest.raises(UserError) as caught:
            read_model(file, format)
        line = str(caught.value)
        assert line.startswith(f"{file}: ") and line.count(str(file)) == 1 and "\n" not in line


@pytest.mark.parametrize("format", ["glow-pytorch", "pixelcnn-pp", "tarflow"])
def test_a_whole_model_is_no_state_dict(format: str) -> None:
    with pytest.raises(UserError, match=r"an object of 'invglow.invertible.graph.CatAsListNode'"):
        read_model(AUTHORS_FILE, format)


def flat(value: Tensor) -> Tensor:
    return value.flatten()


def scalar(value: Tensor) -> Tensor:
    return torch.tensor(1.0)


def longer(value: Tensor) -> Tensor:
    return torch.cat((value[None], value[None]))[None]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("reshape", [flat, scalar, longer])
@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("glow-pytorch", "glow_conditional_rgb"),
        ("pixelcnn-pp", "pixelcnnpp_grey"),
        ("tarflow", "tarflow_grey"),
    ],
)
def test_tensors_of_other_shapes_under_the_right_names_are_refused(
    tmp_path: Path, format: str, name: str, reshape: Callable[[Tensor], Tensor]
) -> None:
    state = parity(name)[0]
    file = tmp_path / "model.pt"
    torch.save({key: reshape(value) for key, value in state.items()}, file)
    with pytest.raises(UserError, match=str(file)):
        read_model(file, format)
