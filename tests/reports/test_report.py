"""``oodflow report``: where each number is from, and the paper's numbers on a store of sketches."""

import csv
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_files import article, compile_latex, csv_rows
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from oodflow.evaluation.bootstrap import resample_counts
from oodflow.tracking import runs
from oodflow.training.checkpoint import tensor_digest


@pytest.fixture(scope="module")
def written(quickstart):
    folder = quickstart[0].folder / "report"
    return folder, json.loads((folder / "provenance.json").read_text())


def test_provenance_has_the_cells_of_every_csv(written):
    folder, found = written
    assert {cell["table"] for cell in found["cells"]} == {
        file.stem for file in (folder / "tables").iterdir()
    }
    for name in {cell["table"] for cell in found["cells"]}:
        _, *lines = csv.reader((folder / "tables" / f"{name}.csv").read_text().splitlines())
        cells = [cell for cell in found["cells"] if cell["table"] == name]
        for line, cell in zip(lines, cells, strict=True):
            numbers = ["" if cell[key] is None else repr(cell[key]) for key in ("mean", "std", "n")]
            place = [*cell["row"], cell["group"], cell["column"]]
            assert line == [*place, *numbers, "", "", " ".join(cell["run_ids"])]


def test_provenance_names_the_metrics_that_a_cell_averages(quickstart, written):
    store, seen = quickstart[0].store(), set()
    for cell in written[1]["cells"]:
        if not cell["n"]:
            continue
        metrics = [runs.get(store, run_id).metrics for run_id in cell["run_ids"]]
        values = [of_run[name] for of_run in metrics for name in cell["metrics"]]
        assert values and statistics.mean(values) == pytest.approx(cell["mean"], abs=1e-12)
        seen |= set(cell["metrics"])
    assert {"auroc/sketch-digits/diff", "bpd/sketch-shapes"} <= seen


def test_provenance_names_the_weights_and_the_commit(trained):
    store = trained.store()
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    [first, *_] = runs.find(store, {"kind": "finetune", "role": "in_distribution"})
    store.client.set_tag(first.run_id, "mlflow.source.git.commit", "c0ffee")
    assert trained.oodflow("report").code == 0
    found = json.loads((trained.folder / "report" / "provenance.json").read_text())["runs"]
    for run_id, facts in found.items():
        # An analysis has the weights of its model.
        model = runs.get(store, run_id).tags.get("analysed", run_id)
        with runs.artifact(store, model, "checkpoints/model.safetensors") as file:
            assert facts["weights_digest"] == tensor_digest(load_file(file))
        assert facts["git_commit"] == ("c0ffee" if run_id == first.run_id else head)
    [record, _] = runs.find(store, {"kind": "report"})
    with runs.artifact(store, record.run_id, "provenance.json") as file:
        assert json.loads(file.read_text())["runs"] == found


def test_published_tables_are_beside_a_store_of_sketches(trained):
    outcome = trained.oodflow("report", "--published")
    assert outcome.code == 0, outcome.err
    folder = trained.folder / "report"
    assert {"detection-natural", "bpd-natural", "detection-natural-wide-resnet"} <= {
        file.stem for file in (folder / "tables").iterdir()
    }
    text = (folder / "report.md").read_text()
    for numbers in ("| – | 99.0 (0.1) | – |", "| – | 2.34 | – |", "| – | 93 | – |"):
        assert numbers in text
    assert "99.0 (0.1)" in outcome.out and "sketch-digits" in outcome.out


def test_a_store_without_runs_has_no_report_of_the_paper_alone(blank):
    outcome = blank.oodflow("report", "--published")
    assert outcome.code == 2 and "no registered run to report" in outcome.err


SCORES = {"Raw": "raw", "4×4": "last_scale", "Diff": "diff", "Diff†": "diff_outlier"}
OODS = ("sketch-digits", "sketch-letters", "sketch-scenes")
REPLICATES = 20


def score(store, run, name: str, dataset: str) -> np.ndarray:
    """A score from the Parquet files, by pandas alone."""

    def read(run_id: str) -> pd.DataFrame:
        with runs.artifact(store, run_id, f"scores/{dataset}-test.parquet") as path:
            return pd.read_parquet(path)

    own = read(run.run_id)
    if name == "last_scale":
        return own["scale3"].to_numpy()
    contrast = {"diff": "general_run", "diff_outlier": "general_outlier_run"}.get(name)
    base = read(run.tags[contrast])["log_prob"] if contrast else 0
    return (own["log_prob"] - base).to_numpy()


def weighted_aurocs(inliers, outliers, counts) -> list[float]:
    truth = np.repeat([1, 0], [len(inliers), len(outliers)])
    values = np.r_[inliers, outliers]
    return [
        roc_auc_score(truth, values, sample_weight=np.r_[own, other])
        for own, other in zip(*counts, strict=True)
    ]


def expected_texts(store) -> dict[tuple[str, str, str], str]:
    """(outlier dataset or Mean, group, column) → the cell's text, from the score tables."""
    texts = {}
    for group, loss in (("No outlier loss", "none"), ("Binary outlier loss", "binary")):
        found = runs.find(
            store, {"kind": "finetune", "role": "in_distribution", "outlier_loss": loss}
        )
        for column, name in SCORES.items():
            numbers, replicates = {}, {}
            for run in found:
                inliers = score(store, run, name, "sketch-shapes")
                for ood in OODS:
                    outliers = score(store, run, name, ood)
                    counts = [
                        resample_counts(digest(store, run, dataset), 64, REPLICATES)
                        for dataset in ("sketch-shapes", ood)
                    ]
                    ones = np.ones((1, 64)), np.ones((1, 64))
                    key = run.tags["seed"], ood
                    numbers[key] = weighted_aurocs(inliers, outliers, ones)[0]
                    replicates[key] = weighted_aurocs(inliers, outliers, counts)
            for row, members in (*((ood, [ood]) for ood in OODS), ("Mean", OODS)):
                seeds = [
                    statistics.mean(numbers[seed, ood] for ood in members) for seed in ("1", "2")
                ]
                pooled = np.mean(
                    [replicates[seed, ood] for seed in ("1", "2") for ood in members], axis=0
                )
                low, high = np.quantile(pooled, [0.025, 0.975])
                texts[row, group, column] = (
                    f"{100 * statistics.mean(seeds):.1f} ({100 * statistics.stdev(seeds):.1f}) "
                    f"[n=2] [{100 * low:.1f}, {100 * high:.1f}]"
                )
    return texts


def digest(store, run, dataset: str) -> str:
    with runs.artifact(store, run.run_id, f"scores/{dataset}-test.parquet") as path:
        return json.loads(pq.read_schema(path).metadata[b"oodflow.facts"])["images"]


class Cells(HTMLParser):
    """The texts of all cells and headers of a page, table by table, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables and self.tables[-1]:
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def with_intervals(quickstart, tmp_path_factory):
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("intervals") / "workspace")
    outcome = workspace.oodflow("report", "--bootstrap", str(REPLICATES))
    assert outcome.code == 0, outcome.err
    return workspace, expected_texts(workspace.store())


def test_csv_and_markdown_have_the_numbers_of_the_score_tables(with_intervals):
    workspace, expected = with_intervals
    tables = workspace.folder / "report" / "tables"
    lines = csv_rows(tables.parent, "detection-sketch")
    found = {}
    for line in lines:
        mean, std, low, high = (100 * float(line[key]) for key in ("mean", "std", "low", "high"))
        text = f"{mean:.1f} ({std:.1f}) [n={line['n']}] [{low:.1f}, {high:.1f}]"
        found[line["Out-dist"], line["group"], line["column"]] = text
    assert found == expected and len(expected) == 4 * 8
    for file in (tables / "detection-sketch.md", workspace.folder / "report" / "report.md"):
        rows = [line.strip("| ").split(" | ") for line in file.read_text().splitlines()]
        header = next(row for row in rows if row[:2] == ["In-dist", "Out-dist"])
        for row in rows[rows.index(header) + 2 :][:4]:
            ood = row[-9].strip("| ")
            for name, text in zip(header[2:], row[-8:], strict=True):
                group, column = name.split(": ")
                assert text.strip("*") == expected[ood, group, column]


def test_latex_and_html_have_them_too(with_intervals):
    workspace, expected = with_intervals
    folder = workspace.folder / "report"
    latex = (folder / "tables" / "detection-sketch.tex").read_text()
    names = [(group, column) for group in ("No outlier loss", "Binary outlier loss")
             for column in SCORES]  # fmt: skip
    for ood in (*OODS, "Mean"):
        [line] = [line for line in latex.splitlines() if f"& {ood} &" in line]
        texts = re.sub(r"\\textbf\{(.*?)\}", r"\1", line.removesuffix(r" \\")).split(" & ")[2:]
        assert texts == [expected[(ood, *name)] for name in names]
    pages = Cells((folder / "report.html").read_text()).tables
    page = next(rows for rows in pages if any("Diff†" in cell for row in rows for cell in row))
    body = [[" ".join(cell.split()) for cell in row] for row in page]
    for ood in (*OODS, "Mean"):
        [row] = [row for row in body if row[1:2] == [ood]]
        for text, name in zip(row[2:], names, strict=True):
            assert text.startswith(expected[(ood, *name)]), (text, name)


def test_all_latex_tables_compile_in_an_empty_article(trained, tmp_path):
    assert trained.oodflow("report", "--published", "--bootstrap", "5").code == 0
    files = sorted((trained.folder / "report" / "tables").glob("*.tex"))
    assert len(files) >= 7
    compile_latex(article(file.read_text() for file in files), tmp_path)


def test_the_latex_report_compiles_beside_its_tables_and_figures(quickstart, tmp_path):
    folder = shutil.copytree(quickstart[0].folder / "report", tmp_path / "report")
    compile_latex((folder / "report.tex").read_text(), folder)


def test_captions_say_what_the_numbers_say(quickstart):
    text = (quickstart[0].folder / "report" / "report.md").read_text()
    [caption] = [line for line in text.splitlines() if line.startswith("Densities over")]
    plain = {"kind": "finetune", "role": "in_distribution", "outlier_loss": "none", "seed": "1"}
    [run] = runs.find(quickstart[0].store(), plain)
    for ood in OODS:
        raw, ratio = (run.metrics[f"auroc/{ood}/{score}"] for score in ("raw", "diff"))
        numbers = f"{ood} {100 * raw:.1f} and {100 * ratio:.1f}"
        assert numbers in caption
        said = f"{numbers}, so the ratio is below the raw likelihood" in caption
        assert said == (ratio < raw)
    assert caption.endswith("Seed 1.")


def test_the_report_says_what_was_run(quickstart):
    text = (quickstart[0].folder / "report" / "report.md").read_text()
    [line] = [line for line in text.splitlines()
              if line.startswith("| glow · sketch-shapes · from general · binary")]  # fmt: skip
    for part in (
        "1, 2",
        "depth 1, hidden 8",
        "batch size 16",
        "limit 64",
        "cpu (",
        "torch 2",
        "Python 3",
    ):
        assert part in line, line
    store = quickstart[0].store()
    [run, *_] = runs.find(store, {"kind": "finetune", "role": "in_distribution"})
    assert run.images["sketch-shapes-test"][1] == 1000
    for name, (digest, count) in run.images.items():
        shown = f"{count:,}".replace(",", " ")
        assert f"| {name} | {shown} | {digest} |" in text


def test_a_lost_score_table_costs_its_intervals_alone(trained):
    store = trained.store()
    [run] = runs.find(
        store, {"kind": "finetune", "role": "in_distribution", "outlier_loss": "none", "seed": "1"}
    )
    for file in trained.folder.glob(f"mlruns/*/{run.run_id}/artifacts/scores/sketch-digits-*"):
        file.unlink()
    outcome = trained.oodflow("report", "--bootstrap", "5")
    assert outcome.code == 0, outcome.err
    rows = csv_rows(trained.folder / "report", "detection-sketch")
    lines = {(line["Out-dist"], line["group"]): line for line in rows}
    assert lines["sketch-digits", "No outlier loss"]["low"] == ""
    assert lines["sketch-digits", "No outlier loss"]["n"] == "2"
    assert lines["sketch-letters", "No outlier loss"]["low"] != ""
    assert lines["sketch-digits", "Binary outlier loss"]["low"] != ""


@pytest.mark.long
def test_missing_prints_commands_that_fill_the_gaps(trained):
    store = trained.store()
    binary = {"kind": "finetune", "role": "in_distribution", "outlier_loss": "binary"}
    for run in runs.find(store, binary):
        store.client.delete_tag(run.run_id, "oodflow.general_outlier_run")
    before = trained.oodflow("report", "--missing")
    assert before.code == 0, before.err
    commands = before.out.strip().splitlines()
    assert [line.split()[:4] for line in commands] == [
        ["oodflow", "finetune", "--dataset", "sketch-digits"],
        ["oodflow", "finetune", "--dataset", "sketch-letters"],
        ["oodflow", "evaluate"],
    ]
    for line in commands:
        # As many images as the other numbers are from; the command itself takes all.
        limit = ["--limit", "64"] if line == "oodflow evaluate" else []
        outcome = trained.oodflow(*line.split()[1:], *limit)
        assert outcome.code == 0, outcome.err
    # The new datasets have gaps of their own, but none of the old ones is left.
    after = trained.oodflow("report", "--missing").out.splitlines()
    assert not set(commands[:2]) & set(after)
    assert trained.oodflow("report").code == 0
    tables = trained.folder / "report" / "tables"
    bpd = pd.read_csv(tables / "bpd-sketch.csv")
    assert list(bpd[bpd["column"] == "Finetuned"]["n"]) == [2, 2, 2]
    found = pd.read_csv(tables / "detection-sketch.csv")
    of_shapes = found[(found["In-dist"] == "sketch-shapes") & (found["column"] == "Diff†")]
    assert list(of_shapes["n"]) == [2] * 8


def test_negative_resamples_are_refused(trained):
    outcome = trained.oodflow("report", "--bootstrap", "-1")
    assert outcome.code == 2 and "bootstrap is -1" in outcome.err
