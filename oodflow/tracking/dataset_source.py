"""Where the datasets of runs come from, in a form that MLflow reads back: the catalogue.

The package registers :class:`CatalogueSource` with MLflow under the entry point
``mlflow.dataset_source``, by which ``mlflow.data.get_source`` finds it.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.schema import TensorDatasetSchema
from mlflow.types import Schema, TensorSpec

from oodflow.errors import UserError

if TYPE_CHECKING:
    from oodflow.data.images import Images

__all__ = ["CatalogueSource", "schema_of"]


class CatalogueSource(DatasetSource):
    """A fold of a dataset, by its name in the catalogue.

    >>> source = CatalogueSource.from_json('{"dataset": "sketch-shapes", "fold": "test"}')
    >>> source.dataset, source.fold, CatalogueSource.from_json(source.to_json()).to_dict()
    ('sketch-shapes', 'test', {'dataset': 'sketch-shapes', 'fold': 'test'})
    """

    SOURCE_TYPE = "oodflow"

    def __init__(self, dataset: str, fold: str) -> None:
        self.dataset = dataset
        self.fold = fold

    @staticmethod
    def _get_source_type() -> str:
        return CatalogueSource.SOURCE_TYPE

    def load(self, data_dir: str = "auto") -> "Images":
        """The images, from the data folder of this machine; the dataset is prepared if need be.

        Raises UserError where it is not there.
        """
        # Imported here: most commands name datasets and read none.
        from oodflow.data.catalog import data_folder
        from oodflow.data.images import describe, images_of

        return images_of(describe(self.dataset, data_folder(data_dir)), self.fold)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "CatalogueSource":
        raise UserError(f"{raw_source!r} is no dataset of oodflow's catalogue")

    def to_dict(self) -> dict[str, str]:
        """As MLflow keeps it."""
        return {"dataset": self.dataset, "fold": self.fold}

    @classmethod
    def from_dict(cls, source_dict: Mapping[str, str]) -> "CatalogueSource":
        """The inverse of :meth:`to_dict`."""
        return cls(source_dict["dataset"], source_dict["fold"])


def schema_of(channels: int) -> str | None:
    """The form of a dataset's images and labels as MLflow keeps it; None without channels."""
    if not channels:
        return None
    images = TensorSpec(np.dtype("uint8"), (-1, channels, 32, 32))
    labels = TensorSpec(np.dtype("int64"), (-1,))
    schema = TensorDatasetSchema(features=Schema([images]), targets=Schema([labels]))
    return json.dumps(schema.to_dict())
