"""The device that models run on."""

import torch

from oodflow.errors import UserError

__all__ = ["available_device"]


def available_device(name: str) -> torch.device:
    """The device of a name, for ``auto`` the first GPU, else the CPU; UserError for an absent one.

    >>> available_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not available here; try cpu") from error
    return device
