"""Gradient norms of whole batches against one backward pass an image."""

import pytest
import torch

from oodflow.evaluation.gradients import gradient_table
from oodflow.models.class_conditional import ClassConditionalGlow
from oodflow.models.conditional import ConditionalGlow
from oodflow.models.glow import Glow
from oodflow.models.glow_variants import DenseGlow, LocalGlow
from oodflow.models.pixelcnn import PixelCNN
from oodflow.models.tarflow import TarFlow

MODELS = {
    "glow": lambda: Glow(1, depth=2, hidden=8),
    "conditional": lambda: ConditionalGlow(1, depth=1, hidden=8),
    "classes": lambda: ClassConditionalGlow(1, classes=2, depth=1, hidden=8),
    "local": lambda: LocalGlow(1, depth=1, hidden=8),
    "dense": lambda: DenseGlow(1, depth=1, hidden=8),
    "tarflow": lambda: TarFlow(1, patch=8, depth=2, layers=1, width=16),
    "pixelcnn": lambda: PixelCNN(1, 1, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batchs_norms_are_those_of_a_loop_over_its_images(name):
    torch.manual_seed(1)
    model = MODELS[name]().double().eval()
    pixels = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    model.initialise(pixels, 0.5)
    with torch.no_grad():
        # Zeros of a new model's last layers would hide what is before them.
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    table = gradient_table(model, pixels, None, device="cpu")
    for row, image in enumerate(pixels):
        model.zero_grad()
        model.log_prob(image[None], 0.5).sum().backward()
        expected: dict[str, float] = {}
        for parameter_name, parameter in model.named_parameters():
            layer = "gradient/" + parameter_name.rpartition(".")[0]
            square = 0.0 if parameter.grad is None else parameter.grad.square().sum().item()
            expected[layer] = expected.get(layer, 0.0) + square
        found = table.loc[row, list(expected)].astype(float)
        assert found.to_dict() == pytest.approx(expected, rel=1e-5, abs=1e-12)
        assert found.max() > 1
    assert set(table) == {"index", "label", *expected}
    assert table["label"].tolist() == [-1] * 5
