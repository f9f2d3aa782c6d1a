"""Arithmetic of the networks: float32, TF32 or bfloat16; the likelihood is always in float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["full_precision", "precision_context"]

BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
"""Backends that may round float32 to TF32 in products and convolutions."""


@contextmanager
def precision_context(precision: str, device: torch.device) -> Iterator[None]:
    """Networks inside compute in ``fp32``, ``tf32`` (products on GPUs) or ``bf16`` (autocast).

    The previous settings are restored afterwards.
    """
    with (
        _tf32(precision == "tf32"),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A flow's own maps inside are in full precision, whatever that of the networks.

    Rounding inside a coupling network is harmless: the inverse evaluates the same network. Rounding
    of the invertible map itself could not be undone.
    """
    if not (torch.is_autocast_enabled(device.type) or any(b.allow_tf32 for b in BACKENDS)):
        return nullcontext()
    return _full_precision(device)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    with _tf32(False), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = [backend.allow_tf32 for backend in BACKENDS]
    try:
        for backend in BACKENDS:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(BACKENDS, before, strict=True):
            backend.allow_tf32 = value
