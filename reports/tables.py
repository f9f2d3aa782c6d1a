"""A table of results as a value: cells that know their seeds, runs and metrics.

:mod:`reports.layouts` makes tables, :mod:`reports.render` writes them down.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import numpy as np
from scipy.special import stdtr

from oodflow.evaluation.metrics import mean_std

__all__ = [
    "AUROC_PERCENT",
    "BITS_PER_DIMENSION",
    "LEVEL",
    "METRICS",
    "Cell",
    "Difference",
    "Entry",
    "Measure",
    "Published",
    "Row",
    "Table",
]


LEVEL = 0.05
"""Means that differ with a larger p-value are not told apart."""


@dataclass(frozen=True)
class Measure:
    """How a quantity is shown and compared: value × ``scale`` with ``digits`` decimals.

    ``higher_is_better`` is None where no value is better than another.
    """

    scale: float
    digits: int
    higher_is_better: bool | None
    unit: str = ""
    """Behind a number that stands alone."""


AUROC_PERCENT = Measure(scale=100.0, digits=1, higher_is_better=True, unit=" %")
METRICS = {
    "auroc": AUROC_PERCENT,
    "aupr": AUROC_PERCENT,
    "aupr_out": AUROC_PERCENT,
    "fpr95": Measure(scale=100.0, digits=1, higher_is_better=False, unit=" %"),
    "fpr95_out": Measure(scale=100.0, digits=1, higher_is_better=False, unit=" %"),
}
"""Of the detection metrics, by their names in MLflow."""

BITS_PER_DIMENSION = Measure(scale=1.0, digits=2, higher_is_better=False)
CORRELATION = Measure(scale=1.0, digits=2, higher_is_better=None)


@dataclass(frozen=True)
class Cell:
    """One number of a table: its value for each seed, and the runs that these come from."""

    values: tuple[float, ...]
    run_ids: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    """Names of the runs' metrics that the values are, or are averages of."""
    interval: tuple[float, float] | None = None
    """Bootstrap confidence interval of the mean, over the images; None where none was asked for."""

    @cached_property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean_std(self.values)[0]

    @cached_property
    def std(self) -> float:
        """Sample standard deviation over the seeds, NaN for one seed."""
        return mean_std(self.values)[1]

    @property
    def count(self) -> int:
        """Number of seeds."""
        return len(self.values)


@dataclass(frozen=True)
class Published:
    """A number of the paper, as the paper prints it: strings, so that every digit is kept."""

    mean: str
    std: str
    """The standard deviation across seeds, "" where the paper prints none."""
    source: str
    """The table of the supplement that it is from."""


@dataclass(frozen=True)
class Difference:
    """Ours − paper, of the means."""

    ours: Cell
    paper: Published

    def value(self, measure: Measure) -> float:
        """In our unit; the paper's number is in the unit that the measure prints."""
        return self.ours.mean - float(Decimal(self.paper.mean)) / measure.scale


Entry = Cell | Published | Difference


@dataclass(frozen=True)
class Row:
    """Labels, one for each entry of the table's ``row_header``, and a cell or gap a column."""

    labels: tuple[str, ...]
    cells: tuple[Entry | None, ...]
    bold: frozenset[int] | None = None
    """Columns in bold print; None: those of :meth:`Table.best`'s own choice."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under two levels of column headers: ``columns`` holds (group, name) pairs."""

    title: str
    caption: str
    row_header: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    measure: Measure
    family: str = ""
    """Family of datasets."""

    def best(self, row: Row) -> frozenset[int]:
        """Columns in bold print; none without competition.

        Those are the row's best mean of ours, and all that cannot be told from it over the seeds:
        Welch's t-test of the two means has p > 5 %. A mean of one seed is told from any other.

        >>> cells = tuple(Cell((value,), ("r",)) for value in (0.5, 0.9))
        >>> row = Row(("cifar10",), cells)
        >>> table = Table("", "", ("In-dist",), (("", "a"), ("", "b")), (row,), AUROC_PERCENT)
        >>> table.best(row)
        frozenset({1})
        """
        if row.bold is not None:
            return row.bold
        means = {i: cell.mean for i, cell in enumerate(row.cells) if isinstance(cell, Cell)}
        comparable = [mean for mean in means.values() if not math.isnan(mean)]
        if len(comparable) < 2 or self.measure.higher_is_better is None:
            return frozenset()
        top = max(comparable) if self.measure.higher_is_better else min(comparable)
        places = list(means)
        values = np.array(list(means.values()))
        cells = [cell for cell in row.cells if isinstance(cell, Cell)]
        errors = np.array([cell.std**2 / cell.count for cell in cells])
        freedom = np.array([cell.count - 1 for cell in cells])
        best = int(np.flatnonzero(values == top)[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            error = errors + errors[best]
            # Satterthwaite's degrees of freedom.
            both = error**2 / (errors**2 / freedom + errors[best] ** 2 / freedom[best])
            p_values = 2 * stdtr(both, -np.abs(values - top) / np.sqrt(error))
        # One seed has no spread: NaN is not above the level.
        alike = (values == top) | (p_values > LEVEL)
        return frozenset(place for place, bold in zip(places, alike, strict=True) if bold)
