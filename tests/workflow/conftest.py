"""A workspace with a detector, and images to ask it about."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHAMPION = "models:/oodflow-detector-sketch-shapes@champion"


@pytest.fixture(scope="session")
def with_detector(quickstart, made_once):
    """The quickstart's workspace after ``oodflow detector build --champion``; not to be changed."""

    def make(folder: Path) -> None:
        workspace = quickstart[0].clone(folder / "workspace")
        outcome = workspace.oodflow("detector", "build", "--champion")
        assert outcome.code == 0, outcome.err
        (folder / "said").write_text(outcome.out)

    return type(quickstart[0])(made_once("detector", make) / "workspace", quickstart[0].data)


@pytest.fixture
def detecting(with_detector, tmp_path):
    """A copy of it, one for each test."""
    return with_detector.clone(tmp_path / "workspace")


@pytest.fixture(scope="session")
def shapes() -> np.ndarray:
    """The test fold of sketch-shapes in its order, uint8 N×3×32×32."""
    from oodflow.data.sketch import generate

    return generate("sketch-shapes", "test", 1000)["pixels"]


@pytest.fixture(scope="session")
def draw() -> Callable[..., Path]:
    """``draw(path, pixels)`` writes an image C×H×W to a file of any format."""

    def write(path: Path, pixels: np.ndarray, size=None, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        (picture.resize(size) if size else picture).save(path, **options)
        return path

    return write
