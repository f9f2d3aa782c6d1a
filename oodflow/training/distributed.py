"""Several processes for one training, as ``torchrun`` starts them; one is the ordinary case.

Each process is a *rank*. All make the same joint batch, each takes its share of the images, and the
weights stay alike because each update is made of the gradients of all. What a loss averages, it
averages over the images of all ranks (:func:`mean`), so the numbers are those of one process with
the joint batch. A gradient is the average of the ranks' own (:func:`average`).

That is done by hand and not by ``DistributedDataParallel``. Its hooks expect from every rank one
backward pass an update. Stabilisation (S4.3) computes an update a second time, skips it, or leaves
a rank without an image to compute; the wrapper would hang there.

Only dropout differs from that of one process: each rank draws its own units.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oodflow.errors import ResourceError, UserError

__all__ = [
    "average",
    "broadcast",
    "broadcast_module",
    "gather",
    "launched",
    "mean",
    "process_group",
    "rank",
    "total",
    "world",
]

PATIENCE = timedelta(days=2)
"""How long a rank waits for another, which may be evaluating. The death of a rank is noticed at
once, and ``torchrun`` ends the others."""


def launched() -> int:
    """How many processes the environment says were started for this training."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the ranks that ``torchrun`` started, for as long as the context lasts.

    Yields the rank's own device: ``device``, or where that is a GPU the one of LOCAL_RANK. Without
    ``torchrun`` nothing happens. Raises UserError where there are fewer GPUs than ranks.
    """
    if launched() == 1:
        yield device
        return
    backend = "cpu:gloo"
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        count = torch.cuda.device_count()
        if local >= count:
            raise UserError(f"there are {count} GPUs here; start at most {count} processes")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    # Its functions bind the group of their import as default. Imported later, as parts of torch do,
    # they would keep this group and its threads alive, which can abort the process at its exit.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes take part; 1 outside of :func:`process_group`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum of the ranks' tensors, identical on all ranks; one process gets its own back.

    >>> total(torch.tensor([2, 3])).tolist()
    [2, 3]
    """
    if world() == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed


def mean(values: Tensor) -> Tensor:
    """This rank's part in the mean over the values of all ranks: ranks·Σ own values / all values.

    The average of the ranks' parts is that mean. A rank without values has a part of 0.

    >>> mean(torch.tensor([1.0, 2.0])).item()
    1.5
    """
    if world() == 1:
        return values.mean()
    count = total(torch.tensor(values.numel(), dtype=values.dtype, device=values.device))
    return values.sum() * (world() / count)


def average(values: Tensor) -> None:
    """Put the average of the ranks' tensors in place of each of them."""
    if world() > 1:
        dist.all_reduce(values)
        values.div_(world())


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        # Only contiguous tensors can be sent, whatever the memory format.
        sent = tensor.contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)


def broadcast(value: Any) -> Any:
    """The value that rank 0 passes, on every rank; the values of the others are ignored.

    Raises ResourceError where rank 0 has ended instead.
    """
    if world() == 1:
        return value
    values = [value]
    with _mourning("the first one"):
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gather(value: Any) -> list[Any]:
    """The values of all ranks in their order on rank 0, nothing on the others.

    Raises ResourceError where a rank has ended instead.
    """
    if world() == 1:
        return [value]
    values = [None] * world() if rank() == 0 else None
    with _mourning("another one"):
        dist.gather_object(value, values, dst=0)
    return values or []


@contextmanager
def _mourning(who: str) -> Iterator[None]:
    """Turn the error that torch raises where another rank has ended into a line that says so."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            f"process {rank()} of the training ends because {who} ended; see its message"
        ) from error
