"""The public formats of checkpoints, and reading one into a model of ours."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from oodflow.errors import UserError, unknown_name
from oodflow.foreign import glow_pytorch, ml_tarflow, pixelcnn_pp
from oodflow.foreign.authors import model_from_authors
from oodflow.foreign.pickles import read_torch_file, state_dict_of
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.pixelcnn import PixelCNN
from oodflow.models.tarflow import TarFlow

__all__ = ["FORMATS", "read_model"]

Read = tuple[LikelihoodModel, dict[str, Any]]
"""A model and the fields of its description: name, channels, depth, hidden, …."""


def _authors(path: Path) -> Read:
    return model_from_authors(read_torch_file(path))


def _glow_pytorch(path: Path) -> Read:
    public = state_dict_of(read_torch_file(path))
    with _shapes_of("Glow-PyTorch"):
        state = glow_pytorch.convert_public_state(public)
        channels, depth, hidden = glow_pytorch.infer_public_shape(public)
    fields = {"name": "glow-conditional", "channels": channels, "depth": depth, "hidden": hidden}
    return _loaded(ConditionalGlow(channels, depth, hidden), state), fields


def _pixelcnn_pp(path: Path) -> Read:
    public = state_dict_of(read_torch_file(path))
    with _shapes_of("PixelCNN++"):
        state = pixelcnn_pp.convert_public_state(public)
        shape = pixelcnn_pp.infer_public_shape(public)
    fields = {
        "name": "pixelcnn",
        "channels": shape["channels"],
        "depth": shape["blocks"],
        "hidden": shape["filters"],
        "mixtures": shape["mixtures"],
    }
    return _loaded(PixelCNN(**shape), state), fields


def _tarflow(path: Path) -> Read:
    public = state_dict_of(read_torch_file(path))
    with _shapes_of("TarFlow"):
        state = ml_tarflow.convert_public_state(public)
        shape = ml_tarflow.infer_public_shape(public)
    fields = {
        "name": "tarflow",
        "channels": shape["channels"],
        "depth": shape["depth"],
        "hidden": shape["width"],
        "patch": shape["patch"],
        "layers": shape["layers"],
    }
    return _loaded(TarFlow(**shape), state), fields


@contextmanager
def _shapes_of(what: str) -> Iterator[None]:
    """A conversion goes by names; tensors of the wrong rank under the right names end it early."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the names are those of {what}, the shapes are not ({' '.join(str(error).split())})"
        ) from None


def _loaded(model: LikelihoodModel, state: Mapping[str, Tensor]) -> LikelihoodModel:
    model.load_state_dict(state)
    return model.eval()


FORMATS: Mapping[str, Callable[[Path], Read]] = {
    "authors": _authors,
    "glow-pytorch": _glow_pytorch,
    "pixelcnn-pp": _pixelcnn_pp,
    "tarflow": _tarflow,
}
"""By the name of the format, what reads a file of it; see :func:`read_model`."""


def read_model(path: Path, format: str) -> Read:
    """The model of a checkpoint, on the CPU and in eval mode, and the fields of its description.

    The fields are name, channels, depth (steps or blocks) and hidden (channels or filters); the
    authors' models have classes (0: none) as well, PixelCNN++ has mixtures, TarFlow patch and
    layers. They are read from the shapes of the weights.

    Raises UserError with one line that names the file, for an unknown format and for everything
    that is not a checkpoint of the format; nothing of the file is ever run.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    try:
        return FORMATS[format](path)
    except UserError as problem:
        line = str(problem)
        raise UserError(line if line.startswith(str(path)) else f"{path}: {line}") from None
