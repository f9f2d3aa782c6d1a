"""How a model is computed. All forms give the same numbers, up to rounding.

The caller chooses the form; models and checkpoints do not depend on it. It is read when the forward
pass runs and then holds for the backward pass too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from oodflow.errors import unknown_name

__all__ = ["FORMS", "computed_as", "current_form", "run"]

FORMS = ("fused", "recomputed", "plain")
"""``fused``: layers folded into each other, with gradients written by hand. ``recomputed``: the
same, with activations computed again in the backward pass instead of being kept. ``plain``: one
layer after another."""

_FORM: ContextVar[str] = ContextVar("form", default="fused")


def current_form() -> str:
    """The one of :data:`FORMS` that the innermost :func:`computed_as` names; ``fused`` outside."""
    return _FORM.get()


@contextmanager
def computed_as(form: str) -> Iterator[None]:
    """Forward passes inside are computed in this form; UserError for an unknown one.

    >>> with computed_as("plain"):
    ...     current_form()
    'plain'
    """
    if form not in FORMS:
        raise unknown_name("form", form, FORMS)
    token = _FORM.set(form)
    try:
        yield
    finally:
        _FORM.reset(token)


def run(layer: Callable[..., Any], *inputs: Any) -> Any:
    """``layer(*inputs)``; in the recomputed form its activations are not kept, only its inputs.

    Random numbers that the layer draws are the same the second time.
    """
    if current_form() != "recomputed" or not torch.is_grad_enabled():
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False)
