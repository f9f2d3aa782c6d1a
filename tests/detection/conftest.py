"""A small detector of real models on real images; its weights are no better than initialised."""

import numpy as np
import pytest
import torch

from oodflow.data.sketch import generate
from oodflow.detection.detector import Detector, DetectorModel, calibrated
from oodflow.detection.preprocessing import preprocessing_of
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.build import build_model
from oodflow.training.checkpoint import tensor_digest


def small_model(channels=3, name="glow", seed=0, pixels=None) -> DetectorModel:
    """A model of a layer or two a scale, initialised on these images where there are any."""
    experiment = Experiment(
        Model(channels, name, 1 if name == "glow" else 0, 8 if name == "glow" else 0),
        Data("sketch-shapes", 0),
        Loss("none", "", 1000.0, 0.0),
        Optimisation(1, 1, 1e-3, 0.0, 0, 1, "fp32"),
        "scratch",
        "",
        seed,
    )
    torch.manual_seed(seed)
    model = build_model(experiment.model)
    if pixels is not None:
        with torch.no_grad():
            model.initialise(torch.from_numpy(pixels), 0.5)
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return DetectorModel(model.eval(), experiment, tensor_digest(model.state_dict()))


@pytest.fixture(scope="session")
def shapes() -> np.ndarray:
    """500 in-distribution images, uint8 N×3×32×32."""
    return generate("sketch-shapes", "test", 500)["pixels"].copy()


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """100 outliers."""
    return generate("sketch-digits", "test", 100)["pixels"].copy()


@pytest.fixture(scope="session")
def detector(shapes) -> Detector:
    """Score diff, calibrated by the first 250 shapes; not to be changed."""
    models = {
        "in_distribution": small_model(seed=1, pixels=shapes[:64]),
        "general": small_model(seed=2, pixels=shapes[64:128, ::-1].copy()),
    }
    facts = {"dataset": "sketch-shapes", "fold": "test"}
    how = preprocessing_of("sketch-shapes")
    return calibrated("diff", "sketch-shapes", how, models, shapes[:250], facts)


@pytest.fixture(scope="session")
def make_model():
    """:func:`small_model`, for tests of other kinds."""
    return small_model
