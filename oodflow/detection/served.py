"""The code of a detector's MLflow model: MLflow runs this file, which loads the detector's folder.

Models from code, so nothing is pickled: ``mlflow.pyfunc.log_model(python_model=<this file>)``, see
:mod:`oodflow.detection.package`. A request has one image per row, in either of two columns:

- ``image``: base64 of the bytes of a PNG, JPEG or WebP file, of any size;
- ``pixels``: the 8-bit values themselves, H×W×C, C×H×W or H×W.

``alpha`` is a parameter of the request. The answer has one row per image:
:data:`oodflow.detection.detector.DECISION_COLUMNS`.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from oodflow.detection.detector import DECISION_COLUMNS, DEFAULT_ALPHA, Detector
from oodflow.detection.inputs import InputImage, from_array, from_base64
from oodflow.detection.package import ARTIFACT
from oodflow.detection.preprocessing import Preprocessing
from oodflow.errors import UserError
from oodflow.models.device import available_device

__all__ = ["ServedDetector", "signature"]

PIXELS = Array(Array(Array(DataType.long)))


def signature() -> ModelSignature:
    """What a served detector takes and answers; see the module."""
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "image", required=False),
                ColSpec(PIXELS, "pixels", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.double, "p_value"),
                ColSpec(DataType.boolean, "anomalous", required=False),
                ColSpec(DataType.boolean, "resized"),
                ColSpec(DataType.string, "error"),
            ]
        ),
        # Not a float, which would be 0.05000000074505806.
        params=ParamSchema([ParamSpec("alpha", DataType.double, DEFAULT_ALPHA)]),
    )


class ServedDetector(PythonModel):
    """A detector behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Load the detector's folder, with every digest verified."""
        device, folder = str(available_device("auto")), Path(context.artifacts[ARTIFACT])
        # Every thread that computes has a team of OpenMP threads of its own. Where they are more
        # than the cores they sleep between any two layers, and a request takes twice as long.
        self.computing = ThreadPoolExecutor(1)
        self.detector = self.computing.submit(Detector.from_folder, folder, device).result()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Decide over the images of a request.

        Raises MlflowException, a bad request, for a table without such a column and for an α that
        cannot be; an image that cannot be read is a row with an error.
        """
        alpha = float((params or {}).get("alpha", DEFAULT_ALPHA))
        try:
            inputs = _inputs(model_input, self.detector.preprocessing)
            judged = self.computing.submit(self.detector.judge, inputs, alpha).result()
            answer = judged[list(DECISION_COLUMNS)]
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        # A NaN would be written as such, which is no JSON; what is missing becomes null.
        return answer.astype({"score": "Float64", "p_value": "Float64"})


def _inputs(table: pd.DataFrame, preprocessing: Preprocessing) -> list[InputImage]:
    names = [name for name in ("image", "pixels") if name in table]
    if not names:
        raise UserError("the request has neither a column 'image' (base64) nor one 'pixels'")
    return [_input(row, preprocessing) for row in table[names].to_dict("records")]


def _input(row: dict[Any, Any], preprocessing: Preprocessing) -> InputImage:
    given = {name: value for name, value in row.items() if not _absent(value)}
    if len(given) != 1:
        what = "neither" if not given else "both"
        return InputImage(None, error=f"{what} image and pixels" if given else "no image")
    if "image" in given:
        return from_base64(given["image"], preprocessing)
    try:
        values = np.asarray(given["pixels"])
        # From JSON they come as long integers, and as objects where rows differ in length.
        pixels = values.astype(np.uint8)
        if not np.array_equal(pixels, values):
            raise ValueError
    except (ValueError, TypeError):
        return InputImage(None, error="pixels are not whole numbers from 0 to 255 in equal rows")
    return from_array(pixels, preprocessing)


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, float) and np.isnan(value)


mlflow.models.set_model(ServedDetector())
