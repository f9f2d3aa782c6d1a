"""The device that models run on."""

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path

import torch

from oodflow.errors import UserError

__all__ = ["available_device", "busy"]


LOOKS = 10
BETWEEN_LOOKS = 0.01
"""Seconds; each look is at one instant."""

# Of glibc's malloc.h: which option, and the largest value of the second that it takes.
_TRIM_THRESHOLD, _KEPT = -1, 1 << 30
_MMAP_THRESHOLD, _LARGE = -3, 1 << 25


def available_device(name: str) -> torch.device:
    """The device of a name, for ``auto`` the first GPU, else the CPU; UserError for an absent one.

    For the CPU the process keeps memory that it frees, up to 1 GiB.

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
    if device.type == "cpu":
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Tensors of a layer then lie where those of the last one were.

    By itself glibc gives them back to the system, which hands out zeroed pages at the next layer;
    that took up to a third of the time of scoring.
    """
    # Other C libraries have no such function.
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGE)


def busy(device: torch.device, threads: int) -> str:
    """Words on what computes beside us where so many threads more are too many, or ""."""
    cores, others = os.cpu_count() or 1, _computing_now() - 1
    if device.type != "cpu" or others + threads <= cores:
        return ""
    return f"this machine is busy (others compute on {min(others, cores)} of its {cores} cores)"


def _computing_now() -> int:
    """Threads that have or wait for a core, all the time for a moment; 0 where nothing says so.

    The load of the last minute would count what this very command has done before.
    """
    counts = []
    for _ in range(LOOKS):
        try:
            counts.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]))
        except (OSError, IndexError, ValueError):
            return 0
        time.sleep(BETWEEN_LOOKS)
    return min(counts)
