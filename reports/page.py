"""The report as one HTML page: tables that sort, figures that zoom, and the runs behind numbers.

The page is a single file that asks for nothing from elsewhere. It is ``page.html`` filled in, with
``page.css`` and ``page.js`` inside; without scripts it can be read too, and the runs be followed.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

import jinja2

from reports.document import Document, RunLink
from reports.layouts import MEAN
from reports.render import cell_numbers, cell_text, number_text, printed_rows
from reports.tables import Cell, Difference, Entry, Measure, Published, Row, Table

__all__ = ["to_html"]


def to_html(document: Document) -> str:
    """The whole report as one page of HTML, for any browser of 2024 or later.

    Raises KeyError for a run behind a number or picture that ``document.runs`` does not have.
    """
    style = _resource("look.css", "oodflow") + _resource("page.css")
    script = _resource("page.js")
    anchors = {
        id(each): f"{kind}-{number}"
        for kind, group in (("table", document.tables.values()), ("figure", document.pictures))
        for number, each in enumerate(group, start=1)
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {
        "MEAN": MEAN,
        "anchor_of": lambda each: anchors[id(each)],
        "begins_group": _begins_group,
        "column_groups": _column_groups,
        "data_uri": _data_uri,
        "linked": _linked,
        "printed_rows": printed_rows,
        "shown_cells": _shown_cells,
    }
    return environment.from_string(_resource("page.html")).render(
        document=document,
        policy=_policy(style, script),
        style=style,
        script=script,
    )


@dataclass(frozen=True)
class _Shown:
    """A cell as the page shows it, and what its popover says."""

    id: str
    text: str
    """The mean or difference as printed."""
    spread: str
    """What :func:`cell_text` has after it."""
    style: str
    """CSS classes."""
    sort_value: str
    """The number to sort by, "" where there is none."""
    place: str
    """The labels of the row and of the column."""
    facts: Mapping[str, str]
    """Term → number or name; nothing for a gap, which has no popover."""
    seeds: list[tuple[str, list[RunLink]]]
    """The values and the runs that they are from."""


def _shown_cells(
    table: Table, row: Row, anchor: str, runs: Mapping[str, RunLink]
) -> Iterator[_Shown]:
    best = table.best(row)
    for place, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
        text, _, spread = cell_text(cell, table.measure).partition(" ")
        styles = {"best": place in best, "first": _begins_group(table, place)}
        yield _Shown(
            id=f"{anchor}-{place + 1}",
            text=text,
            spread=spread,
            style=" ".join(name for name, applies in styles.items() if applies),
            sort_value=_sort_value(cell, table.measure),
            place=" · ".join(filter(None, (*row.labels, *column))),
            facts=_facts(cell, table.measure),
            seeds=_seeds(cell, table.measure, runs),
        )


def _sort_value(cell: Entry | None, measure: Measure) -> str:
    """The mean or difference with all digits; "" for what sorts last: gaps, NaN and infinities."""
    number = cell_numbers(cell, measure)[0]
    return number if number and math.isfinite(float(number)) else ""


def _facts(cell: Entry | None, measure: Measure) -> dict[str, str]:
    """What there is to say of a number, in the table's unit; several metrics a line each.

    >>> from reports.tables import AUROC_PERCENT
    >>> _facts(Difference(Cell((0.5,), ("r",)), Published("75.0", "", "S2")), AUROC_PERCENT)
    ... # doctest: +NORMALIZE_WHITESPACE
    {'ours − paper': '−25.000 %', 'mean': '50.000 %', 'seeds': '1', 'paper': '75.0 %',
     'source': 'Table S2'}
    """
    facts: dict[str, str] = {}
    if isinstance(cell, Difference):
        facts = {"ours − paper": _number(cell.value(measure), measure)}
        facts |= _facts(cell.ours, measure) | _facts(cell.paper, measure)
    elif isinstance(cell, Published):
        mean, std = (f"{text}{measure.unit}" if text else "" for text in (cell.mean, cell.std))
        facts = {"paper": mean, "paper’s std": std, "source": f"Table {cell.source}"}
    elif cell is not None:
        interval = " to ".join(_number(end, measure) for end in cell.interval or ())
        std = _number(cell.std, measure) if cell.count > 1 else ""
        facts = {"mean": _number(cell.mean, measure), "std": std, "interval": interval}
        facts |= {"seeds": str(cell.count), "metric": "\n".join(cell.metrics)}
    return {term: text for term, text in facts.items() if text}


def _number(value: float, measure: Measure) -> str:
    """In the table's unit, with more digits than there; CSV has all."""
    return number_text(value, measure, further=2) + measure.unit


def _seeds(
    cell: Entry | None, measure: Measure, runs: Mapping[str, RunLink]
) -> list[tuple[str, list[RunLink]]]:
    """Each seed's value with its run, or where a seed has several runs, all of them at the end."""
    ours = cell.ours if isinstance(cell, Difference) else cell
    if not isinstance(ours, Cell):
        return []
    values = [_number(value, measure) for value in ours.values]
    links = _linked(ours.run_ids, runs)
    # A run has one seed: as many runs as seeds are one each, in the same order.
    if len(values) == len(links):
        return [(value, [link]) for value, link in zip(values, links, strict=True)]
    return [*((value, []) for value in values), ("", links)]


def _linked(run_ids: Iterable[str], runs: Mapping[str, RunLink]) -> list[RunLink]:
    return [runs[run_id] for run_id in run_ids]


def _column_groups(table: Table) -> list[tuple[str, int]]:
    """The groups of columns and how many columns each has; none where all are nameless.

    >>> from reports.tables import AUROC_PERCENT
    >>> columns = (("Diff", "ours"), ("Diff", "paper"), ("", "Raw"))
    >>> _column_groups(Table("", "", (), columns, (), AUROC_PERCENT))
    [('Diff', 2), ('', 1)]
    """
    groups = [
        (group, len(list(run))) for group, run in groupby(table.columns, lambda each: each[0])
    ]
    return groups if any(name for name, _ in groups) else []


def _begins_group(table: Table, place: int) -> bool:
    return place == 0 or table.columns[place][0] != table.columns[place - 1][0]


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _policy(style: str, script: str) -> str:
    """Content security policy: this style, this script, inline images, and nothing else at all."""
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style-src", style), ("script-src", script))
    }
    allowed = [f"{name} 'sha256-{digest}'" for name, digest in hashes.items()]
    return "; ".join(
        ["default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"]
    )


def _resource(name: str, package: str = "reports") -> str:
    return files(package).joinpath(name).read_text("utf-8")
