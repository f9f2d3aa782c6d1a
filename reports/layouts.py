"""The paper's tables from tidy frames: one number per row in, a table out.

Every frame has the columns run_id, seed and a value, those that say which cell a number belongs
to, and where known ``metric``, the name of the run's metric, and ``replicates``, the number's
bootstrap replicates as an array. The makers know nothing of where a frame came from.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from oodflow.registration import SCORES
from reports.tables import (
    AUROC_PERCENT,
    BITS_PER_DIMENSION,
    CORRELATION,
    Cell,
    Row,
    Table,
)

__all__ = [
    "ALL",
    "KIND_NAMES",
    "LOSS_NAMES",
    "MEAN",
    "METRIC_NAMES",
    "SCORE_NAMES",
    "SETTING_NAMES",
    "bpd_table",
    "check_frame",
    "comparison_table",
    "correlation_table",
    "detection_table",
    "folds_table",
    "fourier_table",
]

MEAN = "Mean"
ALL = "All"
"""First label of the last row, the mean over the in-distribution datasets."""

LOSS_NAMES = {
    "none": "No outlier loss",
    "binary": "Binary outlier loss",
    "margin": "Margin outlier loss",
}
SHORT_LOSS_NAMES = {"none": "None", "margin": "Margin", "binary": "Binary"}
SETTING_NAMES = {"unsupervised": "", "supervised": ", supervised"}
SCORE_NAMES = {"raw": "Raw", "last_scale": "4×4", "diff": "Diff", "diff_outlier": "Diff†"}
METRIC_NAMES = {
    "auroc": "AUROC",
    "aupr": "AUPR (in-distribution positive)",
    "aupr_out": "AUPR (outliers positive)",
    "fpr95": "FPR95 (outliers accepted where 95 % of the inliers are)",
    "fpr95_out": "FPR95 (inliers rejected where 95 % of the outliers are)",
}
KIND_NAMES = {"general": "General", "scratch": "From scratch", "finetuned": "Finetuned"}
FOLD_NAMES = {"test": "Test fold", "train": "Training fold"}

SPREAD = "In parentheses the standard deviation across seeds, a dash where there is one seed."
BOLD = (
    "Bold: a row's best mean, and all means that Welch's t-test over the seeds cannot tell from it "
    "at 5 %. With one seed there is no test, and the best mean alone is bold."
)
WITHIN = f"{MEAN} rows average within a seed first."
CONFIDENCE = 0.95


def check_frame(
    frame: pd.DataFrame,
    place: list[str],
    value: str,
    known: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Raise ValueError unless the frame has one number for each place, and known names only.

    ``place`` are the columns that say what the number in the column ``value`` belongs to;
    ``known`` maps some of them to the names that they may hold.
    """
    missing = [name for name in [*place, value] if name not in frame]
    if missing:
        raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
    for column, names in (known or {}).items():
        unknown = sorted(set(frame[column]) - set(names))
        if unknown:
            raise ValueError(f"unknown {column} {unknown[0]!r}; known: {', '.join(names)}")
    twice = frame[frame.duplicated(place, keep=False)]
    if len(twice):
        first = ", ".join(f"{name} {twice.iloc[0][name]}" for name in place)
        raise ValueError(f"{len(twice)} rows share their place, such as {first}; pass the newest")


@dataclass(frozen=True)
class Number:
    """One seed's value, and what it is from."""

    value: float
    run_ids: tuple[str, ...]
    metrics: tuple[str, ...]
    replicates: np.ndarray | None = None


SeedValues = dict[int, Number]
"""Seed → its number; the cells are made of these."""

Key = tuple[str, ...]


def detection_table(frame: pd.DataFrame, model: str = "", *, means: bool = True) -> Table:
    """AUROC in the layout of Table S2: in-distribution × outlier dataset by training and score.

    ``frame`` has also dataset, setting, outlier_loss, ood, score and auroc (a fraction). Columns
    appear in the paper's order, then those of plug-ins, where the frame has a number for them; our
    other scores have no column. Datasets appear in the order of the frame. After each
    in-distribution dataset comes the mean over its outlier datasets, and after the last the mean of
    these means: both are taken within a seed first, then over seeds (S2), and from those seeds only
    that have a number for each dataset, since others would average something else. Without
    ``means`` it is Table S3.

    Raises ValueError for missing columns, unknown settings or losses, or two numbers for one place.
    """
    frame = _detections(frame)
    groups = ["outlier_loss", "setting", "score"]
    present = set(frame[groups].itertuples(index=False, name=None))
    keys = [
        key
        for loss in LOSS_NAMES
        for setting in SETTING_NAMES
        for score in (*SCORE_NAMES, *sorted({score for *_, score in present} - {*SCORE_NAMES}))
        if (key := (loss, setting, score)) in present
    ]
    return Table(
        title=("Anomaly detection performance" if means else "Further outlier datasets")
        + (f" of {model}" if model else ""),
        caption=f"AUROC in %, test fold against test fold. {SPREAD} {BOLD}{f' {WITHIN}' * means}",
        row_header=("In-dist", "Out-dist"),
        columns=tuple(
            (LOSS_NAMES[loss] + SETTING_NAMES[setting], SCORE_NAMES.get(score, score))
            for loss, setting, score in keys
        ),
        rows=_pair_rows(frame, groups, keys, means),
        measure=AUROC_PERCENT,
    )


def comparison_table(frame: pd.DataFrame) -> Table:
    """AUROC of the ratio by general distribution: none, a compressor, Glow, PixelCNN++ (S6).

    ``frame`` has also model (the in-distribution one's family), dataset, ood, general and auroc.
    """
    _check(frame, ["model", "dataset", "ood", "general", "seed"], "auroc")
    groups = ["model", "general"]
    order = {"none": 0, "png": 1}
    keys = sorted(
        set(frame[groups].itertuples(index=False, name=None)),
        key=lambda key: (key[0], order.get(key[1], 2), key[1]),
    )
    return Table(
        title="General distributions",
        caption=(
            "AUROC in % of the ratio to each general distribution, by the family of the "
            "in-distribution model; none is the raw likelihood, alone is the general "
            f"distribution's own likelihood. {SPREAD} {BOLD} {WITHIN}"
        ),
        row_header=("In-dist", "Out-dist"),
        columns=tuple((f"In-distribution model: {model}", general) for model, general in keys),
        rows=_pair_rows(frame, groups, keys, means=True),
        measure=AUROC_PERCENT,
    )


def folds_table(frame: pd.DataFrame) -> Table:
    """AUROC of test-fold beside training-fold inliers (S6).

    ``frame`` has also dataset, ood, score, fold (test or train) and auroc.
    """
    _check(frame, ["dataset", "ood", "score", "fold", "seed"], "auroc", {"fold": FOLD_NAMES})
    groups = ["score", "fold"]
    present = set(frame["score"])
    keys = [(score, fold) for score in SCORE_NAMES if score in present for fold in FOLD_NAMES]
    return Table(
        title="Test-fold and training-fold inliers",
        caption=(
            "AUROC in % of in-distribution images of either fold against the same outliers; those "
            f"of the training fold are not comparable with other results (S6). {SPREAD} {BOLD} "
            + WITHIN
        ),
        row_header=("In-dist", "Out-dist"),
        columns=tuple((SCORE_NAMES[score], FOLD_NAMES[fold]) for score, fold in keys),
        rows=_pair_rows(frame, groups, keys, means=True),
        measure=AUROC_PERCENT,
    )


def fourier_table(frame: pd.DataFrame) -> Table:
    """Spearman correlations of the Fourier mix (S3), by model and images.

    ``frame`` has also dataset (the model's), images, donor (amplitude or phase) and correlation.
    """
    donors = {"amplitude": "Amplitude", "phase": "Phase"}
    return _correlations(
        frame,
        rows=["dataset", "images"],
        column="donor",
        names=donors,
        title="Fourier mix",
        caption=(
            "Spearman correlation of the likelihoods of mixed images with those of the images that "
            f"gave the amplitudes and the phases. {SPREAD}"
        ),
        row_header=("Model of", "Images"),
        group="Correlation with the donor of",
    )


def correlation_table(frame: pd.DataFrame) -> Table:
    """Spearman correlation of two models' raw likelihoods over the images of a dataset.

    ``frame`` has also dataset (that both models are of), first, second (families, or general),
    images and correlation.
    """
    return _correlations(
        frame,
        rows=["dataset", "first", "second"],
        column="images",
        names={name: name for name in frame["images"].unique()} if "images" in frame else {},
        title="Rank correlation of likelihoods between models",
        caption=(
            "Spearman correlation over the test fold of each dataset, models of the same seed; "
            f"general is the general model. {SPREAD}"
        ),
        row_header=("Models of", "First", "Second"),
        group="Images",
    )


def _correlations(
    frame: pd.DataFrame,
    *,
    rows: list[str],
    column: str,
    names: Mapping[str, str],
    title: str,
    caption: str,
    row_header: tuple[str, ...],
    group: str,
) -> Table:
    _check(frame, [*rows, column, "seed"], "correlation", {column: names})
    numbers = _by_place(frame, [*rows, column], "correlation")
    return Table(
        title=title,
        caption=caption,
        row_header=row_header,
        columns=tuple((group, name) for name in names.values()),
        rows=tuple(
            _row(labels, [numbers.get((*labels, name), {}) for name in names])
            for labels in frame[rows].drop_duplicates().itertuples(index=False, name=None)
        ),
        measure=CORRELATION,
    )


def bpd_table(frame: pd.DataFrame, model: str = "") -> Table:
    """Bits per dimension in the layout of Table S1: dataset by kind of model.

    ``frame`` has also dataset, kind (general, scratch, finetuned) and bpd.
    Raises ValueError for missing columns, an unknown kind, or two numbers for one place.
    """
    _check(frame, ["dataset", "kind", "seed"], "bpd", {"kind": KIND_NAMES})
    kinds = [kind for kind in KIND_NAMES if kind in set(frame["kind"])]
    numbers = _by_place(frame, ["dataset", "kind"], "bpd")
    return Table(
        title="Maximum-likelihood performance" + (f" of {model}" if model else ""),
        caption=(
            "Bits per dimension on the test fold, one sample of dequantisation noise an image; "
            f"lower is better. {SPREAD} {BOLD}"
        ),
        row_header=("In-dist",),
        columns=tuple(("Bits per dimension", KIND_NAMES[kind]) for kind in kinds),
        rows=tuple(
            _row((dataset,), [numbers.get((dataset, kind), {}) for kind in kinds])
            for dataset in frame["dataset"].unique()
        ),
        measure=BITS_PER_DIMENSION,
    )


def _detections(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame of :func:`detection_table`, checked, with the scores that have a column."""
    _check(
        frame,
        ["dataset", "setting", "outlier_loss", "ood", "score", "seed"],
        "auroc",
        {"setting": SETTING_NAMES, "outlier_loss": LOSS_NAMES},
    )
    hidden = {*SCORES.built_in} - {*SCORE_NAMES}
    return frame[~frame["score"].isin(hidden)]


def _pair_rows(
    frame: pd.DataFrame, groups: list[str], keys: Sequence[Key], means: bool
) -> tuple[Row, ...]:
    """Rows of in-distribution × outlier dataset with a cell a key, and where asked the means."""
    numbers = _by_place(frame, ["dataset", "ood", *groups], "auroc")
    datasets = list(frame["dataset"].unique())
    rows, averages = [], {}
    for dataset in datasets:
        oods = list(frame.loc[frame["dataset"] == dataset, "ood"].unique())
        lines = [[numbers.get((dataset, ood, *key), {}) for key in keys] for ood in oods]
        rows += [_row((dataset, ood), values) for ood, values in zip(oods, lines, strict=True)]
        averages[dataset] = [_mean_per_seed(column) for column in zip(*lines, strict=True)]
        if means:
            rows.append(_row((dataset, MEAN), averages[dataset]))
    if means and len(datasets) > 1:
        overall = [_mean_per_seed(column) for column in zip(*averages.values(), strict=True)]
        rows.append(_row((ALL, MEAN), overall))
    return tuple(rows)


def _check(
    frame: pd.DataFrame,
    place: list[str],
    value: str,
    known: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """A table's numbers also name their runs."""
    if "run_id" not in frame:
        raise ValueError("the frame lacks the columns run_id")
    check_frame(frame, place, value, known)


def _by_place(frame: pd.DataFrame, place: list[str], value: str) -> dict[Key, SeedValues]:
    """The frame's numbers, grouped by place and seed."""
    numbers: dict[Key, SeedValues] = {}
    for row in frame.to_dict("records"):
        number = Number(
            float(row[value]),
            # A correlation is from two runs, whose ids a space separates.
            tuple(str(row["run_id"]).split()),
            (str(row["metric"]),) if row.get("metric") else (),
            row.get("replicates"),
        )
        numbers.setdefault(tuple(row[name] for name in place), {})[int(row["seed"])] = number
    return numbers


def _mean_per_seed(parts: Sequence[SeedValues]) -> SeedValues:
    """Mean over the parts within each seed that all of them have."""
    seeds = set(parts[0]).intersection(*parts[1:])
    return {seed: _mean([part[seed] for part in parts]) for seed in seeds}


def _mean(numbers: Sequence[Number]) -> Number:
    return Number(
        math.fsum(number.value for number in numbers) / len(numbers),
        _unique(run_id for number in numbers for run_id in number.run_ids),
        _unique(metric for number in numbers for metric in number.metrics),
        _mean_replicates(numbers),
    )


def _mean_replicates(numbers: Sequence[Number]) -> np.ndarray | None:
    """Replicates of the mean: those of one position are of the same resampled images."""
    arrays = [number.replicates for number in numbers if number.replicates is not None]
    return np.mean(arrays, axis=0) if len(arrays) == len(numbers) else None


def _row(labels: Key, values: Iterable[SeedValues]) -> Row:
    return Row(labels, tuple(_cell(by_seed) for by_seed in values))


def _cell(by_seed: SeedValues) -> Cell | None:
    if not by_seed:
        return None
    ordered = [by_seed[seed] for seed in sorted(by_seed)]
    replicates = _mean_replicates(ordered)
    interval = None
    if replicates is not None:
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(replicates, [tail, 1 - tail])
        interval = (float(low), float(high))
    return Cell(
        values=tuple(number.value for number in ordered),
        run_ids=_unique(run_id for number in ordered for run_id in number.run_ids),
        metrics=_unique(metric for number in ordered for metric in number.metrics),
        interval=interval,
    )


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    """The items without repetition, in their order."""
    return tuple(dict.fromkeys(items))
