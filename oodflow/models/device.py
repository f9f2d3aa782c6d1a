"""The device that models run on."""

import os

import torch

from oodflow.errors import UserError

__all__ = ["available_device", "busy"]


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


def busy(device: torch.device, threads: int) -> str:
    """Words on the load where so many threads more are too many for this machine's cores, or ""."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if device.type != "cpu" or load + threads <= 1.5 * cores:
        return ""
    return f"this machine is busy (load {load:.1f} on {cores} cores)"
