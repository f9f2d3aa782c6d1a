"""A masked autoregressive flow (arXiv:1705.07057) from zuko, as a density of grey images."""

import math

import zuko
from torch import Tensor

from oodflow import LikelihoodModel, Model, Preset, UserError, register_model

SIDE, LEVELS = 32, 256


class MaskedFlow(LikelihoodModel):
    """log p(x) = log N(z; 0, I) + log|det dz/dv| − D ln 128, with v = (x + noise)/128 − 1."""

    scales = 1

    def __init__(self, channels: int, depth: int, hidden: int) -> None:
        super().__init__()
        if channels != 1:
            raise UserError("zuko-maf is for grey images; choose a grey dataset or channels=1")
        self.image_shape = (1, SIDE, SIDE)
        self.flow = zuko.flows.MAF(SIDE * SIDE, transforms=depth, hidden_features=(hidden,))

    def preprocess(self, images: Tensor, noise: Tensor | float) -> Tensor:
        """v, N×D, in the parameters' type."""
        dtype = next(self.parameters()).dtype
        return ((images.to(dtype) + noise) / (LEVELS / 2) - 1).flatten(1)

    def transform(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latents, and log|det dz/dv|, N×1. With it check-model compares autograd."""
        z, log_det = self.flow().transform.call_and_ladj(v)
        return [z], log_det[:, None]

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        [z], log_det = self.transform(self.preprocess(images, noise))
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1, keepdim=True)
        return normal + log_det - z.shape[1] * math.log(LEVELS / 2)


def build(spec: Model) -> LikelihoodModel:
    return MaskedFlow(spec.channels, spec.depth, spec.hidden)


QUICK = Preset(
    depth=3, hidden=128, batch_size=64, lr=1e-3, finetune_lr=5e-4, report_every=100,
    scratch_steps=600, general_steps=600, finetune_steps=200,
)  # fmt: skip
register_model("zuko-maf", build, {"quick": QUICK})
