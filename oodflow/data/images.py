"""Images in memory: one uint8 tensor of a fold, its labels and the digest of both."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from oodflow.data.catalog import FOLDS, lookup
from oodflow.errors import UserError

__all__ = ["Images", "digest_of", "download", "load"]


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one fold of a dataset."""

    name: str
    fold: str
    pixels: Tensor
    """uint8 N×C×32×32."""
    labels: Tensor | None
    """int64 N, or None where the dataset has no labels."""
    digest: str
    """Identity of the content, whatever its name: :func:`digest_of` pixels and labels."""


def digest_of(pixels: Tensor, labels: Tensor | None) -> str:
    """SHA-256 over shape, pixels and labels, the first 16 hexadecimal digits.

    >>> import torch
    >>> digest_of(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None)
    'a74042a8cdeb6384'
    """
    # The header tells apart equal bytes of other shapes, and absent labels from an absent image.
    header = json.dumps({"shape": list(pixels.shape), "labels": labels is not None})
    running = hashlib.sha256(header.encode())
    for content in (pixels, labels):
        if content is not None:
            running.update(content.contiguous().numpy().data)
    return running.hexdigest()[:16]


def load(name: str, fold: str, data_dir: Path, limit: int = 0) -> Images:
    """The images of one fold, the first ``limit`` of them unless it is 0.

    Raises UserError for an unknown dataset or fold, a negative limit, and files that are absent
    or damaged.
    """
    facts = lookup(name)
    if fold not in FOLDS:
        raise UserError(f"unknown fold {fold!r} of {name}; available: {', '.join(FOLDS)}")
    if limit < 0:
        raise UserError(f"limit is {limit}; it must be 0 (all images) or a number of images")
    labels: Tensor | None
    if facts.where:
        from oodflow.data import torchvision_sets

        pixels, labels = torchvision_sets.read(name, fold, data_dir, limit)
    else:
        from oodflow.data import sketch

        pixels, labels = sketch.read(name, fold, data_dir, limit)
    return Images(name, fold, pixels, labels, digest_of(pixels, labels))


def download(name: str, data_dir: Path) -> None:
    """Put a dataset's files where :func:`load` looks for them, both folds.

    Raises UserError where that fails. The generated datasets are generated and cached instead.
    """
    if lookup(name).where:
        from oodflow.data import torchvision_sets

        torchvision_sets.download(name, data_dir)
    else:
        from oodflow.data import sketch

        for fold in FOLDS:
            sketch.read(name, fold, data_dir)
