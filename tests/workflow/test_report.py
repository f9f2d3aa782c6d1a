"""``oodflow report``: where each number is from, and the paper's numbers on a store of sketches."""

import csv
import json
import statistics

import pytest
from safetensors.torch import load_file

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
            assert line == [*place, *numbers, " ".join(cell["run_ids"])]


def test_provenance_names_the_metrics_that_a_cell_averages(quickstart, written):
    store, seen = quickstart[0].store(), set()
    for cell in written[1]["cells"]:
        if cell["table"] == "model-correlation" or not cell["n"]:
            continue
        metrics = [runs.get(store, run_id).metrics for run_id in cell["run_ids"]]
        values = [of_run[name] for of_run in metrics for name in cell["metrics"]]
        assert values and statistics.mean(values) == pytest.approx(cell["mean"], abs=1e-12)
        seen |= set(cell["metrics"])
    assert {"auroc/sketch-digits/diff", "bpd/sketch-shapes"} <= seen


def test_provenance_names_the_weights_and_the_commit(trained):
    store = trained.store()
    [first, *_] = runs.find(store, {"kind": "finetune", "role": "in_distribution"})
    store.client.set_tag(first.run_id, "mlflow.source.git.commit", "c0ffee")
    assert trained.oodflow("report").code == 0
    found = json.loads((trained.folder / "report" / "provenance.json").read_text())["runs"]
    for run_id, facts in found.items():
        with runs.artifact(store, run_id, "checkpoints/model.safetensors") as file:
            assert facts["weights_digest"] == tensor_digest(load_file(file))
        assert facts["git_commit"] == ("c0ffee" if run_id == first.run_id else "")
    [record, _] = runs.find(store, {"kind": "report"})
    with runs.artifact(store, record.run_id, "provenance.json") as file:
        assert json.loads(file.read_text())["runs"] == found


def test_published_tables_are_beside_a_store_of_sketches(trained):
    outcome = trained.oodflow("report", "--published")
    assert outcome.code == 0, outcome.err
    folder = trained.folder / "report"
    assert {"detection", "bpd", "detection-wide-resnet"} <= {
        file.stem for file in (folder / "tables").iterdir()
    }
    text = (folder / "report.md").read_text()
    for numbers in ("| – | 99.0 (0.1) | – |", "| – | 2.34 | – |", "| – | 93 | – |"):
        assert numbers in text
    assert "99.0 (0.1)" in outcome.out and "sketch-digits" in outcome.out


def test_a_store_without_runs_has_no_report_of_the_paper_alone(blank):
    outcome = blank.oodflow("report", "--published")
    assert outcome.code == 2 and "no registered run to report" in outcome.err
