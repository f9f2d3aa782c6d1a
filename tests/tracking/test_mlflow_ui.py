"""What the MLflow UI shows of our runs, in a real browser: views, a comparison, pages."""

import getpass
import re

import pytest
from browser import IN_BROWSER, browsing
from conftest import Server, waited_for
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By

from oodflow.tracking import runs
from oodflow.tracking.numbers import COMPARED
from oodflow.tracking.views import AUROC, BPD, DETECTORS, TRIALS, VIEWS

pytestmark = IN_BROWSER

OODS = ("sketch-digits", "sketch-letters", "sketch-scenes")
SHOWN = {
    AUROC: {f"metrics.`auroc/mean/{score}`" for score in COMPARED},
    BPD: {f"metrics.`{name}`" for name in ("train/bpd", "valid/bpd", "bpd/sketch-shapes")},
    TRIALS: {"metrics.`tune/auroc`", "params.`loss.temperature`", "params.`loss.outlier_weight`"},
    DETECTORS: {"tags.`oodflow.score`", "metrics.`false_positive_rate/0.05`"}
    | {f"metrics.`detection_rate/{ood}/0.05`" for ood in OODS},
}
"""Columns of each view that hold numbers or words after a quickstart, a study and a detector."""


@pytest.fixture(scope="module")
def workspace(quickstart, tmp_path_factory, tiny):
    """After a quickstart: a study of one trial, a detector."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("ui") / "workspace")
    for words in (["tune", "--trials", "1", *tiny], ["detector", "build"]):
        outcome = workspace.oodflow(*words)
        assert outcome.code == 0, outcome.err
        assert "workflowType=machine_learning" in outcome.out
    return workspace


@pytest.fixture(scope="module")
def store(workspace):
    return workspace.store()


@pytest.fixture(scope="module")
def ui(workspace):
    server = Server(workspace.folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def driver(tmp_path_factory, ui):
    for browser in browsing(tmp_path_factory.mktemp("browser"), "--window-size=2400,1000"):
        browser.get(ui.uri)
        # A chat of MLflow's own, which would take a third of the window.
        for key, value in (("panelOpen", "false"), ("fab.autoOpenedOnFirstLoad", "true")):
            item = f"'mlflow.assistant.{key}_v1', '{value}'"
            browser.execute_script(f"localStorage.setItem({item})")
        yield browser


def open_page(driver, ui, page: str, selector: str) -> None:
    """Open a page of the UI and wait until something of it is there."""
    driver.get("about:blank")
    driver.get(f"{ui.uri}/#/{page}")
    found = lambda: driver.find_elements(By.CSS_SELECTOR, selector)  # noqa: E731
    assert waited_for(found), driver.find_element(By.TAG_NAME, "body").text


def text(driver) -> str:
    return driver.find_element(By.TAG_NAME, "body").text


def says(driver, *words: str) -> bool:
    """Whether the page comes to say all of these."""
    return waited_for(lambda: all(word in text(driver) for word in words), 30)


def cells(driver) -> dict[str, list[str]]:
    """Column → the texts of its cells."""
    found: dict[str, list[str]] = {}
    try:
        for cell in driver.find_elements(By.CSS_SELECTOR, ".ag-cell[col-id]"):
            found.setdefault(cell.get_attribute("col-id"), []).append(cell.text)
    except StaleElementReferenceException:
        return {}
    return found


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.key)
def test_a_saved_view_opens_with_its_columns_its_groups_and_numbers(driver, ui, store, view):
    open_page(driver, ui, f"experiments/{store.experiment_id}/{view.link}", ".ag-cell")
    assert waited_for(lambda: SHOWN[view] <= set(cells(driver)), 30), set(cells(driver))
    there = cells(driver)
    for column in SHOWN[view]:
        filled = [value for value in there[column] if value not in ("", "-")]
        assert filled and (column.startswith("tags") or re.match(r"-?\d", filled[0])), column
    assert view.name[:20] in text(driver)
    rows = driver.find_element(By.CSS_SELECTOR, "[role=treegrid], .ag-root").text
    groups = {run.tags["group"] for run in runs.find(store, {"role": "in_distribution"})
              if "weights" in run.tags}  # fmt: skip
    assert len(groups) == 2
    assert all((f"Group: {group}" in rows) == view.grouped for group in groups)
    if view is AUROC:
        # The mean of the seeds, not of all runs.
        for group in groups:
            tags = {"group": group, "kind": "finetune"}
            values = [run.metrics["auroc/mean/diff"] for run in runs.find(store, tags)]
            mean = f"{sum(values) / len(values):.6f}"[:-1]
            assert any(value.startswith(mean) for value in there["metrics.`auroc/mean/diff`"])


def test_a_comparison_of_two_settings_begins_with_what_differs(driver, ui, store):
    parents = runs.find(store, {"kind": "seeds", "role": "in_distribution"})
    ids = ",".join(f"%22{run.run_id}%22" for run in parents)
    page = f"compare-runs?runs=[{ids}]&experiments=[%22{store.experiment_id}%22]"
    open_page(driver, ui, page + "&workflowType=machine_learning", "svg .axis-title")
    height = driver.execute_script("return innerHeight")
    shown = {
        each.text
        for each in driver.find_elements(By.CSS_SELECTOR, "svg .axis-title")
        if each.rect["y"] < height
    }
    assert {"loss.outlier_loss", "auroc/mean/diff/mean"} <= shown


def test_a_training_shows_25_metrics_its_maker_and_its_tables(driver, ui, store):
    [run] = runs.find(store, {"role": "in_distribution", "outlier_loss": "binary", "seed": "1",
                              "kind": "finetune"})  # fmt: skip
    page = f"experiments/{store.experiment_id}/runs/{run.run_id}"
    open_page(driver, ui, f"{page}?workflowType=machine_learning", "h2")
    assert says(driver, run.name, "Metrics (25)", getpass.getuser(), "oodflow")
    open_page(driver, ui, f"{page}/artifacts/metrics.json?workflowType=machine_learning", "h2")
    assert says(driver, "aupr/sketch-digits", "View as table")


def test_a_report_shows_its_figures(driver, ui, store):
    [report] = runs.find(store, {"kind": "report"})
    files = runs.list_artifacts(store, report.run_id, "figures")
    figures = {file for file in files if file.endswith(".png")}
    page = f"experiments/{store.experiment_id}/runs/{report.run_id}"
    open_page(driver, ui, f"{page}?workflowType=machine_learning", "img[src*=figures]")

    def drawn() -> set[str]:
        images = driver.find_elements(By.CSS_SELECTOR, "img[src*=figures]")
        wide = (image for image in images if image.get_property("naturalWidth") > 300)
        return {re.search("figures/[^&]+", image.get_attribute("src"))[0] for image in wide}

    assert figures and waited_for(lambda: drawn() == figures, 30)


@pytest.mark.parametrize("name", ("glow-sketch-shapes-binary", "detector-sketch-shapes"))
def test_a_model_version_shows_description_tags_alias_and_signature(driver, ui, store, name):
    page = f"models/oodflow-{name}/versions/1?workflowType=machine_learning"
    open_page(driver, ui, page, "h2")
    words = ["Description", "Schema", "Inputs (", "Outputs ("]
    if name.startswith("glow"):
        words += ["seed-1", "oodflow.seed", "oodflow.bpd/sketch-shapes", "AUROC in %"]
    else:
        words += ["oodflow.score", "oodflow.digest", "calibrated with", "oodflow detect"]
    assert says(driver, *words), text(driver)
