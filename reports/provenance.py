"""The source of each number of a report: its runs, their metrics, code and weights."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from reports.render import cell_numbers, cell_text
from reports.tables import Cell, Difference, Entry, Published, Table

__all__ = ["provenance", "runs_behind"]


def runs_behind(tables: Iterable[Table]) -> list[str]:
    """Ids of all runs that a number of the tables is from, in their order."""
    cells = (cell for table in tables for row in table.rows for cell in row.cells)
    return list(dict.fromkeys(run_id for cell in cells for run_id in _run_ids(cell)))


def provenance(
    tables: Mapping[str, Table], facts: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """``cells``, one per cell in the order of the CSV files, and ``runs``, the facts by run id.

    A cell has its table, row (labels), group, column, text as printed, mean, std, n, interval,
    run_ids, metrics and source. Numbers are unscaled as in CSV, null for none. ``source`` is the
    part of the supplement that a published number, or the published half of a difference, is from.
    """
    return {
        "cells": [
            {
                "table": name,
                "row": list(row.labels),
                "group": group,
                "column": column,
                "text": cell_text(cell, table.measure),
                **_numbers(cell, table),
                "run_ids": _run_ids(cell),
                "metrics": _metrics(cell),
                "source": _source(cell),
            }
            for name, table in tables.items()
            for row in table.rows
            for (group, column), cell in zip(table.columns, row.cells, strict=True)
        ],
        "runs": {run_id: dict(facts.get(run_id, {})) for run_id in runs_behind(tables.values())},
    }


def _numbers(cell: Entry | None, table: Table) -> dict[str, Any]:
    mean, std, count, _ = cell_numbers(cell, table.measure)
    interval = list(cell.interval) if isinstance(cell, Cell) and cell.interval else None
    return {"mean": _number(mean), "std": _number(std), "n": count, "interval": interval}


def _number(text: str) -> float | None:
    """JSON has no NaN."""
    return float(text) if text and math.isfinite(float(text)) else None


def _run_ids(cell: Entry | None) -> list[str]:
    if isinstance(cell, Difference):
        return _run_ids(cell.ours)
    return list(cell.run_ids) if isinstance(cell, Cell) else []


def _metrics(cell: Entry | None) -> list[str]:
    if isinstance(cell, Difference):
        return _metrics(cell.ours)
    return list(cell.metrics) if isinstance(cell, Cell) else []


def _source(cell: Entry | None) -> str:
    if isinstance(cell, Difference):
        return cell.paper.source
    return cell.source if isinstance(cell, Published) else ""
