"""A model run over the images of a dataset: the score table of `evaluation.score_table`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.fused import folded_once
from oodflow.models.likelihood import NOISE_FREE, LikelihoodModel
from oodflow.models.precision import precision_context

__all__ = ["NOISE_CHUNK", "SMALLEST_BATCH", "dequantisation_noise", "score_images"]

SMALLEST_BATCH = 16
"""Fewer images are filled up. Convolution libraries compute a few images by other code than many: a
quick Glow's log p was 0.002 nats off for an image alone, a smaller one's 0.001 nats for up to 8."""

NOISE_CHUNK = 32
"""Images whose dequantisation noise is drawn together; a part of the noise's definition."""


def dequantisation_noise(
    start: int, stop: int, image_shape: tuple[int, int, int], seed: int
) -> Tensor:
    """Noise u ~ U[0, 1), in levels, for the images ``start`` … ``stop`` − 1: float32, on the CPU.

    Image k has row k mod 32 of chunk k // 32. A chunk is one draw of 32 images from torch's CPU
    generator, seeded with 32 bits that numpy's SeedSequence mixes from (seed, chunk). The noise of
    an image hence depends on the seed and its position only: not on the batch it is scored in, nor
    on how many images there are.

    >>> whole = dequantisation_noise(0, 70, (1, 2, 2), seed=1)
    >>> torch.equal(whole[30:65], dequantisation_noise(30, 65, (1, 2, 2), seed=1))
    True
    """
    first = start // NOISE_CHUNK
    last = -(-stop // NOISE_CHUNK)
    drawn = []
    for chunk in range(first, last):
        state = np.random.SeedSequence((seed, chunk)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        drawn.append(torch.rand((NOISE_CHUNK, *image_shape), generator=generator))
    offset = first * NOISE_CHUNK
    return torch.cat(drawn)[start - offset : stop - offset]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards each submodule has the mode it had before."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def score_images(
    model: LikelihoodModel,
    pixels: Tensor,
    labels: Tensor | None,
    *,
    device: torch.device | str,
    batch_size: int = 250,
    seed: int = 0,
    first: int = 0,
    dequantised: bool = True,
    precision: str = "fp32",
    on_progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Score uint8 images N×C×H×W in their order; one row per image, log p in nats.

    Columns: ``index`` 0 … N − 1 and ``label`` (−1 where there is none), int64; ``log_prob``, the
    noise-free log p(x) (S4.5), and for models with scales its contributions ``scale1`` …
    ``scaleS`` (Eq. 3); of flows c_i = ``prior``i + ``logdet``i, the density of the latents and the
    rest of each; ``log_prob_dequantised`` with one sample of :func:`dequantisation_noise` (for
    BPD, S7.1); and ``predicted``, the likeliest class under a class-conditional model, int64.
    Log-likelihoods are float64; non-finite values stay as they are.

    ``first`` is the ``index`` of the first image where they are a part of more; an image's noise
    depends on it. Without ``dequantised`` that column is not there, and the model runs once and not
    twice. ``precision`` is that of the networks, one of :data:`oodflow.experiment.PRECISIONS`;
    validations use that of the training, final scores float32.

    ``device`` is where the model lives; ``on_progress`` gets the number of images
    done so far, as each batch is queued there. Raises UserError for images the model cannot take.
    """
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != tuple(model.image_shape):
        raise UserError(
            f"the model scores uint8 images of shape N×{_shape(model.image_shape)}, "
            f"but got {str(pixels.dtype).removeprefix('torch.')} {_shape(pixels.shape)}"
        )
    count = len(pixels)
    if count == 0:
        raise UserError("there are no images to score")
    if labels is not None and len(labels) != count:
        raise UserError(f"{count} images have {len(labels)} labels; give one label an image")

    noisy = dequantised and model.uses_noise
    clean_batches, prior_batches, noisy_batches = [], [], []
    predicted = []
    arithmetic = precision_context(precision, torch.device(device))
    with evaluation_mode(model), arithmetic, torch.inference_mode(), folded_once():
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            images = _filled(pixels[start:stop]).to(device, non_blocking=True)
            contributions, priors = model.terms(images, NOISE_FREE)
            clean_batches.append(contributions[: stop - start])
            if priors is not None:
                prior_batches.append(priors[: stop - start])
            if isinstance(model, ClassConditionalGlow):
                classes = model.class_log_probs(images, NOISE_FREE).argmax(1)
                predicted.append(classes[: stop - start])
            if noisy:
                noise = dequantisation_noise(first + start, first + stop, model.image_shape, seed)
                noise = _filled(noise).to(device, non_blocking=True)
                noisy_batches.append(model(images, noise)[: stop - start])
            if on_progress is not None:
                on_progress(stop)
        # The device may still be computing: it is waited for here, once, not in every batch.
        clean_values = torch.cat(clean_batches)
        noisy_values = torch.cat(noisy_batches) if noisy else clean_values
        parts = [clean_values, noisy_values] + ([torch.cat(prior_batches)] if prior_batches else [])
        together = torch.stack(parts).cpu()
    # Summed in float64 on the CPU: not every device has it, and it keeps Σ c_i = log p exactly.
    clean, with_noise, *prior = together.double().numpy()

    given = np.full(count, -1) if labels is None else labels.cpu().numpy()
    columns = {
        "index": np.arange(first, first + count, dtype=np.int64),
        "label": given.astype(np.int64),
        "log_prob": clean.sum(axis=1),
    }
    if model.scales > 1:
        columns |= {f"scale{i + 1}": clean[:, i] for i in range(model.scales)}
    for values in prior:
        columns |= {f"prior{i + 1}": values[:, i] for i in range(model.scales)}
        with np.errstate(invalid="ignore"):
            columns |= {f"logdet{i + 1}": each for i, each in enumerate((clean - values).T)}
    if predicted:
        columns["predicted"] = torch.cat(predicted).cpu().numpy()
    if dequantised:
        columns["log_prob_dequantised"] = with_noise.sum(axis=1)
    return pd.DataFrame(columns)


def _filled(batch: Tensor) -> Tensor:
    """A batch of :data:`SMALLEST_BATCH` at least: its last row is repeated."""
    missing = max(SMALLEST_BATCH - len(batch), 0)
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
