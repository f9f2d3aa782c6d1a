"""Measures the peak rates of a device, and the operations and memory of a computation."""

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from oodflow.models.precision import precision_context

__all__ = [
    "arithmetic",
    "attention_kernel",
    "bandwidth",
    "kept_bytes",
    "matmul_peak",
    "now",
    "peak_memory",
]

SIZES = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices by which the peak is measured."""

COPIED = {"cpu": 2**28, "cuda": 2**30}
"""Bytes that are copied to measure the bandwidth: more than any cache holds."""

REPEATS = 5

ATTENTION = "_scaled_dot_product_"
"""What the names of PyTorch's attention kernels begin with."""

ATTENTION_ON_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(
            gradient, query, key, value
        )
    ),
}
"""The products in it, which PyTorch counts on GPUs alone: of all pairs of tokens, masked or not."""


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    work()
    for _ in range(REPEATS):
        begin = now(device)
        work()
        best = min(best, now(device) - begin)
    return best


def matmul_peak(device: torch.device, precision: str = "fp32", size: int = 0) -> float:
    """Operations a second, FLOP/s, of a product of square matrices in a precision, at best.

    The product is computed once as a matrix product and once as a 1×1 convolution, which other
    libraries implement: on some CPUs the second takes half the time.
    """
    size = size or SIZES[device.type]
    left, right = torch.randn(2, size, size, device=device)
    # The same numbers as 32 images of size/32 pixels in channels_last.
    images = left.view(32, size // 32, 1, size).permute(0, 3, 1, 2)
    kernel = right.t()[:, :, None, None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), precision_context(precision, device):
        forms = (lambda: left @ right, lambda: F.conv2d(images, kernel))
        return 2 * size**3 / min(_best_seconds(form, device) for form in forms)


def bandwidth(device: torch.device, size: int = 0) -> float:
    """Bytes a second that are read and written when a large tensor is copied, at best."""
    source = torch.ones(size or COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)


def arithmetic(work: Callable[[], object]) -> int:
    """Operations, FLOP, of products, convolutions and attention in some work and its backward pass.

    >>> image, kernel = torch.zeros(1, 3, 8, 8), torch.zeros(5, 3, 1, 1)
    >>> arithmetic(lambda: F.conv2d(image, kernel)) == 2 * 64 * 3 * 5
    True
    """
    return sum(_operations(work).values())


def attention_kernel(work: Callable[[], object]) -> str:
    """The kernel that PyTorch chooses here for the attention in some work; "" without attention.

    >>> query, key, value = torch.zeros(3, 1, 1, 8, 16)
    >>> attention_kernel(lambda: F.scaled_dot_product_attention(query, key, value))
    'flash attention for cpu'
    """
    names = [name for name in _operations(work) if name.startswith(ATTENTION)]
    return " and ".join(
        name.removeprefix(ATTENTION).replace("_", " ").replace("efficient", "memory-efficient")
        for name in names
        if not name.endswith("backward")
    )


def _operations(work: Callable[[], object]) -> dict[str, int]:
    """FLOP by the name of PyTorch's operation."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPUS) as counter:
        work()
    counted = counter.get_flop_counts().get("Global", {})
    return {str(operation).removeprefix("aten."): flop for operation, flop in counted.items()}


def kept_bytes(work: Callable[[], object], parameters: set[int]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once.

    ``parameters`` are the data pointers of storages that do not count.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Held until all is counted: a storage that is freed gives its place to another.
        result = work()
    del result
    return sum(size for place, size in kept.items() if place not in parameters)


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of the tensors that some work makes and still holds at its highest moment.

    >>> zeros = lambda: torch.zeros(250)
    >>> peak_memory(lambda: (zeros(), zeros()), torch.device("cpu"))
    2000
    >>> peak_memory(lambda: [zeros().sum() for _ in range(2)], torch.device("cpu"))
    1008
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorages() as live:
        work()
    return live.highest


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages from when an operation returns them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = 0
        self._used = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Given tensors are older than this, or known; results may share memory with them.
        self._meet((args, kwargs), new=False)
        results = function(*args, **(kwargs or {}))
        self._meet(results, new=True)
        return results

    def _meet(self, tree: Any, new: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            place, size = storage._cdata, storage.nbytes() if new else 0
            if place not in self._known:
                self._known.add(place)
                self._used += size
                self.highest = max(self.highest, self._used)
                weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._used -= size
