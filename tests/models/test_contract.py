"""The contract of models: all that are built in keep it, and each line tells what breaks it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oodflow.experiment import COMPRESSORS
from oodflow.models.build import build_model
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.contract import LINES, Verdict, check
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import DenseGlow, LocalGlow
from oodflow.models.likelihood import LikelihoodModel
from oodflow.models.pixelcnn import PixelCNN
from oodflow.models.tarflow import TarFlow
from oodflow.options import ModelOptions
from oodflow.presets import architecture
from oodflow.registration import MODELS

SMALL = {
    "glow": lambda: Glow(1, depth=2, hidden=5, size=8),
    "local": lambda: LocalGlow(1, depth=2, hidden=5, size=8, patch=4),
    "dense": lambda: DenseGlow(1, depth=2, hidden=5, size=8),
    "conditional": lambda: ConditionalGlow(1, depth=2, hidden=5, size=8),
    "class-conditional": lambda: ClassConditionalGlow(1, 3, depth=2, hidden=5, size=8),
    "tarflow": lambda: TarFlow(1, patch=2, depth=3, layers=2, width=12, size=8),
    "pixelcnn": lambda: PixelCNN(1, filters=4, blocks=1, mixtures=2, dropout=0.0),
}


def verdicts(build: Any) -> dict[str, Verdict]:
    return {found.line: found for found in check(build)}


@pytest.mark.parametrize("name", SMALL)
def test_small_densities_keep_every_line_that_applies(name: str) -> None:
    found = verdicts(SMALL[name])
    assert tuple(found) == tuple(LINES)
    assert not [each for each in found.values() if each.verdict == "failed"]
    unsaid = {line for line, each in found.items() if each.verdict == "does not apply"}
    assert unsaid == (
        {"log-det", "inverse", "probabilities"} if name == "pixelcnn" else {"probabilities"}
    )


@pytest.mark.parametrize("name", [name for name in MODELS.names() if name not in COMPRESSORS])
@pytest.mark.long
def test_built_in_models_keep_it_as_they_are_trained(name: str) -> None:
    spec = architecture(ModelOptions(model=name), 1)
    found = verdicts(lambda: build_model(spec))
    assert not [each for each in found.values() if each.verdict == "failed"]
    assert found["log-det"].verdict == (
        "does not apply" if name in ("pixelcnn", "wide-resnet") else "passed"
    )


def test_a_code_keeps_it_without_parameters() -> None:
    found = verdicts(lambda: build_model(architecture(ModelOptions(model="png"), 1)))
    assert not [each for each in found.values() if each.verdict == "failed"]
    assert found["gradients"].verdict == "does not apply"


class Small(Glow):
    def __init__(self) -> None:
        super().__init__(1, depth=1, hidden=4, size=8)


class WrongLogDet(Small):
    def transform(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        latents, log_dets = super().transform(v)
        return latents, log_dets + 0.01


class Dependent(Small):
    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        found = super().forward(images, noise)
        return found + 0.001 * found.mean(0)


class OneNumber(Small):
    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return super().forward(images, noise).sum(1)


class Deaf(Small):
    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return super().forward(images, 0.25)


class NoSlope(Small):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return super().forward(images, noise) + (0 * self.weight).sqrt()


class Forgetful(Small):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.randn(())

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return super().forward(images, noise) + self.shift


BROKEN: dict[type[Small], tuple[str, str]] = {
    WrongLogDet: ("log-det", "by autograd is"),
    Dependent: ("independence", "with the others of its batch"),
    OneNumber: ("shape", "4 images give (4,), not (4, 3)"),
    Deaf: ("noise", "the noise is ignored"),
    NoSlope: ("gradients", "weight is not finite"),
    Forgetful: ("state", "keep what it is computed from in parameters or buffers"),
}


@pytest.mark.parametrize(("model", "expected"), BROKEN.items(), ids=lambda each: str(each))
def test_the_line_that_a_model_breaks_says_so(
    model: type[Small], expected: tuple[str, str]
) -> None:
    found = verdicts(model)
    line, why = expected
    assert found[line].verdict == "failed" and why in found[line].why, found[line]
    others = {name for name, each in found.items() if each.verdict == "failed"} - {line}
    # Nothing else can be said of values of another shape.
    assert model is OneNumber or not others


class OneSided(LikelihoodModel):
    """Discrete pixels, each of 256 values equally likely, but for a factor."""

    image_shape, scales, uses_noise = (1, 8, 8), 1, False

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.randn(256))
        self.factor = factor

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        levels = self.level.log_softmax(0)[images.long()] * self.factor
        return levels.flatten(1).sum(1, keepdim=True)


def test_probabilities_of_discrete_pixels_add_up_to_one() -> None:
    assert verdicts(lambda: OneSided(1.0))["probabilities"].verdict == "passed"
    found = verdicts(lambda: OneSided(0.9))["probabilities"]
    assert found.verdict == "failed" and "of all images of one pixel add up to" in found.why


def test_a_model_that_cannot_be_built_fails_the_first_line_alone() -> None:
    def build() -> LikelihoodModel:
        raise RuntimeError("no weights")

    assert list(check(build)) == [Verdict("shape", "failed", "RuntimeError: no weights")]
