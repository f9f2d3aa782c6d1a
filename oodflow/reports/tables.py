"""A table of results as a value: cells that know their seeds and runs, in the paper's layouts.

The makers take a tidy pandas frame with one number a row and know nothing of where it came from;
:mod:`oodflow.reports.render` writes the table down.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import pandas as pd

from oodflow.evaluation.metrics import mean_std

__all__ = [
    "AUROC_PERCENT",
    "BITS_PER_DIMENSION",
    "Cell",
    "Difference",
    "Entry",
    "Measure",
    "Published",
    "Row",
    "Table",
    "bpd_table",
    "comparison_table",
    "correlation_table",
    "detection_table",
]


@dataclass(frozen=True)
class Measure:
    """How a quantity is shown and compared: value × ``scale`` with ``digits`` decimals.

    ``higher_is_better`` is None where no value is better than another.
    """

    scale: float
    digits: int
    higher_is_better: bool | None


AUROC_PERCENT = Measure(scale=100.0, digits=1, higher_is_better=True)
BITS_PER_DIMENSION = Measure(scale=1.0, digits=2, higher_is_better=False)
CORRELATION = Measure(scale=1.0, digits=2, higher_is_better=None)


@dataclass(frozen=True)
class Cell:
    """One number of a table: its value for each seed, and the runs that these come from."""

    values: tuple[float, ...]
    run_ids: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    """Names of the runs' metrics that the values are, or are averages of."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean_std(self.values)[0]

    @property
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
        """In the unit of ours; the paper's number is in the unit that the measure prints."""
        return self.ours.mean - float(Decimal(self.paper.mean)) / measure.scale


Entry = Cell | Published | Difference


@dataclass(frozen=True)
class Row:
    """Labels, one for each entry of the table's ``row_header``, and a cell or gap a column."""

    labels: tuple[str, ...]
    cells: tuple[Entry | None, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under two levels of column headers: ``columns`` holds (group, name) pairs."""

    title: str
    caption: str
    row_header: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    measure: Measure

    def best(self, row: Row) -> frozenset[int]:
        """Columns with the row's best mean of ours, for bold print; none without competition.

        >>> cells = tuple(Cell((value,), ("r",)) for value in (0.5, 0.9))
        >>> row = Row(("cifar10",), cells)
        >>> table = Table("", "", ("In-dist",), (("", "a"), ("", "b")), (row,), AUROC_PERCENT)
        >>> table.best(row)
        frozenset({1})
        """
        means = {i: cell.mean for i, cell in enumerate(row.cells) if isinstance(cell, Cell)}
        comparable = [mean for mean in means.values() if not math.isnan(mean)]
        if len(comparable) < 2 or self.measure.higher_is_better is None:
            return frozenset()
        top = max(comparable) if self.measure.higher_is_better else min(comparable)
        return frozenset(i for i, mean in means.items() if mean == top)


MEAN = "Mean"
ALL = "All"
"""First label of the last row, the mean over the in-distribution datasets."""

LOSS_NAMES = {
    "none": "No outlier loss",
    "binary": "Binary outlier loss",
    "margin": "Margin outlier loss",
}
SETTING_NAMES = {"unsupervised": "", "supervised": ", supervised"}
SCORE_NAMES = {"raw": "Raw", "last_scale": "4×4", "diff": "Diff", "diff_outlier": "Diff†"}
KIND_NAMES = {"general": "General", "scratch": "From scratch", "finetuned": "Finetuned"}

SPREAD = "In parentheses the standard deviation across seeds, a dash where there is one seed."

SeedValues = dict[int, tuple[float, tuple[str, ...], tuple[str, ...]]]
"""Seed → its value, the runs and the metrics behind it; the cells are made of these."""


def detection_table(frame: pd.DataFrame, model: str = "") -> Table:
    """AUROC in the layout of Table S2: in-distribution × outlier dataset by training and score.

    ``frame`` has a number a row: run_id, seed, dataset, setting, outlier_loss, ood, score, auroc
    (a fraction), and where known the metric's name. Columns appear in the paper's order, where the
    frame has a number for them; the single scales have no column. Datasets appear in the order of
    the frame. After each
    in-distribution dataset comes the mean over its outlier datasets, and after the last the mean
    of these means: both are taken within a seed first, then over seeds (S2), and from those seeds
    only that have a number for each dataset, since others would average something else.

    Raises ValueError for missing columns, unknown settings or losses, or two numbers for one place.
    """
    _check(
        frame,
        ["dataset", "setting", "outlier_loss", "ood", "score", "seed"],
        value="auroc",
        known={"setting": SETTING_NAMES, "outlier_loss": LOSS_NAMES},
    )
    frame = frame[frame["score"].isin(list(SCORE_NAMES))]
    groups = ["outlier_loss", "setting", "score"]
    present = set(frame[groups].itertuples(index=False, name=None))
    keys = [
        key
        for loss in LOSS_NAMES
        for setting in SETTING_NAMES
        for score in SCORE_NAMES
        if (key := (loss, setting, score)) in present
    ]
    numbers = _by_place(frame, ["dataset", "ood", *groups], "auroc")
    datasets = list(frame["dataset"].unique())
    rows, means = [], {}
    for dataset in datasets:
        oods = list(frame.loc[frame["dataset"] == dataset, "ood"].unique())
        lines = [[numbers.get((dataset, ood, *key), {}) for key in keys] for ood in oods]
        rows += [_row((dataset, ood), values) for ood, values in zip(oods, lines, strict=True)]
        means[dataset] = [_mean_per_seed(column) for column in zip(*lines, strict=True)]
        rows.append(_row((dataset, MEAN), means[dataset]))
    if len(datasets) > 1:
        overall = [_mean_per_seed(column) for column in zip(*means.values(), strict=True)]
        rows.append(_row((ALL, MEAN), overall))
    return Table(
        title="Anomaly detection performance" + (f" of {model}" if model else ""),
        caption=(
            f"AUROC in %, test fold against test fold. {SPREAD} "
            f"{MEAN} rows average within a seed first."
        ),
        row_header=("In-dist", "Out-dist"),
        columns=tuple(
            (LOSS_NAMES[loss] + SETTING_NAMES[setting], SCORE_NAMES[score])
            for loss, setting, score in keys
        ),
        rows=tuple(rows),
        measure=AUROC_PERCENT,
    )


def comparison_table(frame: pd.DataFrame) -> Table:
    """AUROC of the ratio by general distribution: none, a compressor, Glow, PixelCNN++ (METHOD 6).

    ``frame`` has a number a row: run_id, seed, model, dataset, fold, ood, general, auroc. Rows of
    training-fold inliers say so: they are not comparable with the others (S6).
    """
    place = ["model", "dataset", "fold", "ood", "general"]
    _check(frame, [*place, "seed"], value="auroc", known={})
    numbers = _by_place(frame, place, "auroc")
    generals = sorted(frame["general"].unique(), key=lambda name: (name != "none", name))
    lines = frame[place[:4]].drop_duplicates().sort_values(place[:3], kind="stable")
    return Table(
        title="General distributions",
        caption=(
            "AUROC in % of the ratio to each general distribution; none is the raw likelihood, "
            "alone is the general distribution's own likelihood."
        ),
        row_header=("Model", "In-dist", "Out-dist"),
        columns=tuple(("General distribution", name) for name in generals),
        rows=tuple(
            _row(
                (model, dataset + (" (training fold)" if fold == "train" else ""), ood),
                [numbers.get((model, dataset, fold, ood, name), {}) for name in generals],
            )
            for model, dataset, fold, ood in lines.itertuples(index=False, name=None)
        ),
        measure=AUROC_PERCENT,
    )


def correlation_table(frame: pd.DataFrame) -> Table:
    """Spearman correlation of two families' raw likelihoods over the images of a dataset.

    ``frame`` has a number a row: run_id, seed, first, second, dataset, correlation.
    """
    place = ["first", "second", "dataset"]
    _check(frame, [*place, "seed"], value="correlation", known={})
    numbers = _by_place(frame, place, "correlation")
    datasets = list(frame["dataset"].unique())
    pairs = frame[["first", "second"]].drop_duplicates().itertuples(index=False, name=None)
    return Table(
        title="Rank correlation of likelihoods between models",
        caption="Spearman correlation over the test fold of each dataset, same seed.",
        row_header=("Model", "Model"),
        columns=tuple(("Images", name) for name in datasets),
        rows=tuple(
            _row(pair, [numbers.get((*pair, name), {}) for name in datasets]) for pair in pairs
        ),
        measure=CORRELATION,
    )


def bpd_table(frame: pd.DataFrame, model: str = "") -> Table:
    """Bits per dimension in the layout of Table S1: dataset by kind of model.

    ``frame`` has a number a row: run_id, seed, dataset, kind (general, scratch, finetuned), bpd.
    Raises ValueError for missing columns, an unknown kind, or two numbers for one place.
    """
    _check(frame, ["dataset", "kind", "seed"], value="bpd", known={"kind": KIND_NAMES})
    kinds = [kind for kind in KIND_NAMES if kind in set(frame["kind"])]
    numbers = _by_place(frame, ["dataset", "kind"], "bpd")
    return Table(
        title="Maximum-likelihood performance" + (f" of {model}" if model else ""),
        caption=(
            "Bits per dimension on the test fold, one sample of dequantisation noise an image; "
            f"lower is better. {SPREAD}"
        ),
        row_header=("In-dist",),
        columns=tuple(("Bits per dimension", KIND_NAMES[kind]) for kind in kinds),
        rows=tuple(
            _row((dataset,), [numbers.get((dataset, kind), {}) for kind in kinds])
            for dataset in frame["dataset"].unique()
        ),
        measure=BITS_PER_DIMENSION,
    )


def _check(
    frame: pd.DataFrame, place: list[str], value: str, known: dict[str, dict[str, str]]
) -> None:
    missing = [name for name in [*place, "run_id", value] if name not in frame]
    if missing:
        raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
    for column, names in known.items():
        unknown = sorted(set(frame[column]) - set(names))
        if unknown:
            raise ValueError(f"unknown {column} {unknown[0]!r}; known: {', '.join(names)}")
    twice = frame[frame.duplicated(place, keep=False)]
    if len(twice):
        first = ", ".join(f"{name} {twice.iloc[0][name]}" for name in place)
        raise ValueError(f"{len(twice)} rows share their place, such as {first}; pass the newest")


def _by_place(
    frame: pd.DataFrame, place: list[str], value: str
) -> dict[tuple[str, ...], SeedValues]:
    """The frame's numbers, grouped by place and seed."""
    numbers: dict[tuple[str, ...], SeedValues] = {}
    metrics = frame["metric"] if "metric" in frame else [""] * len(frame)
    lines = frame[[*place, "seed", value, "run_id"]].itertuples(index=False, name=None)
    for (*key, seed, number, run_id), metric in zip(lines, metrics, strict=True):
        names = (str(metric),) if metric else ()
        numbers.setdefault(tuple(key), {})[int(seed)] = (float(number), (str(run_id),), names)
    return numbers


def _mean_per_seed(parts: Sequence[SeedValues]) -> SeedValues:
    """Mean over the parts within each seed that all of them have."""
    seeds = set(parts[0]).intersection(*parts[1:])
    return {
        seed: (
            math.fsum(part[seed][0] for part in parts) / len(parts),
            _unique(run_id for part in parts for run_id in part[seed][1]),
            _unique(metric for part in parts for metric in part[seed][2]),
        )
        for seed in seeds
    }


def _row(labels: tuple[str, ...], values: Iterable[SeedValues]) -> Row:
    return Row(labels, tuple(_cell(by_seed) for by_seed in values))


def _cell(by_seed: SeedValues) -> Cell | None:
    if not by_seed:
        return None
    ordered = [by_seed[seed] for seed in sorted(by_seed)]
    return Cell(
        values=tuple(value for value, _, _ in ordered),
        run_ids=_unique(run_id for _, run_ids, _ in ordered for run_id in run_ids),
        metrics=_unique(metric for _, _, metrics in ordered for metric in metrics),
    )


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    """The items without repetition, in their order."""
    return tuple(dict.fromkeys(items))
