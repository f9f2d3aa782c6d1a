"""Logs a detector as an MLflow model that can be loaded and served anywhere."""

import base64
import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

import oodflow

__all__ = ["ARTIFACT", "Package", "encoded", "input_example", "packaged", "requirements"]

ARTIFACT = "detector"
"""Name of the detector's folder among the artifacts of the model."""

LIBRARIES = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "safetensors",
    "scipy",
    "torch",
)
"""All that serving imports, by their names on PyPI."""


@dataclass(frozen=True, eq=False)
class Package:
    """Arguments of ``mlflow.pyfunc.log_model`` beside the name and the signature.

    The signature is :func:`oodflow.detection.served.signature`.
    """

    python_model: str
    """The code: :mod:`oodflow.detection.served`, as a file."""
    artifacts: dict[str, str]
    """The detector's folder under :data:`ARTIFACT`."""
    code_paths: list[str]
    """This package itself, so that it need not be installed where the model is served."""
    pip_requirements: list[str]
    input_example: pd.DataFrame


def packaged(folder: Path, example: NDArray[np.uint8]) -> Package:
    """The package of a saved detector; ``example`` are some images, uint8 N×C×32×32."""
    home = Path(next(iter(oodflow.__path__)))
    return Package(
        python_model=str(home / "detection" / "served.py"),
        artifacts={ARTIFACT: str(folder)},
        code_paths=[str(home)],
        pip_requirements=requirements(),
        input_example=input_example(example),
    )


def requirements() -> list[str]:
    """The libraries in the versions that are installed here.

    >>> requirements()[0].startswith("mlflow==")
    True
    """
    # The part behind the plus names a build, such as +cpu, which PyPI does not have.
    return [f"{name}=={version(name).partition('+')[0]}" for name in LIBRARIES]


def input_example(images: NDArray[np.uint8]) -> pd.DataFrame:
    """A request with these images, uint8 N×C×H×W: one column ``image`` of base64 PNGs."""
    return pd.DataFrame({"image": [encoded(image) for image in images]})


def encoded(image: NDArray[np.uint8], format: str = "PNG") -> str:
    """An image C×H×W as base64 of a file."""
    buffer = io.BytesIO()
    planes = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(planes)).save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
