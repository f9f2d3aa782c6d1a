"""The paper's numbers: digit for digit, beside ours in every format, and where ours are from."""

import csv
import io
import itertools
import re
import shutil
import subprocess
from decimal import Decimal

import pandas as pd
import pytest
import rich.console

from reports.layouts import bpd_table, detection_table
from reports.provenance import provenance, runs_behind
from reports.published import PAPER, PUBLISHED, beside, published_table
from reports.render import cell_text, to_csv, to_latex, to_markdown, to_rich

# Columns of the supplement's text, top to bottom, as its text version prints them.
S2_ROWS = [
    *[("cifar10", ood) for ood in ("svhn", "cifar100", "lsun", "Mean")],
    *[("cifar100", ood) for ood in ("svhn", "cifar10", "lsun", "Mean")],
    ("All", "Mean"),
]
S2 = {
    ("Unsupervised", "4×4"): """96.4 (1.4)|85.4 (0.7)|95.1 (1.2)|92.3 (1.0)|84.5 (2.1)|61.9 (0.5)
        |84.6 (0.1)|77.0 (0.7)|84.7 (0.3)""",
    ("Unsupervised", "Diff"): """98.6 (0.1)|84.5 (0.6)|94.1 (1.5)|92.4 (0.6)|82.2 (3.1)|59.8 (0.5)
        |82.4 (0.3)|74.8 (1.1)|83.6 (0.3)""",
    ("Unsupervised", "Diff†"): """99.0 (0.1)|86.8 (0.5)|95.8 (0.8)|93.8 (0.4)|85.4 (2.1)|62.5 (0.3)
        |85.4 (0.1)|77.8 (0.6)|85.8 (0.2)""",
    ("Supervised", "4×4"): """96.1 (1.7)|88.3 (0.7)|95.3 (1.1)|93.3 (1.2)|89.6 (1.0)|67.0 (0.6)
        |85.7 (0.4)|80.8 (0.7)|87.0 (0.9)""",
    ("Supervised", "Diff"): """98.6 (0.1)|87.4 (0.5)|94.1 (1.7)|93.4 (0.8)|88.6 (0.8)|64.9 (0.8)
        |84.3 (0.3)|79.3 (0.6)|86.3 (0.7)""",
    ("Supervised", "Diff†"): """99.1 (0.1)|88.5 (0.3)|96.2 (0.9)|94.6 (0.4)|89.4 (0.7)|65.3 (0.7)
        |86.3 (0.2)|80.3 (0.5)|87.5 (0.4)""",
}
S3_ROWS = list(itertools.product(("cifar10", "cifar100"), ("celeba", "tinyimagenet")))
S3 = {
    ("Unsupervised", "Raw [4×4]"): "96.6 (1.2)|90.7 (0.9)|80.9 (1.3)|77.3 (0.5)",
    ("Unsupervised", "Diff"): "96.1 (1.2)|90.6 (0.7)|76.4 (2.4)|77.5 (0.5)",
    ("Unsupervised", "Diff†"): "97.6 (0.5)|92.1 (0.4)|80.4 (1.1)|79.7 (0.3)",
    ("Supervised", "Raw [4×4]"): "96.6 (1.9)|91.1 (0.8)|81.9 (5.4)|79.5 (0.4)",
    ("Supervised", "Diff"): "96.2 (2.1)|91.3 (0.9)|79.1 (7.2)|79.7 (0.5)",
    ("Supervised", "Diff†"): "97.8 (1.0)|92.7 (0.4)|81.7 (4.7)|80.6 (0.5)",
}
S1_ROWS = [("svhn",), ("cifar10",), ("cifar100",)]
S1 = {("", "Tiny"): "2.34|3.41|3.43", ("", "Retr"): "2.07|3.40|3.43"}
S1 |= {("", "Finet"): "2.06|3.36|3.39"}
S4_ROWS = [
    (dataset, ood)
    for dataset, *oods in (
        ("cifar10", "svhn", "cifar100", "lsun"),
        ("cifar100", "svhn", "cifar10", "lsun"),
        ("svhn", "cifar10", "cifar100", "lsun"),
    )
    for ood in oods
]
S4 = {("", "AUC"): "93|89|93|73|70|89|100|100|100"}
S52_ROWS = [("All", "Mean")]
S52 = {("", "Raw"): "53.3", ("", "4×4"): "59.2"}
TRANSCRIBED = {
    "S1": (S1_ROWS, S1),
    "S2": (S2_ROWS, S2),
    "S3": (S3_ROWS, S3),
    "S4": (S4_ROWS, S4),
    "S5.2": (S52_ROWS, S52),
}


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


def our_column(name: str, column: tuple[str, str]) -> tuple[str, str]:
    """The supplement's column by the names of our tables, written out here once more."""
    if name == "S1":
        kinds = {"Tiny": "General", "Retr": "From scratch", "Finet": "Finetuned"}
        return "Bits per dimension", kinds[column[1]]
    if name == "S5.2":
        return "No outlier loss", column[1]
    if name == "S4":
        return "No outlier loss", "Raw"
    loss = {"Unsupervised": "Binary outlier loss", "Supervised": "Binary outlier loss, supervised"}
    return loss[column[0]], column[1].removeprefix("Raw [").removesuffix("]")


def detection_frame(rows: list[tuple]) -> pd.DataFrame:
    columns = ["run_id", "seed", "dataset", "setting", "outlier_loss", "ood", "score", "auroc"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(metric="auroc/" + frame["ood"] + "/" + frame["score"])


def bpd_frame(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["run_id", "seed", "dataset", "kind", "bpd", "metric"])


@pytest.mark.parametrize("name", TRANSCRIBED)
def test_published_tables_digit_for_digit(name):
    rows, columns = TRANSCRIBED[name]
    table = published_table(name)
    assert [row.labels for row in table.rows] == rows
    assert list(table.columns) == list(columns)
    for place, column in enumerate(columns):
        shown = [cell_text(row.cells[place], table.measure) for row in table.rows]
        assert shown == split(columns[column])
        assert {row.cells[place].source for row in table.rows} == {name}


def test_published_means_are_the_means_of_the_published_pairs():
    table = published_table("S2")
    for place in range(len(table.columns)):
        numbers = [Decimal(row.cells[place].mean) for row in table.rows]
        for first in (0, 4):
            # Both the parts and the mean are rounded to 0.1.
            mean = sum(numbers[first : first + 3]) / 3
            assert abs(mean - numbers[first + 3]) <= Decimal("0.1")
        assert abs((numbers[3] + numbers[7]) / 2 - numbers[8]) <= Decimal("0.1")


SKETCH = [
    ("r1", 1, "sketch-shapes", "unsupervised", "binary", "sketch-digits", "diff", 0.75),
    ("r2", 2, "sketch-shapes", "unsupervised", "binary", "sketch-digits", "diff", 0.25),
    ("r3", 1, "sketch-shapes", "unsupervised", "none", "sketch-digits", "raw", 0.5),
]


@pytest.mark.parametrize("key", PAPER)
def test_every_published_number_is_beside_ours_in_every_format(key):
    kind, family, _ = key
    own = bpd_table(bpd_frame([])) if kind == "bpd" else detection_table(detection_frame(SKETCH))
    table = beside(own, PAPER[key])
    lines = {
        (*row[: len(table.row_header)], row[-8], row[-7]): row
        for row in csv.reader(io.StringIO(to_csv(table)))
    }
    markdown = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in to_markdown(table).splitlines()
        if line.startswith("|")
    ]
    # A dataset's name is printed once, above its rows.
    by_labels, dataset = {}, ""
    for line in markdown[2:]:
        dataset = line[0] or dataset
        by_labels[(dataset, *line[1 : len(table.row_header)])] = line
    console = rich.console.Console(file=io.StringIO(), width=79, color_system=None)
    for part in to_rich(table):
        console.print(part)
    terminal, latex = console.file.getvalue(), to_latex(table)
    for name in PAPER[key]:
        rows, columns = TRANSCRIBED[name]
        for column, texts in columns.items():
            group, score = our_column(name, column)
            place = table.columns.index((f"{group}: {score}", "paper"))
            assert table.columns[place - 1 : place + 2] == tuple(
                (f"{group}: {score}", part) for part in ("ours", "paper", "Δ")
            )
            for labels, text in zip(rows, split(texts), strict=True):
                shown = by_labels[labels][len(table.row_header) + place - 1 :][:3]
                assert shown == ["–", text, "–"]
                line = lines[(*labels, f"{group}: {score}", "paper")]
                mean, std, count, _, _, run_ids = line[-6:]
                printed = re.findall(r"[\d.]+", text)
                scale = 1 if kind == "bpd" else 100
                assert Decimal(mean) * scale == Decimal(printed[0])
                assert len(mean) >= len(printed[0])
                assert (std == "") == (len(printed) == 1) and (count, run_ids) == ("0", "")
                assert f"-- & {text} & --" in latex
                assert text in terminal


def test_our_numbers_stay_as_they_were():
    table = beside(detection_table(detection_frame(SKETCH)), ("S2", "S3"))
    assert table.columns[0] == ("No outlier loss", "Raw")
    row = table.rows[0]
    assert row.labels == ("sketch-shapes", "sketch-digits")
    place = table.columns.index(("Binary outlier loss: Diff", "ours"))
    shown = [cell_text(cell, table.measure) for cell in row.cells]
    assert (shown[0], shown[place : place + 3]) == ("50.0 (–)", ["50.0 (35.4) [n=2]", "–", "–"])
    assert {text for i, text in enumerate(shown) if i not in (0, place)} == {"–"}
    assert table.rows[-1].labels == ("All", "Mean")


def paper_like(oods: dict[str, list[str]], value: float) -> pd.DataFrame:
    return detection_frame(
        [
            (f"{dataset}-{seed}", seed, dataset, "unsupervised", "binary", ood, "diff", value)
            for dataset in oods
            for ood in oods[dataset]
            for seed in (1, 2, 3)
        ]
    )


def differences(frame: pd.DataFrame) -> dict[tuple[str, ...], str]:
    table = beside(detection_table(frame), ("S2", "S3"))
    place = table.columns.index(("Binary outlier loss: Diff", "Δ"))
    return {row.labels: cell_text(row.cells[place], table.measure) for row in table.rows}


def test_differences_are_ours_minus_the_papers():
    oods = {"cifar10": ["svhn", "cifar100", "lsun"], "cifar100": ["svhn", "cifar10", "lsun"]}
    shown = differences(paper_like(oods, 0.9))
    assert shown["cifar10", "svhn"] == "−8.6" and shown["cifar100", "cifar10"] == "+30.2"
    assert shown["cifar10", "celeba"] == "–"
    means = [shown[labels] for labels in S2_ROWS if labels[1] == "Mean"]
    assert means == ["−2.4", "+15.2", "+6.4"]
    same = beside(bpd_table(bpd_frame([("r", 1, "svhn", "scratch", 2.07, "bpd/svhn")])), ["S1"])
    assert [cell_text(cell, same.measure) for cell in same.rows[0].cells[3:6]] == [
        "2.07 (–)",
        "2.07",
        "+0.00",
    ]


def test_means_over_other_datasets_are_not_compared():
    oods = {"cifar10": ["svhn", "cifar100", "lsun", "celeba"], "cifar100": ["svhn", "cifar10"]}
    shown = differences(paper_like(oods, 0.9))
    assert shown["cifar10", "celeba"] == "−6.1" and shown["cifar100", "svhn"] == "+7.8"
    assert {shown[labels] for labels in S2_ROWS if labels[1] == "Mean"} == {"–"}


def test_latex_puts_groups_of_columns_below_each_other():
    text = to_latex(beside(detection_table(detection_frame(SKETCH)), ("S2", "S3")))
    widths = [len(found) for found in re.findall(r"\\begin\{tabular\}\{ll(r+)\}", text)]
    assert widths == [10, 9] and text.count(r"\par\medskip") == 1
    assert text.count(r"cifar10 & svhn") == 2


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
def test_latex_compiles(tmp_path):
    wide = beside(detection_table(paper_like({"cifar10": ["svhn"]}, 0.5)), ("S2", "S3"))
    document = "\n".join(map(to_latex, [wide, *map(published_table, TRANSCRIBED)]))
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n"
        f"\\begin{{document}}\n{document}\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_bold_is_for_ours_only():
    oods = {"cifar10": ["svhn"]}
    table = beside(detection_table(paper_like(oods, 0.5)), ("S2", "S3"))
    assert all(table.best(row) == frozenset() for row in table.rows)


def test_sources_name_columns_of_our_tables():
    for source in PUBLISHED.values():
        assert len(source.places) == len(source.columns) == len(set(source.places))


def test_provenance_is_of_the_cells_of_the_csv():
    tables = {
        "detection": beside(detection_table(detection_frame(SKETCH)), ("S2", "S3")),
        "bpd": bpd_table(bpd_frame([("r 4", 1, "svhn", "scratch", float("nan"), "bpd/svhn")])),
    }
    assert runs_behind(tables.values()) == ["r3", "r1", "r2", "r", "4"]
    found = provenance(tables, {"r1": {"git_commit": "abc"}})
    assert found["runs"] == {"r3": {}, "r1": {"git_commit": "abc"}, "r2": {}, "r": {}, "4": {}}
    cells = iter(found["cells"])
    for name, table in tables.items():
        _, *lines = csv.reader(io.StringIO(to_csv(table)))
        for line in lines:
            cell = next(cells)
            *labels, group, column, mean, std, count, _, _, run_ids = line
            assert [cell["table"], *cell["row"]] == [name, *labels]
            assert [cell["group"], cell["column"], cell["n"]] == [group, column, int(count)]
            assert cell["run_ids"] == run_ids.split()
            for key, text in {"mean": mean, "std": std}.items():
                assert cell[key] == (float(text) if text not in ("", "nan") else None)
    assert next(cells, None) is None
    [diff] = [
        cell
        for cell in found["cells"]
        if cell["row"] == ["sketch-shapes", "Mean"] and cell["n"] == 2
    ]
    assert diff["metrics"] == ["auroc/sketch-digits/diff"] and diff["source"] == ""
    sources = {cell["source"] for cell in found["cells"] if cell["column"] == "paper"}
    assert sources == {"", "S2", "S3"}
