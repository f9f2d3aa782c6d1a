"""What the processes of a call are doing, seen from outside.

Every process of a call has its mark in the environment, so that none of another call is touched.
"""

import contextlib
import os
from pathlib import Path


def marked(mark: str) -> set[int]:
    """Ids of the living processes that have the mark in their environment."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            living = (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if living and f"={mark}\0".encode() in (place / "environ").read_bytes():
                found.add(int(place.name))
    return found


def opened(process: int) -> list[Path]:
    """What a process has opened: files, and sockets as ``socket:[NUMBER]``; none if it is over."""
    found = []
    with contextlib.suppress(OSError):
        for handle in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                found.append(Path(os.readlink(f"/proc/{process}/fd/{handle}")))
    return found


def trainers(workspace, processes: set[int]) -> list[int]:
    """Those of the processes that have a training of the workspace in hand."""
    locks = set(workspace.folder.glob(".oodflow/*/lock"))
    return [process for process in sorted(processes) if locks & set(opened(process))]


def two_under_way(workspace) -> bool:
    """Whether two trainings are in hand, each with a checkpoint."""
    return len(list(workspace.folder.glob(".oodflow/*/training.safetensors"))) == 2
