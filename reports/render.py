"""A table of results written down: Markdown, LaTeX, CSV, and for the terminal.

The three that people read share :func:`cell_text`, the only place where a number becomes text; CSV
has the numbers in full precision. Each format escapes what is special to it.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING

from reports.tables import Cell, Difference, Entry, Measure, Published, Row, Table

if TYPE_CHECKING:
    import rich.table

__all__ = [
    "cell_numbers",
    "cell_text",
    "latex_text",
    "markdown_text",
    "printed_rows",
    "number_text",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
]

DASH = "–"
LATEX_COLUMNS = 12
"""Columns of numbers side by side; more do not fit the width of a page."""
LATEX_LINES = 40
"""Lines of a table below each other; more, with a caption, do not fit the height of a page."""
WIDE_COLUMNS = 8
"""The same, of numbers with intervals."""
USUAL_SEEDS = 3
"""Seeds behind a number of the paper; other counts are written beside the number."""


def cell_text(cell: Entry | None, measure: Measure) -> str:
    """``mean (std)`` as the paper prints it; a dash stands for what there is not.

    A missing standard deviation says that there is one seed; any other number of seeds than the
    paper's three is appended. A number of the paper is in the paper's own digits, a difference
    has its sign. A bootstrap interval stands in brackets at the end.

    >>> from reports.tables import AUROC_PERCENT, Cell
    >>> for values in [(0.98, 0.985, 0.99), (0.98, 0.99), (0.98,)]:
    ...     print(cell_text(Cell(values, ()), AUROC_PERCENT))
    98.5 (0.5)
    98.5 (0.7) [n=2]
    98.0 (–)
    >>> cell_text(None, AUROC_PERCENT)
    '–'
    >>> paper = Published("99.0", "0.1", "S2")
    >>> cell_text(paper, AUROC_PERCENT)
    '99.0 (0.1)'
    >>> cell_text(Difference(Cell((0.98,), ()), paper), AUROC_PERCENT)
    '−1.0'
    """
    if cell is None:
        return DASH
    if isinstance(cell, Published):
        return f"{cell.mean} ({cell.std})" if cell.std else cell.mean
    if isinstance(cell, Difference):
        # Adding 0 makes a negative zero positive.
        change = round(cell.value(measure) * measure.scale, measure.digits) + 0.0
        return f"{change:+.{measure.digits}f}".replace("-", "−")
    spread = DASH if cell.count == 1 else number_text(cell.std, measure)
    seeds = "" if cell.count in (1, USUAL_SEEDS) else f" [n={cell.count}]"
    ends = ", ".join(number_text(end, measure) for end in cell.interval or ())
    return f"{number_text(cell.mean, measure)} ({spread}){seeds}{f' [{ends}]' * bool(ends)}"


def number_text(value: float, measure: Measure, further: int = 0) -> str:
    """A number as tables print it, or with so many ``further`` digits.

    >>> from reports.tables import AUROC_PERCENT
    >>> number_text(0.98765, AUROC_PERCENT), number_text(0.98765, AUROC_PERCENT, 2)
    ('98.8', '98.765')
    """
    digits = measure.digits + further
    # Adding 0 makes a negative zero positive.
    return f"{round(value * measure.scale, digits) + 0.0:.{digits}f}".replace("-", "−")


def cell_numbers(cell: Entry | None, measure: Measure) -> tuple[str, str, int, tuple[str, ...]]:
    """Mean, std, n and run ids as CSV has them: unscaled, with all digits, "" for none.

    n counts our seeds: 0 for a gap and for a number of the paper, whose printed digits are kept.

    >>> from reports.tables import AUROC_PERCENT
    >>> cell_numbers(Published("99.0", "0.1", "S2"), AUROC_PERCENT)
    ('0.990', '0.001', 0, ())
    """
    if cell is None:
        return "", "", 0, ()
    if isinstance(cell, Published):
        shift = -round(math.log10(measure.scale))
        mean, std = (str(Decimal(text).scaleb(shift)) if text else "" for text in
                     (cell.mean, cell.std))  # fmt: skip
        return mean, std, 0, ()
    if isinstance(cell, Difference):
        return repr(cell.value(measure)), "", cell.ours.count, cell.ours.run_ids
    return repr(cell.mean), repr(cell.std) if cell.count > 1 else "", cell.count, cell.run_ids


def to_markdown(table: Table) -> str:
    """A heading, a pipe table and the caption; the two header levels become ``group: name``."""
    names = [f"{group}: {name}" if group else name for group, name in table.columns]
    lines = [
        [markdown_text(text) for text in (*table.row_header, *names)],
        ["---"] * len(table.row_header) + ["---:"] * len(names),
    ]
    for row, labels, _ in printed_rows(table):
        best = table.best(row)
        texts = [cell_text(cell, table.measure) for cell in row.cells]
        lines.append(
            [markdown_text(label) for label in labels]
            + [f"**{text}**" if i in best else text for i, text in enumerate(texts)]
        )
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {markdown_text(table.title)}\n\n{body}\n\n{markdown_text(table.caption)}\n"


def to_latex(table: Table) -> str:
    r"""A complete table environment; the document needs ``\usepackage{booktabs}``.

    Where the columns are too many for a page, groups of them follow below each other, and where
    the lines are too many, in further environments of the same number.
    """
    parts = [_tabular(table, places) for places in _latex_parts(table)]
    at_once = max(LATEX_LINES // (len(table.rows) + 5), 1)
    lines = []
    for start in range(0, len(parts), at_once):
        title = latex_text(table.title) + " (continued)" * (start > 0)
        caption = "" if start else f" {latex_text(table.caption)}"
        lines += [
            r"\begin{table}[htbp]",
            *[r"\addtocounter{table}{-1}"] * (start > 0),
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{\textbf{{{title}.}}{caption}}}",
        ]
        for place, part in enumerate(parts[start : start + at_once]):
            lines += [r"\par\medskip"] * (place > 0) + part
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _latex_parts(table: Table) -> list[list[int]]:
    """Places of the columns that stand side by side; a group of columns is not torn apart."""
    parts: list[list[int]] = [[]]
    cells = (cell for row in table.rows for cell in row.cells)
    wide = any(isinstance(cell, Cell) and cell.interval for cell in cells)
    most = WIDE_COLUMNS if wide else LATEX_COLUMNS
    for _, members in groupby(range(len(table.columns)), lambda place: table.columns[place][0]):
        places = list(members)
        if parts[-1] and len(parts[-1]) + len(places) > most:
            parts.append([])
        parts[-1] += places
    return parts


def _tabular(table: Table, shown: Sequence[int]) -> list[str]:
    """The columns at the ``shown`` places, with the labels of the rows."""
    width = len(table.row_header)
    columns = [table.columns[place] for place in shown]
    spans, rules = [], []
    for group, members in groupby(enumerate(columns, width + 1), lambda item: item[1][0]):
        places = [place for place, _ in members]
        spans.append(rf"\multicolumn{{{len(places)}}}{{c}}{{{latex_text(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{places[0]}-{places[-1]}}}")
    header = [*table.row_header, *(name for _, name in columns)]
    lines = [
        # A table wider than the text is centred on it, and needs no further package for that.
        r"\makebox[\textwidth][c]{%",
        rf"\begin{{tabular}}{{{'l' * width}{'r' * len(columns)}}}",
        r"\toprule",
    ]
    if rules:
        lines += [_latex_line([""] * width + spans), " ".join(rules)]
    lines.append(_latex_line([latex_text(text) for text in header]))
    for row, labels, begins in printed_rows(table):
        if begins:
            lines.append(r"\midrule")
        best = table.best(row)
        texts = {place: latex_text(cell_text(row.cells[place], table.measure)) for place in shown}
        lines.append(
            _latex_line(
                [latex_text(label) for label in labels]
                + [rf"\textbf{{{text}}}" if i in best else text for i, text in texts.items()]
            )
        )
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def to_csv(table: Table) -> str:
    """Long form, one line per cell: labels, group, column, mean, std, n, low, high, run ids.

    Numbers are unscaled, an AUROC a fraction, with all their digits; low and high are the bootstrap
    interval. A gap has n = 0 and, as std has with one seed, nothing where a number would be; the
    paper's numbers have n = 0 too.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["mean", "std", "n", "low", "high", "run_ids"]
    writer.writerow([*table.row_header, "group", "column", *numbers])
    for row in table.rows:
        for (group, name), cell in zip(table.columns, row.cells, strict=True):
            mean, std, count, run_ids = cell_numbers(cell, table.measure)
            interval = cell.interval if isinstance(cell, Cell) and cell.interval else ()
            low, high = map(repr, interval) if interval else ("", "")
            ids = " ".join(run_ids)
            writer.writerow([*row.labels, group, name, mean, std, count, low, high, ids])
    return text.getvalue()


def to_rich(table: Table) -> "list[rich.table.Table]":
    """The table for a terminal, by rich: one per group of columns, so that each fits 80 characters.

    A line separates the in-distribution datasets.
    """
    # Imported here: rich is for the terminal only, reports are written without one too.
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = []
    for group, members in groupby(enumerate(table.columns), lambda item: item[1][0]):
        columns = {place: name for place, (_, name) in members}
        # Text objects throughout: plain strings would be searched for rich's own [markup].
        title = Text(f"{table.title}: {group}" if group else table.title)
        part = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for text in table.row_header:
            part.add_column(Text(text), no_wrap=True)
        for name in columns.values():
            part.add_column(Text(name), justify="right")
        for row, labels, begins in printed_rows(table):
            if begins:
                part.add_section()
            best = table.best(row)
            cells = [
                Text(cell_text(row.cells[i], table.measure), style="bold" if i in best else "")
                for i in columns
            ]
            part.add_row(*map(Text, labels), *cells)
        shown.append(part)
    return shown


def printed_rows(table: Table) -> Iterator[tuple[Row, tuple[str, ...], bool]]:
    """Each row, its labels as printed, and whether a block of rows begins with it.

    Rows of one in-distribution dataset are a block, which names the dataset once. A table with
    only one label a row is one block.
    """
    previous: Row | None = None
    for row in table.rows:
        if previous is None:
            yield row, row.labels, True
        elif len(row.labels) == 1:
            yield row, row.labels, False
        elif row.labels[0] == previous.labels[0]:
            yield row, ("", *row.labels[1:]), False
        else:
            yield row, row.labels, True
        previous = row


def markdown_text(text: str) -> str:
    r"""Text with Markdown's special characters escaped, on one line.

    >>> print(markdown_text("a|b_c\nd"))
    a\|b\_c d
    """
    return re.sub(r"[\\`*_|<&~]", r"\\\g<0>", " ".join(text.split()))


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "–": "--",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    "→": r"$\to$",
    "·": r"$\cdot$",
    "’": "'",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_text(text: str) -> str:
    r"""Text with LaTeX's special characters escaped, on one line.

    >>> print(latex_text("4×4 and Diff† in %"))
    $4\times4$ and Diff$^\dagger$ in \%
    """

    def replace(match: re.Match[str]) -> str:
        found = match[0]
        if len(found) > 1:
            return "$" + found.replace("×", r"\times") + "$"
        return LATEX[found]

    special = "".join(map(re.escape, LATEX))
    return re.sub(rf"\d+×\d+|[{special}]", replace, " ".join(text.split()))


def _latex_line(texts: list[str]) -> str:
    r"""One line of a tabular.

    A ``[`` or ``*`` at its start would be read as an argument of the ``\\`` that ended the line
    before, hence the braces.
    """
    guard = "{}" if texts[0][:1] in ("[", "*") else ""
    return f"{guard}{' & '.join(texts)} \\\\"
