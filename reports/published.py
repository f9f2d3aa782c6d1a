"""The paper's numbers, Tables S1 to S4 and S5.2 of its supplement, alone and beside ours.

The lines below are the supplement's, number by number. Datasets have the catalogue's names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from reports.layouts import (
    ALL,
    KIND_NAMES,
    LOSS_NAMES,
    MEAN,
    SCORE_NAMES,
    SETTING_NAMES,
)
from reports.tables import (
    AUROC_PERCENT,
    BITS_PER_DIMENSION,
    Cell,
    Difference,
    Entry,
    Measure,
    Published,
    Row,
    Table,
)

__all__ = ["PAPER", "PUBLISHED", "Source", "beside", "published_table"]

Place = tuple[tuple[str, ...], tuple[str, str]]
"""Where a number stands in a table of ours: the row's labels, and the column."""

DETECTION_COLUMNS = tuple(
    (LOSS_NAMES[loss] + SETTING_NAMES[setting], score)
    for loss in LOSS_NAMES
    for setting in SETTING_NAMES
    for score in SCORE_NAMES.values()
)
BPD_COLUMNS = tuple(("Bits per dimension", name) for name in KIND_NAMES.values())


@dataclass(frozen=True)
class Source:
    """One table of the supplement: its columns as printed, what they are here, and its numbers."""

    title: str
    caption: str
    row_header: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Group and name as the supplement prints them."""
    places: tuple[tuple[str, str], ...]
    """The same columns by the names that our tables give them."""
    measure: Measure
    lines: str
    """Labels and numbers, a row a line."""


LOSS = "Binary outlier loss"
OUTLIER_LOSS_PLACES = tuple(
    (group, score)
    for group in (LOSS, f"{LOSS}, supervised")
    for score in (SCORE_NAMES[name] for name in ("last_scale", "diff", "diff_outlier"))
)
"""Columns of Tables S2 and S3.

The supplement does not name the loss of their in-distribution models. They are read as trained with
the binary outlier loss: it is the only one whose settings the supplement gives (S4.4), and Diff†,
which these tables have throughout, is made with it.
"""

PUBLISHED: Mapping[str, Source] = MappingProxyType(
    {
        "S1": Source(
            title="Table S1: maximum likelihood performance in bits per dimension",
            caption=(
                "Single samples of uniform dequantisation noise. Tiny: Glow trained on 80 Million "
                "Tiny Images; Retr: from scratch; Finet: finetuned from Tiny."
            ),
            row_header=("In-dist",),
            columns=(("", "Tiny"), ("", "Retr"), ("", "Finet")),
            places=BPD_COLUMNS,
            measure=BITS_PER_DIMENSION,
            lines="""
            svhn      2.34  2.07  2.06
            cifar10   3.41  3.40  3.36
            cifar100  3.43  3.43  3.39
        """,
        ),
        "S2": Source(
            title="Table S2: anomaly detection performance summary",
            caption="AUC in %, in parentheses the standard deviation across 3 seeds.",
            row_header=("In-dist", "Out-dist"),
            columns=tuple(
                (setting, score)
                for setting in ("Unsupervised", "Supervised")
                for score in ("4×4", "Diff", "Diff†")
            ),
            places=OUTLIER_LOSS_PLACES,
            measure=AUROC_PERCENT,
            lines="""
            cifar10  svhn     96.4 (1.4) 98.6 (0.1) 99.0 (0.1) 96.1 (1.7) 98.6 (0.1) 99.1 (0.1)
            cifar10  cifar100 85.4 (0.7) 84.5 (0.6) 86.8 (0.5) 88.3 (0.7) 87.4 (0.5) 88.5 (0.3)
            cifar10  lsun     95.1 (1.2) 94.1 (1.5) 95.8 (0.8) 95.3 (1.1) 94.1 (1.7) 96.2 (0.9)
            cifar10  Mean     92.3 (1.0) 92.4 (0.6) 93.8 (0.4) 93.3 (1.2) 93.4 (0.8) 94.6 (0.4)
            cifar100 svhn     84.5 (2.1) 82.2 (3.1) 85.4 (2.1) 89.6 (1.0) 88.6 (0.8) 89.4 (0.7)
            cifar100 cifar10  61.9 (0.5) 59.8 (0.5) 62.5 (0.3) 67.0 (0.6) 64.9 (0.8) 65.3 (0.7)
            cifar100 lsun     84.6 (0.1) 82.4 (0.3) 85.4 (0.1) 85.7 (0.4) 84.3 (0.3) 86.3 (0.2)
            cifar100 Mean     77.0 (0.7) 74.8 (1.1) 77.8 (0.6) 80.8 (0.7) 79.3 (0.6) 80.3 (0.5)
            All      Mean     84.7 (0.3) 83.6 (0.3) 85.8 (0.2) 87.0 (0.9) 86.3 (0.7) 87.5 (0.4)
        """,
        ),
        "S3": Source(
            title="Table S3: anomaly detection performance for CelebA and Tiny ImageNet",
            caption="AUC in %, in parentheses the standard deviation across seeds.",
            row_header=("In-dist", "Out-dist"),
            columns=tuple(
                (setting, score)
                for setting in ("Unsupervised", "Supervised")
                for score in ("Raw [4×4]", "Diff", "Diff†")
            ),
            places=OUTLIER_LOSS_PLACES,
            measure=AUROC_PERCENT,
            lines="""
            cifar10  celeba       96.6 (1.2) 96.1 (1.2) 97.6 (0.5) 96.6 (1.9) 96.2 (2.1) 97.8 (1.0)
            cifar10  tinyimagenet 90.7 (0.9) 90.6 (0.7) 92.1 (0.4) 91.1 (0.8) 91.3 (0.9) 92.7 (0.4)
            cifar100 celeba       80.9 (1.3) 76.4 (2.4) 80.4 (1.1) 81.9 (5.4) 79.1 (7.2) 81.7 (4.7)
            cifar100 tinyimagenet 77.3 (0.5) 77.5 (0.5) 79.7 (0.3) 79.5 (0.4) 79.7 (0.5) 80.6 (0.5)
        """,
        ),
        "S4": Source(
            title="Table S4: binary classifier anomaly detection results",
            caption=(
                "AUC in % of p(in-distribution | x) of a Wide-ResNet trained on 80 Million Tiny "
                "Images against the in-distribution."
            ),
            row_header=("In-dist", "OOD"),
            columns=(("", "AUC"),),
            places=((LOSS_NAMES["none"], SCORE_NAMES["raw"]),),
            measure=AUROC_PERCENT,
            lines="""
            cifar10  svhn     93
            cifar10  cifar100 89
            cifar10  lsun     93
            cifar100 svhn     73
            cifar100 cifar10  70
            cifar100 lsun     89
            svhn     cifar10  100
            svhn     cifar100 100
            svhn     lsun     100
        """,
        ),
        "S5.2": Source(
            title="Section S5.2: MRI",
            caption="Mean AUC in % of one modality against the others.",
            row_header=("In-dist", "Out-dist"),
            columns=(("", "Raw"), ("", "4×4")),
            places=tuple((LOSS_NAMES["none"], SCORE_NAMES[name]) for name in ("raw", "last_scale")),
            measure=AUROC_PERCENT,
            lines="All Mean 53.3 59.2",
        ),
    }
)

PAPER: Mapping[tuple[str, str, str], tuple[str, ...]] = MappingProxyType(
    {
        ("detection", "natural", "glow"): ("S2",),
        ("further", "natural", "glow"): ("S3",),
        ("bpd", "natural", "glow"): ("S1",),
        ("detection", "natural", "wide-resnet"): ("S4",),
        ("detection", "mri", "glow"): ("S5.2",),
    }
)
"""Our table: its kind, family of datasets and of models → the supplement's of the same numbers."""

NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?: \((\d+\.\d+)\))?")


def published_table(name: str) -> Table:
    """Table S1, S2, S3 or S4, or S5.2's two numbers, in the supplement's layout and digits.

    >>> published_table("S2").rows[0].cells[0]
    Published(mean='96.4', std='1.4', source='S2')
    """
    source = PUBLISHED[name]
    width = len(source.row_header)
    rows = []
    for line in source.lines.strip().splitlines():
        *labels, numbers = line.split(maxsplit=width)
        cells = tuple(Published(mean, std, name) for mean, std in NUMBER.findall(numbers))
        rows.append(Row(tuple(labels), cells))
    return Table(
        source.title, source.caption, source.row_header, source.columns, tuple(rows), source.measure
    )


def beside(table: Table, names: Iterable[str]) -> Table:
    """Our table with the numbers of the supplement's tables ``names`` beside ours.

    A column that the paper has becomes three: ours, the paper's, and Δ = ours − paper. Rows that
    only the paper has are added, those of an in-distribution dataset before its mean. There is no
    Δ between means over other datasets.
    """
    names = tuple(names)
    paper = _places(names)
    ours: dict[Place, Entry | None] = {
        (row.labels, column): cell
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    }
    shown = {column for _, column in (*ours, *paper)}
    known = BPD_COLUMNS if table.measure == BITS_PER_DIMENSION else DETECTION_COLUMNS
    published = {column for _, column in paper}
    columns: list[tuple[str, str]] = []
    # Scores of plug-ins have no place in the paper.
    ordered = [*(c for c in known if c in shown), *(c for c in table.columns if c not in known)]
    for group, name in ordered:
        if (group, name) in published:
            columns += [(f"{group}: {name}", part) for part in ("ours", "paper", "Δ")]
        else:
            columns.append((group, name))
    rows = []
    for labels in _in_order([row.labels for row in table.rows] + [labels for labels, _ in paper]):
        theirs_of = _averaged(labels, paper)
        # Where the paper prints a mean alone, it is of the pairs that the datasets have.
        alike = not theirs_of or theirs_of == _averaged(labels, ours)
        cells: list[Entry | None] = []
        for column in ordered:
            own, theirs = ours.get((labels, column)), paper.get((labels, column))
            cells.append(own)
            if column in published:
                cells += [theirs, _difference(own, theirs) if alike else None]
        rows.append(Row(labels, tuple(cells)))
    note = f"Paper: {' and '.join(names)} of the supplement; Δ is ours − paper."
    if "S2" in names:
        note += (
            " The paper's means are over SVHN, LSUN and the other CIFAR; "
            "there is no Δ where ours are over other datasets."
        )
    return replace(
        table, caption=f"{table.caption} {note}", columns=tuple(columns), rows=tuple(rows)
    )


def _difference(ours: Entry | None, paper: Published | None) -> Difference | None:
    return Difference(ours, paper) if isinstance(ours, Cell) and paper else None


def _places(names: Iterable[str]) -> dict[Place, Published]:
    return {
        (row.labels, place): cell
        for name in names
        for row in published_table(name).rows
        for place, cell in zip(PUBLISHED[name].places, row.cells, strict=True)
        if isinstance(cell, Published)
    }


def _in_order(labels: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each once: datasets as they first come, a dataset's mean last, the overall mean at the end.

    >>> _in_order([("a", "x"), ("a", "Mean"), ("All", "Mean"), ("b", "x"), ("a", "y")])
    [('a', 'x'), ('a', 'y'), ('a', 'Mean'), ('b', 'x'), ('All', 'Mean')]
    """
    unique = list(dict.fromkeys(labels))
    datasets = list(dict.fromkeys(each[0] for each in unique))
    return sorted(
        unique,
        key=lambda each: (each == (ALL, MEAN), datasets.index(each[0]), each[1:] == (MEAN,)),
    )


def _averaged(
    labels: tuple[str, ...], entries: Mapping[Place, Entry | None]
) -> set[tuple[str, ...]]:
    """Rows that a mean row is the mean of; the paper's means are of Table S2 only.

    A row that is no mean is the mean of itself.
    """
    if labels[1:] != (MEAN,):
        return {labels}
    return {
        row
        for (row, _), entry in entries.items()
        if row[1:] != (MEAN,) and labels[0] in (row[0], ALL)
        if not (isinstance(entry, Published) and entry.source != "S2")
    }
