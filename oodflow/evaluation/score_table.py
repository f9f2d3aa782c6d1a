"""The score table: log-likelihoods of every image of one dataset under one model, and its file.

A model scores a dataset once (:mod:`oodflow.evaluation.scoring`, which needs torch; this module
does not). The result is kept as Parquet, with facts about model and images. Every score, AUROC and
figure is computed from it (:mod:`oodflow.evaluation.scores`).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from oodflow.errors import UserError
from oodflow.files import replaced

__all__ = ["COLUMNS", "read_table", "write_table"]

FACTS_KEY = b"oodflow.facts"
"""Entry of the Parquet schema's metadata that holds the facts, as JSON."""

COLUMNS = ("index", "label", "log_prob", "log_prob_dequantised")
"""Columns of every score table; models with scales add ``scale1`` … ``scaleS``, and
flows ``prior1`` … ``priorS`` and ``logdet1`` … ``logdetS``; folders of images add ``file``."""


def write_table(frame: pd.DataFrame, path: Path | str, *, facts: Mapping[str, str]) -> None:
    """Write a score table as Parquet, with its facts (model digest, dataset, fold …) inside.

    The file is there whole or not at all: it is written beside its place and then moved.
    """
    path = Path(path)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**table.schema.metadata, FACTS_KEY: json.dumps(dict(facts), sort_keys=True)}
    with replaced(path) as partial:
        pq.write_table(table.replace_schema_metadata(metadata), partial, write_page_checksum=True)


def read_table(
    path: Path | str, columns: Iterable[str] = COLUMNS
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table and the facts of :func:`write_table`, checksums verified.

    Raises UserError, naming the file, if it is missing, damaged or no table with these columns.
    """
    path = Path(path)
    try:
        # A plain open file: pyarrow would read a folder or a glob of that name as a data set.
        with path.open("rb") as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
        facts = json.loads((table.schema.metadata or {})[FACTS_KEY])
        missing = set(columns) - set(table.column_names)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        return table.to_pandas(), facts
    except FileNotFoundError as error:
        raise UserError(f"score table {path} does not exist") from error
    except KeyError as error:
        raise UserError(f"{path} is not a score table: it lacks {error.args[0]!r}") from error
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"score table {path} cannot be read ({type(error).__name__}); "
            "delete it and evaluate again"
        ) from error
