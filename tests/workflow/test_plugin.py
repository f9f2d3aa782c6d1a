"""The example package beside ours: installed it is used everywhere, uninstalled its runs remain."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from oodflow import registration
from oodflow.registration import DATASETS, MODELS, SCORES
from oodflow.tracking import runs

ROOT = Path(__file__).parents[2]
TINY = ["--limit", "64", "--batch-size", "16", "--steps", "6", "--report-every", "3"]
OWN = "oodflow-stripes 1.0"


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The example package, built and installed by pip in a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")
    words = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, folder / "target", folder / "source"],
        check=True,
    )
    return folder / "target"


def forget() -> None:
    """What a new process would know: no plug-in yet."""
    for register in (MODELS, DATASETS, SCORES):
        vars(register).pop("_declared", None)
        for name in register.origins():
            if name in vars(register)["_entries"]:
                del register[name]
        vars(register).pop("_declared", None)
    # The commands and their choices are made when this module is imported.
    sys.modules.pop("oodflow.cli", None)
    registration._imported.clear()
    registration._warned.clear()
    for name in [name for name in sys.modules if name.startswith("oodflow_stripes")]:
        del sys.modules[name]


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    forget()
    try:
        yield
    finally:
        forget()
        sys.path.remove(str(folder))
        forget()


@pytest.mark.long
def test_the_example_package_is_used_everywhere_and_its_runs_outlive_it(
    blank, package, tmp_path
) -> None:
    model = ["--model", "zuko-maf"]
    with installed(package):

        def done(*words: str) -> str:
            outcome = blank.oodflow(*words)
            assert outcome.code == 0, outcome.err
            return outcome.out

        done("train", *model, "--dataset", "sketch-general-grey", *TINY)
        options = ["--dataset", "stripes", "--outlier-loss", "binary"]
        assert "relative" in done("finetune", *model, *options, *TINY)
        [run] = [each for each in runs.find(blank.store(), {"kind": "finetune"})]
        assert run.registered and run.params["model.plugin"] == OWN
        tags = {name: run.tags[name] for name in run.tags if name.startswith("plugin.")}
        assert tags == {"plugin.model": OWN, "plugin.dataset": OWN, "plugin.score.relative": OWN}
        numbers = runs.get(blank.store(), run.run_id).metrics
        assert 0 <= numbers["auroc/sketch-digits-grey/relative"] <= 1
        done("evaluate", "--run", run.run_id, "--limit", "32")
        report = done("report", "--out", "report", "--bootstrap", "20")
        assert "zuko-maf (stripes)" in report and "sketch-digits" in report
        found = pd.read_csv(blank.folder / "report" / "tables" / "detection-stripes-zuko-maf.csv")
        relative = found[(found["column"] == "relative") & (found["Out-dist"] != "Mean")]
        again = runs.get(blank.store(), run.run_id)
        expected = [again.metrics[f"auroc/{ood}/relative"] for ood in relative["Out-dist"]]
        assert list(relative["mean"]) == pytest.approx(expected, abs=1e-12) and expected
        assert (relative["low"] <= relative["mean"]).all()
        assert (relative["mean"] <= relative["high"]).all()
        done("tune", *model, "--dataset", "stripes", "--trials", "1", *TINY[:6], "--steps", "3")
        done("detector", "build", run.run_id, "--score", "relative", "--champion")
        detector = "models:/oodflow-detector-stripes@champion"
        image = ROOT / "docs" / "images" / "effect.png"
        done("detect", detector, str(image), "--out", "found.csv")
        done("score", run.run_id, str(image), "--out", "scores.csv", "--resize")
        assert pd.read_csv(blank.folder / "scores.csv")["log_prob"].notna().all()

    assert run.run_id[:8] in blank.oodflow("runs", "list").out
    again = blank.oodflow("report", "--out", "again")
    assert again.code == 0 and "zuko-maf (other)" in again.out, again.err
    for words, what in (
        (("evaluate", "--run", run.run_id), "zuko-maf"),
        (("score", run.run_id, str(image), "--out", "s.csv"), "zuko-maf"),
        (("detect", detector, str(image)), "relative"),
    ):
        outcome = blank.oodflow(*words)
        assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
        assert f"{what!r} is of {OWN}, which is not here; install that package" in outcome.err


def test_the_example_is_short() -> None:
    files = [*(ROOT / "examples" / "plugin").glob("*.toml"),
             *(ROOT / "examples" / "plugin").glob("*/*.py")]  # fmt: skip
    assert 0 < sum(len(file.read_text().splitlines()) for file in files) < 150
