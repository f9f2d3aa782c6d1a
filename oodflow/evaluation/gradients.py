"""Squared norms of the gradients of log p(x), layer by layer, for the score ``gradient``."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from oodflow.evaluation.scoring import evaluation_mode
from oodflow.models.form import computed_as
from oodflow.models.likelihood import NOISE_FREE, LikelihoodModel

__all__ = ["gradient_table", "layers_of"]

NUMBERS = 50_000_000
"""Numbers of gradients that are kept at once: images × parameters."""


def layers_of(model: LikelihoodModel) -> dict[str, list[str]]:
    """Module → the names of the parameters that it holds itself, in the model's order."""
    layers: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(name.rpartition(".")[0] or "model", []).append(name)
    return layers


def gradient_table(
    model: LikelihoodModel,
    pixels: Tensor,
    labels: Tensor | None,
    *,
    device: torch.device | str,
    on_progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """A row per uint8 image N×C×H×W: ``index``, ``label``, and a column ``gradient/<module>`` each.

    These are ‖∇ log p(x)‖² over the parameters that the module itself holds, of the noise-free
    log p(x) in nats, float64. One backward pass serves a whole batch (``torch.func``).
    """
    parameters: dict[str, Tensor] = {
        name: each for name, each in model.named_parameters() if each.requires_grad
    }
    fixed = dict(model.named_buffers())
    layers = layers_of(model)

    def log_prob(given: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, (given, fixed), (image[None], NOISE_FREE)).sum()

    def norms(given: dict[str, Tensor], image: Tensor) -> Tensor:
        found = grad(log_prob)(given, image)
        squares = {name: each.double().square().sum() for name, each in found.items()}
        return torch.stack([sum(squares[name] for name in names) for names in layers.values()])

    size = max(NUMBERS // max(sum(each.numel() for each in parameters.values()), 1), 1)
    values = []
    # Gradients that are written by hand, and fused attention, have no form for single images.
    with evaluation_mode(model), computed_as("plain"), sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size].to(device)
            values.append(vmap(norms, in_dims=(None, 0))(parameters, batch).detach().cpu())
            if on_progress is not None:
                on_progress(start + len(batch))
    columns = torch.cat(values).numpy().T
    given = np.full(len(pixels), -1) if labels is None else labels.cpu().numpy()
    return pd.DataFrame(
        {"index": np.arange(len(pixels)), "label": given.astype(np.int64)}
        | {f"gradient/{name}": each for name, each in zip(layers, columns, strict=True)}
    )
