"""Rendering: every number recomputed from the frame, escaping, and LaTeX that compiles."""

import csv
import io
import re
import statistics

import numpy as np
import pandas as pd
import pytest
import rich.console
from report_files import article, compile_latex
from scipy.stats import ttest_ind

from reports.layouts import bpd_table, detection_table
from reports.render import to_csv, to_latex, to_markdown, to_rich
from reports.tables import AUROC_PERCENT, Cell, Row, Table

SCORES = {"Raw": "raw", "4×4": "last_scale", "Diff": "diff", "Diff†": "diff_outlier"}
GROUPS = {
    "No outlier loss": ("none", "unsupervised"),
    "Binary outlier loss": ("binary", "unsupervised"),
    "Binary outlier loss, supervised": ("binary", "supervised"),
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    rows = [
        (f"{dataset}/{group}/{seed}", seed, dataset, setting, loss, ood, score, rng.uniform(0.5, 1))
        for dataset, oods in {"cifar10": ["svhn", "lsun"], "my_set": ["svhn", "100%|x"]}.items()
        for group, (loss, setting) in enumerate(GROUPS.values())
        for ood in oods
        for score in SCORES.values()
        # Three seeds without a loss, two with one, and one in the supervised setting.
        for seed in range(3 - group)
        if (dataset, score, loss) != ("my_set", "diff", "none")
    ]
    columns = ["run_id", "seed", "dataset", "setting", "outlier_loss", "ood", "score", "auroc"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def expected(frame) -> dict[tuple[str, ...], tuple[list[float], set[str]]]:
    """(in-dist, out-dist, group, column) → values by seed and runs, by another way: pivoting."""
    cells = {}
    for group, (loss, setting) in GROUPS.items():
        for column, score in SCORES.items():
            chosen = frame[
                (frame["outlier_loss"] == loss)
                & (frame["setting"] == setting)
                & (frame["score"] == score)
            ]
            pivot = chosen.pivot(index="seed", columns=["dataset", "ood"], values="auroc")
            means = pivot.T.groupby(level=0).mean().T
            for dataset, ood in frame[["dataset", "ood"]].drop_duplicates().to_numpy():
                here = chosen[chosen["dataset"] == dataset]
                key = (dataset, ood) in pivot.columns
                runs = set(here["run_id"])
                cells[dataset, ood, group, column] = (
                    list(pivot[dataset, ood]) if key else [],
                    runs,
                )
                cells[dataset, "Mean", group, column] = (list(means[dataset]) if key else [], runs)
            complete = means.shape[1] == 2
            overall = list(means.mean(axis=1)) if complete else []
            cells["All", "Mean", group, column] = (overall, set(chosen["run_id"]))
    return cells


def as_printed(values: list[float]) -> str:
    if not values:
        return "–"
    mean = round(100 * statistics.mean(values), 1)
    if len(values) == 1:
        return f"{mean:.1f} (–)"
    suffix = "" if len(values) == 3 else f" [n={len(values)}]"
    return f"{mean:.1f} ({round(100 * statistics.stdev(values), 1):.1f}){suffix}"


def expected_grid(expected, bold: str) -> list[list[str]]:
    """Cell texts by row; the best and what is not told from it are wrapped by ``bold``."""
    rows: dict[tuple[str, str], dict[int, list[float]]] = {}
    places = {place: i for i, place in enumerate((g, c) for g in GROUPS for c in SCORES)}
    for (dataset, ood, *place), (values, _) in expected.items():
        rows.setdefault((dataset, ood), {})[places[tuple(place)]] = values
    order = [("cifar10", "svhn"), ("cifar10", "lsun"), ("cifar10", "Mean")]
    order += [("my_set", "svhn"), ("my_set", "100%|x"), ("my_set", "Mean"), ("All", "Mean")]
    grid = []
    for key in order:
        values = [rows[key][i] for i in range(len(places))]
        top = max(filter(None, values), key=statistics.mean)
        texts = [as_printed(each) for each in values]
        for place, each in enumerate(values):
            # Of one seed nothing is known but its value.
            several = len(each) > 1 and len(top) > 1
            if each == top or several and ttest_ind(each, top, equal_var=False).pvalue > 0.05:
                texts[place] = bold.format(texts[place])
        grid.append(texts)
    return grid


def test_markdown_numbers(frame, expected):
    lines = [
        line for line in to_markdown(detection_table(frame)).splitlines() if line.startswith("|")
    ]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    header, rule, *body = cells
    assert header == ["In-dist", "Out-dist"] + [f"{g}: {c}" for g in GROUPS for c in SCORES]
    assert rule == ["---"] * 2 + ["---:"] * 12
    assert [line[:2] for line in body] == [
        ["cifar10", "svhn"],
        ["", "lsun"],
        ["", "Mean"],
        [r"my\_set", "svhn"],
        ["", r"100%\|x"],
        ["", "Mean"],
        ["All", "Mean"],
    ]
    assert [line[2:] for line in body] == expected_grid(expected, "**{}**")


def test_latex_numbers(frame, expected):
    text = to_latex(detection_table(frame))
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    groups, names, *rows = [
        [cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in body
    ]
    assert groups == ["", "", *(rf"\multicolumn{{4}}{{c}}{{{group}}}" for group in GROUPS)]
    assert names == ["In-dist", "Out-dist"] + ["Raw", r"$4\times4$", "Diff", r"Diff$^\dagger$"] * 3
    assert r"\cmidrule(lr){3-6} \cmidrule(lr){7-10} \cmidrule(lr){11-14}" in text
    assert rows[4][:2] == ["", r"100\%\textbar{}x"]
    shown = [[cell.replace("--", "–") for cell in row[2:]] for row in rows]
    assert shown == expected_grid(expected, r"\textbf{{{}}}")
    # One rule under the header and one above each further dataset and the overall mean.
    assert text.count(r"\midrule") == 3


def test_csv_numbers_and_runs(frame, expected):
    lines = list(csv.DictReader(io.StringIO(to_csv(detection_table(frame)))))
    header = ["In-dist", "Out-dist", "group", "column", "mean", "std", "n"]
    header += ["low", "high", "run_ids"]
    assert list(lines[0]) == header
    assert len(lines) == len(expected)
    for line in lines:
        key = (line["In-dist"], line["Out-dist"], line["group"], line["column"])
        values, runs = expected[key]
        assert line["n"] == str(len(values))
        assert (line["mean"] == "") == (not values)
        assert (line["std"] == "") == (len(values) < 2)
        assert set(line["run_ids"].split()) == (runs if values else set())
        if values:
            assert float(line["mean"]) == pytest.approx(statistics.mean(values), abs=1e-15)
        if len(values) > 1:
            assert float(line["std"]) == pytest.approx(statistics.stdev(values), rel=1e-12)


def terminal(table: Table) -> str:
    console = rich.console.Console(file=io.StringIO(), width=400, color_system=None)
    for part in to_rich(table):
        console.print(part)
    return console.file.getvalue()


def test_terminal_numbers_a_group_of_columns_at_a_time(frame, expected):
    table = detection_table(frame)
    grid = expected_grid(expected, "{}")
    for part, group in zip(to_rich(table), dict.fromkeys(g for g, _ in table.columns), strict=True):
        assert str(part.title).endswith(group)
        places = [i for i, (own, _) in enumerate(table.columns) if own == group]
        shown = [[str(cell) for cell in column.cells] for column in part.columns[2:]]
        assert [list(row) for row in zip(*shown, strict=True)] == [
            [row[i] for i in places] for row in grid
        ]


def test_bpd_has_two_digits_and_bold_is_the_lowest():
    rows = [("r0", 0, "svhn", "scratch", 2.0712), ("r1", 0, "svhn", "finetuned", 2.0648)]
    rows += [("r2", 1, "svhn", "finetuned", 2.0698), ("r3", 2, "svhn", "finetuned", 2.0606)]
    table = bpd_table(pd.DataFrame(rows, columns=["run_id", "seed", "dataset", "kind", "bpd"]))
    assert "| svhn | 2.07 (–) | **2.07 (0.00)** |" in to_markdown(table)
    assert r"svhn & 2.07 (--) & \textbf{2.07 (0.00)} \\" in to_latex(table)
    assert to_latex(table).count(r"\midrule") == 1


NASTY = r"\ & % $ # _ { } ~ ^ < > | * ` [x] (100 %) é"


def nasty_table() -> Table:
    cells = (Cell((0.5, 0.6), ("r1", "r2")), None)
    return Table(
        title=NASTY,
        caption=f"line\nbreak {NASTY}",
        row_header=("In", NASTY),
        columns=((NASTY, "4×4"), ("", "Diff†")),
        rows=(Row(("[a]", NASTY), cells), Row(("*b*", "x\ny"), cells), Row(("c\\", "1×2"), cells)),
        measure=AUROC_PERCENT,
    )


def test_markdown_escapes():
    text = to_markdown(nasty_table())
    escaped = r"\\ \& % $ # \_ { } \~ ^ \< > \| \* \` [x] (100 %) é"
    assert text.startswith(f"### {escaped}\n\n| In | {escaped} | {escaped}: 4×4 | Diff† |\n")
    assert f"\n\nline break {escaped}\n" in text
    assert r"| \*b\* | x y | 55.0 (7.1) [n=2] | – |" in text
    # The backslash at the end of a label must not escape the bar behind it.
    assert "| c\\\\ | 1×2 |" in text


def test_latex_escapes():
    text = to_latex(nasty_table())
    escaped = (
        r"\textbackslash{} \& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} "
        r"\textless{} \textgreater{} \textbar{} * ` [x] (100 \%) é"
    )
    assert rf"\caption{{\textbf{{{escaped}.}} line break {escaped}}}" in text
    assert rf"In & {escaped} & $4\times4$ & Diff$^\dagger$ \\" in text
    assert rf"\multicolumn{{1}}{{c}}{{{escaped}}} & \multicolumn{{1}}{{c}}{{}} \\" in text
    assert r"{}[a] & " in text and r"{}*b* & x y & 55.0 (7.1) [n=2] & -- \\" in text
    assert r"c\textbackslash{} & $1\times2$ & " in text


def test_csv_and_terminal_keep_text_as_it_is():
    lines = list(csv.DictReader(io.StringIO(to_csv(nasty_table()))))
    assert lines[0][NASTY] == NASTY and lines[0]["group"] == NASTY
    assert lines[2][NASTY] == "x\ny"
    shown = terminal(nasty_table())
    assert "[a]" in shown and NASTY in shown


def test_empty_tables_can_be_written(frame):
    table = detection_table(frame[:0])
    assert "| In-dist | Out-dist |\n| --- | --- |\n\n" in to_markdown(table)
    assert r"\begin{tabular}{ll}" in to_latex(table)
    assert to_csv(table).count("\n") == 1
    assert to_rich(table) == []


def large_table() -> Table:
    """As large as all scores of three in-distributions: 17 rows of 13 numbers with intervals."""
    cells = (Cell((0.936, 0.940), ("r1", "r2"), interval=(0.914, 0.962)),) * 13
    return Table(
        title="All scores (sketch)",
        caption="AUROC in %, in brackets an interval. " * 10,
        row_header=("In-dist", "Out-dist"),
        columns=tuple((f"Group {i // 4}", f"Score {i}") for i in range(13)),
        rows=tuple(Row((f"sketch-{i // 6}", f"sketch-{i}"), cells) for i in range(17)),
        measure=AUROC_PERCENT,
    )


def test_a_table_that_is_too_long_for_a_page_goes_on_in_another_under_the_same_number():
    text = to_latex(large_table())
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\addtocounter{table}{-1}") == 1
    assert text.count(r"\textbf{All scores (sketch) (continued).}") == 1
    assert text.count("AUROC in") == 10 and text.count("sketch-16") == 2
    assert to_latex(nasty_table()).count(r"\begin{table}") == 1


def test_latex_compiles(frame, tmp_path):
    tables = [detection_table(frame), detection_table(frame[:0]), nasty_table(), large_table()]
    printed = compile_latex(article(map(to_latex, tables)), tmp_path)
    assert "too large for page" not in printed
