"""``oodflow analyse --what scores`` and its tables, every number recomputed from Parquet files."""

import json
import math
import statistics

import numpy as np
import pandas as pd
import pytest
import torch
from report_files import article, compile_latex, csv_rows
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from oodflow.tracking import runs
from oodflow.training.checkpoint import load_model

OWN, *OODS = SETS = ("sketch-shapes", "sketch-digits", "sketch-letters", "sketch-scenes")
PARTS = [f"{part}{i}" for part in ("scale", "prior", "logdet") for i in (1, 2, 3)]
LIMIT = 64


@pytest.fixture(scope="module")
def analysed(quickstart, tiny, tmp_path_factory):
    """The quickstart's two seeds with all scores, gradients too; a model without scales."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("scores") / "workspace")
    commands = [
        (command, *tiny, "--model", "glow-local", "--hidden", "8", "--seeds", "1")
        for command in ("train", "finetune")
    ]
    commands.append(("analyse", "--what", "scores", "--limit", str(LIMIT), "--gradient", "true"))
    commands.append(("report",))
    for words in commands:
        outcome = workspace.oodflow(*words)
        assert outcome.code == 0, outcome.err
    return workspace


@pytest.fixture(scope="module")
def store(analysed):
    return analysed.store()


def analyses(store, **tags: str) -> list[runs.RunInfo]:
    found = runs.find(store, {"kind": "analyse", "analysis": "scores", **tags})
    return sorted(found, key=lambda run: run.tags["seed"])


def arrays(store, run: runs.RunInfo) -> dict[str, np.ndarray]:
    with (
        runs.artifact(store, run.run_id, "analysis/scores.npz") as path,
        np.load(path, allow_pickle=False) as file,
    ):
        return dict(file)


def parquet(store, run_id: str, name: str) -> pd.DataFrame:
    with runs.artifact(store, run_id, f"scores/{name}.parquet") as path:
        return pd.read_parquet(path)


def by_hand(store, run: runs.RunInfo, dataset: str) -> dict[str, np.ndarray]:
    """Every score of a Glow's test images, from the tables of all models."""
    own = parquet(store, run.run_id, f"{dataset}-test")
    train = parquet(store, run.run_id, f"{OWN}-train-sample")
    raw = own["log_prob"].to_numpy()
    general, outlier = (
        parquet(store, run.tags[f"{name}_run"], f"{dataset}-test")["log_prob"].to_numpy()
        for name in ("general", "general_outlier")
    )
    files = [found for found in runs.find(store, {"role": "general"})
             if found.tags["model"] in ("png", "webp", "jpeg2000")]  # fmt: skip
    bits = [-parquet(store, found.run_id, f"{dataset}-test")["log_prob"] for found in files]
    assert len(bits) == 3
    alike = runs.find(
        store, {"kind": "finetune", "model": "glow", "dataset": OWN, "outlier_loss": "none"}
    )
    ensemble = [parquet(store, each.run_id, f"{dataset}-test")["log_prob"] for each in alike]
    assert len(ensemble) == 2
    kernels = np.zeros(len(own))
    for name in PARTS:
        width = train[name].std(ddof=1) * len(train) ** (-1 / 5)
        kernel = KernelDensity(bandwidth=width, rtol=1e-12).fit(train[[name]].to_numpy())
        kernels += kernel.score_samples(own[[name]].to_numpy())
    scaler = StandardScaler().fit(train[PARTS].to_numpy())
    machine = OneClassSVM(gamma=1 / 9).fit(scaler.transform(train[PARTS].to_numpy()))
    norms = parquet(store, run.run_id, f"{dataset}-test-gradient")
    known = parquet(store, run.run_id, f"{OWN}-train-sample-gradient")
    densities = np.zeros(len(own))
    for name in [name for name in norms if name.startswith("gradient/")]:
        logs = np.log(known[name])
        densities += norm(logs.mean(), logs.std(ddof=1)).logpdf(np.log(norms[name]))
    return {
        "raw": raw,
        "scale1": own["scale1"].to_numpy(),
        "scale2": own["scale2"].to_numpy(),
        "last_scale": own["scale3"].to_numpy(),
        "diff": raw - general,
        "diff_outlier": raw - outlier,
        "typicality": -np.abs(raw - train["log_prob"].mean()),
        "waic": np.mean(ensemble, axis=0) - np.var(ensemble, axis=0, ddof=1),
        "complexity": raw + np.min(bits, axis=0),
        "dose": kernels,
        "dose_svm": machine.decision_function(scaler.transform(own[PARTS].to_numpy())),
        "gradient": densities,
    }


@pytest.fixture(scope="module")
def expected(store):
    """Seed → dataset → score → values, of the plain Glows."""
    found = runs.find(
        store, {"kind": "finetune", "model": "glow", "dataset": OWN, "outlier_loss": "none"}
    )
    return {run.tags["seed"]: {name: by_hand(store, run, name) for name in SETS} for run in found}


def test_scores_of_every_image_are_those_of_the_tables(store, expected):
    found = analyses(store, model="glow")
    assert len(found) == 2
    for run in found:
        values = arrays(store, run)
        assert len(values) == 4 * 12
        for dataset, scores in expected[run.tags["seed"]].items():
            for score, by_hand_values in scores.items():
                np.testing.assert_allclose(
                    values[f"{dataset}/{score}"], by_hand_values, rtol=1e-9, atol=1e-9
                )


def test_what_is_fitted_has_seen_training_images_alone(analysed, store):
    """The sample's likelihoods are those of images of the training fold, each once."""
    [run, _] = analyses(store, model="glow")
    model_run = run.tags["analysed"]
    sample = parquet(store, model_run, f"{OWN}-train-sample")
    with runs.artifact(store, model_run, "checkpoints/model.safetensors") as path:
        model = load_model(path)[0].eval()
    folder = analysed.data / "prepared" / OWN
    train, test = (np.load(folder / f"{fold}.npy", mmap_mode="r") for fold in ("train", "test"))
    tables = [each for each in runs.list_artifacts(store, model_run, "scores")
              if "train" in each and each.endswith(".parquet")]  # fmt: skip
    assert {each.rsplit("/")[-1] for each in tables} == {
        f"{OWN}-train-sample.parquet",
        f"{OWN}-train-sample-gradient.parquet",
    }
    with torch.inference_mode():
        # Neither augmented nor noisy: the same log p as of the images in the fold.
        parts = [torch.from_numpy(np.array(train[i : i + 500])) for i in range(0, len(train), 500)]
        of_train = np.concatenate([model.log_prob(part).numpy() for part in parts])
        of_test = model.log_prob(torch.from_numpy(np.array(test))).numpy()
    gaps = np.abs(sample["log_prob"].to_numpy()[:, None] - of_train).min(axis=1)
    assert len(sample) == LIMIT // 2 and gaps.max() < 0.01
    assert np.abs(sample["log_prob"].to_numpy()[:, None] - of_test).min(axis=1).max() > 0.1


def test_metrics_are_scikit_learns(store, expected):
    for run in analyses(store, model="glow"):
        scores = expected[run.tags["seed"]]
        for ood in OODS:
            for score in ("typicality", "complexity", "dose", "gradient"):
                x, y = scores[OWN][score], scores[ood][score]
                truth = np.repeat([1, 0], [len(x), len(y)])
                values = np.concatenate([x, y])
                numbers = {
                    "auroc": roc_auc_score(truth, values),
                    "aupr": average_precision_score(truth, values),
                    "aupr_out": average_precision_score(1 - truth, -values),
                    "fpr95": np.mean(y >= np.sort(x)[::-1][math.ceil(0.95 * len(x)) - 1]),
                    "fpr95_out": np.mean(x <= np.sort(y)[math.ceil(0.95 * len(y)) - 1]),
                }
                for name, number in numbers.items():
                    assert run.metrics[f"{name}/{ood}/{score}"] == pytest.approx(number, abs=1e-12)


def test_what_is_absent_has_its_reason(store):
    [local] = analyses(store, model="glow-local")
    absent = dict(part.split(": ", 1) for part in local.tags["absent"].split("; "))
    assert absent["waic"] == "it needs models of two seeds or more"
    assert absent["last_scale"] == absent["scale1"] == "the model has 1 scale"
    assert local.tags["dose_statistics"].split() == ["log_prob", "prior1", "logdet1"]
    assert not [name for name in arrays(store, local) if name.endswith(("/waic", "/scale1"))]
    for glow in analyses(store, model="glow"):
        assert glow.tags["absent"] == ""
        assert glow.tags["dose_statistics"].split() == PARTS


def test_they_are_made_once(analysed, tmp_path):
    workspace = analysed.clone(tmp_path / "again")
    before = {run.run_id for run in analyses(workspace.store())}
    words = ("analyse", "--what", "scores", "--limit", str(LIMIT))
    assert workspace.oodflow(*words, "--gradient", "true").code == 0
    assert {run.run_id for run in analyses(workspace.store())} == before


def test_a_negative_number_of_training_images_is_refused(analysed, store):
    [run, _] = analyses(store, model="glow")
    words = ("evaluate", "--run", run.tags["analysed"], "--train-images", "-1", "--limit", "64")
    outcome = analysed.oodflow(*words)
    assert outcome.code == 2 and "train_images is -1" in outcome.err


COLUMNS = {"Raw": "raw", "4×4": "last_scale", "Diff": "diff", "Diff†": "diff_outlier",
           "Typicality": "typicality", "WAIC": "waic", "Complexity": "complexity", "DoSE": "dose",
           "DoSE, SVM": "dose_svm", "Gradient": "gradient", "Scale 1": "scale1",
           "Scale 2": "scale2"}  # fmt: skip


def interval(pairs) -> tuple[float, float]:
    """DeLong's interval of a mean over seeds, by counting pairs; the seeds' spread comes on top."""
    won = np.array([(x[:, None] > y) + 0.5 * (x[:, None] == y) for x, y in pairs])
    mean_won, per_seed = won.mean(axis=0), won.mean(axis=(1, 2))
    images = mean_won.mean(axis=1).var(ddof=1) / won.shape[1]
    images += mean_won.mean(axis=0).var(ddof=1) / won.shape[2]
    seeds = per_seed.var(ddof=1) / len(per_seed)
    freedom = (len(per_seed) - 1) * ((images + seeds) / seeds) ** 2 if seeds else math.inf
    reach = t.ppf(0.975, freedom) * math.sqrt(images + seeds)
    return max(per_seed.mean() - reach, 0), min(per_seed.mean() + reach, 1)


def test_the_table_of_all_scores_is_recomputed_from_the_parquet_tables(analysed, expected):
    rows = csv_rows(analysed.folder / "report", "all-scores-sketch")
    assert {row["column"] for row in rows} == set(COLUMNS)
    assert len(rows) == 12 * (3 + 2 + 1)
    for row in rows:
        score = COLUMNS[row["column"]]
        names = {"Near mean": OODS[1:2], "Far mean": [OODS[0], OODS[2]], "Mean": OODS}
        oods = names.get(row["Out-dist"], [row["Out-dist"]])
        values = []
        for scores in expected.values():
            pairs = [(scores[OWN][score], scores[ood][score]) for ood in oods]
            numbers = [roc_auc_score(np.repeat([1, 0], [len(x), len(y)]), np.append(x, y))
                       for x, y in pairs]  # fmt: skip
            values.append(statistics.mean(numbers))
        assert float(row["mean"]) == pytest.approx(statistics.mean(values), abs=1e-12)
        assert float(row["std"]) == pytest.approx(statistics.stdev(values), abs=1e-12)
        assert row["n"] == "2"
        if len(oods) == 1:
            low, high = interval(
                [(scores[OWN][score], scores[oods[0]][score]) for scores in expected.values()]
            )
            assert float(row["low"]) == pytest.approx(low, abs=1e-9)
            assert float(row["high"]) == pytest.approx(high, abs=1e-9)


def test_other_metrics_have_their_own_tables_with_intervals(analysed, expected):
    for metric in ("fpr95", "aupr"):
        rows = csv_rows(analysed.folder / "report", f"all-scores-{metric}-sketch")
        for row in rows:
            assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
    [row] = [row for row in rows if row["Out-dist"] == OODS[0] and row["column"] == "Complexity"]
    values = [
        average_precision_score(
            np.repeat([1, 0], LIMIT),
            np.append(scores[OWN]["complexity"], scores[OODS[0]]["complexity"]),
        )
        for scores in expected.values()
    ]
    assert float(row["mean"]) == pytest.approx(statistics.mean(values), abs=1e-12)


def test_bold_is_the_best_with_all_that_cannot_be_told_from_it(analysed):
    text = (analysed.folder / "report" / "tables" / "all-scores-sketch.md").read_text()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    for line in lines:
        cells = [cell.strip("| ") for cell in line[2:]]
        numbers = [float(cell.strip("*").split()[0]) for cell in cells]
        bold = [number for number, cell in zip(numbers, cells, strict=True) if cell[0] == "*"]
        assert max(numbers) in bold
        # With 64 images of a side, scores that are close cannot be told apart.
        close = [number for number in numbers if max(numbers) - number < 0.5]
        assert len(bold) >= len(close)
    assert any(cell.strip("| ")[0] != "*" for line in lines for cell in line[2:])


def test_the_report_has_the_figure_of_ranks_and_the_claims_of_the_field(analysed, store):
    assert (analysed.folder / "report" / "figures" / "score-ranks-sketch.pdf").exists()
    origin = json.loads((analysed.folder / "report" / "provenance.json").read_text())
    cells = [cell for cell in origin["cells"] if cell["table"] == "all-scores-sketch"]
    assert {run_id for cell in cells for run_id in cell["run_ids"]} == {
        run.run_id for run in analyses(store, model="glow")
    }
    text = (analysed.folder / "report" / "report.md").read_text()
    assert "DoSE is above Typicality on average (arXiv:2006.09273; sketch)" in text
    assert "all-scores-sketch-glow-local" in {cell["table"] for cell in origin["cells"]}


def test_tables_of_detection_show_the_metric_that_is_asked_for(analysed, tmp_path):
    workspace = analysed.clone(tmp_path / "metric")
    assert workspace.oodflow("report", "--metric", "fpr95_out").code == 0
    rows = csv_rows(workspace.folder / "report", "detection-sketch")
    [row] = [row for row in rows if row["Out-dist"] == OODS[0] and row["column"] == "Diff"
             and row["group"] == "No outlier loss"]  # fmt: skip
    values = [runs.get(workspace.store(), run_id).metrics[f"fpr95_out/{OODS[0]}/diff"]
              for run_id in row["run_ids"].split()]  # fmt: skip
    assert float(row["mean"]) == pytest.approx(statistics.mean(values), abs=1e-12)
    text = (workspace.folder / "report" / "tables" / "detection-sketch.md").read_text()
    assert "FPR95 (inliers rejected" in text and "AUROC" not in text
    assert csv_rows(workspace.folder / "report", "all-scores-fpr95-out-sketch")
    outcome = workspace.oodflow("report", "--metric", "aupr", "--published")
    assert outcome.code == 2 and "the paper has no aupr" in outcome.err


def test_its_latex_compiles(analysed, tmp_path):
    files = sorted((analysed.folder / "report" / "tables").glob("all-scores*.tex"))
    assert len(files) == 6
    compile_latex(article(file.read_text() for file in files), tmp_path)
