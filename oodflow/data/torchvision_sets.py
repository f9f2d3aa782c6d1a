"""The published datasets that torchvision knows, as whole tensors (S5).

torchvision finds the files, checks their sums and parses them; the arrays that its objects hold
are taken at once, no image passes through PIL.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oodflow.data.catalog import FOLDS, lookup
from oodflow.errors import UserError

__all__ = ["download", "enlarge", "read"]


def read(name: str, fold: str, data_dir: Path, limit: int = 0) -> tuple[Tensor, Tensor]:
    """Pixels (uint8 N×C×32×32) and labels (int64 N) of a fold, the first ``limit`` unless 0.

    Raises UserError where the files are absent, incomplete or damaged.
    """
    facts = lookup(name)
    folder = data_dir / facts.where
    if not folder.exists():
        raise UserError(f"{name} is not at {folder}. {facts.obtain}")
    try:
        opened = _opener(name, data_dir)(fold, False)
        pixels, labels = _arrays(name, opened)
    # Damaged files end in pickle's, scipy's, torch's and torchvision's own errors, a dozen kinds.
    except Exception as error:
        raise UserError(
            f"{name} at {folder} is incomplete or damaged ({_line(error)}). "
            f"Remove it and get it again. {facts.obtain}"
        ) from error
    problem = _problem(pixels, labels, facts.channels, facts.classes)
    if problem:
        raise UserError(f"{name} {fold} at {folder} {problem}. {facts.obtain}")
    chosen = slice(limit or None)
    return enlarge(pixels[chosen]), labels[chosen]


def download(name: str, data_dir: Path) -> None:
    """Download both folds quietly to where :func:`read` looks; UserError where that fails.

    Files that are there already with the right sums are not downloaded again.
    """
    silence = io.StringIO()
    try:
        # torchvision has no switch for its progress bars.
        with contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
            for fold in FOLDS:
                _opener(name, data_dir)(fold, True)
    except Exception as error:
        raise UserError(
            f"{name} could not be downloaded to {data_dir / lookup(name).where} ({_line(error)}); "
            "try again, or copy its files there"
        ) from error


def enlarge(pixels: Tensor) -> Tensor:
    """uint8 N×C×H×W resized bilinearly to 32×32 (S5); images of that size are returned as such."""
    if pixels.shape[2:] == (32, 32):
        return pixels.contiguous()
    # In parts, since all of MNIST in float32 would take half a gigabyte for a 60 MB result.
    parts = [
        F.interpolate(part.float(), size=(32, 32), mode="bilinear", align_corners=False)
        .round()
        .to(torch.uint8)
        for part in pixels.split(4096)
    ]
    return torch.cat(parts)


def _opener(name: str, data_dir: Path) -> Callable[[str, bool], Any]:
    """A function (fold, download) → torchvision's dataset object."""
    from torchvision import datasets

    if name == "svhn":
        root = data_dir / lookup(name).where
        return lambda fold, fetch: datasets.SVHN(root, split=fold, download=fetch)
    kind = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
    }[name]
    return lambda fold, fetch: kind(data_dir, train=fold == "train", download=fetch)


def _arrays(name: str, opened: Any) -> tuple[Tensor, Tensor]:
    """Pixels N×C×H×W and labels N of torchvision's dataset object."""
    if name == "svhn":
        pixels = torch.from_numpy(opened.data)
        # A file with one image has a label without an axis.
        return pixels, torch.from_numpy(opened.labels).reshape(-1)
    pixels = torch.as_tensor(opened.data)
    labels = torch.as_tensor(opened.targets, dtype=torch.int64)
    return (pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels.unsqueeze(1)), labels


def _problem(pixels: Tensor, labels: Tensor, channels: int, classes: int) -> str:
    """What is wrong with arrays that could be read, or "" (MNIST's files carry no check sum)."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != channels:
        return f"holds {pixels.dtype} of shape {tuple(pixels.shape)} instead of 8-bit images"
    if len(pixels) != len(labels):
        return f"holds {len(pixels)} images but {len(labels)} labels"
    if ((labels < 0) | (labels >= classes)).any():
        return f"holds labels outside 0 to {classes - 1}"
    return ""


def _line(error: Exception) -> str:
    """An error of another library as part of one line."""
    if "download=True" in str(error):
        # torchvision's advice is about its own arguments, which a user does not see.
        return "a file is absent or its check sum is wrong"
    return " ".join(str(error).split()) or type(error).__name__
