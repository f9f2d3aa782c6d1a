"""What ``oodflow main`` leaves in MLflow: the contract's names, and numbers recomputed from files.

Also what reads them: a second call, the report, ``runs``, ``evaluate``.
"""

import csv
import getpass
import json
import os
import re
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

from oodflow.evaluation.metrics import METRICS
from oodflow.experiment import parameters, spec_hash
from oodflow.tracking import runs
from oodflow.training.checkpoint import load_model

OODS = ("sketch-digits", "sketch-letters", "sketch-scenes")
SCORES = ("raw", "scale1", "scale2", "last_scale", "diff", "diff_outlier")
OF_ONE_SEED = ("typicality", "complexity", "dose", "dose_svm")
TRAIN = ("bpd", "outlier_loss", "dropped_images", "skipped_batches", "skipped_updates")
KEYS = ("kind", "dataset", "role", "outlier_loss", "outlier_dataset", "init", "seed")

GENERAL = ("train", "sketch-general", "general", "none", "", "scratch", "1")
PLAIN = ("finetune", "sketch-shapes", "in_distribution", "none", "", "general", "1")
EXPECTED = {
    GENERAL,
    *(
        ("finetune", dataset, role, loss, outliers, "general", seed)
        for seed in ("1", "2")
        for dataset, role, loss, outliers in (
            ("sketch-shapes", "in_distribution", "none", ""),
            ("sketch-shapes", "in_distribution", "binary", "sketch-general"),
            ("sketch-general", "general", "binary", "sketch-shapes"),
        )
    ),
}


@pytest.fixture(scope="module")
def workspace(quickstart):
    return quickstart[0]


@pytest.fixture(scope="module")
def store(workspace):
    return workspace.store()


@pytest.fixture(scope="module")
def models(store):
    """Every registered training run by its kind, dataset, …, seed."""
    return {tuple(run.tags[key] for key in KEYS): run for run in trainings(store)}


@pytest.fixture(scope="module")
def detectors(models):
    """The in-distribution models."""
    return [run for run in models.values() if run.tags["role"] == "in_distribution"]


def trainings(store, **tags: str) -> list[runs.RunInfo]:
    """Registered training runs with these tags, the newest first."""
    found = runs.find(store, {"registered": "true", **tags})
    # Compressors, which evaluations make, are trained on nothing.
    return [
        runs.get(store, run.run_id)
        for run in found
        if run.tags["kind"] in ("train", "finetune") and run.tags.get("dataset")
    ]


def table(store, run_id: str, dataset: str) -> pd.DataFrame:
    path = store.client.download_artifacts(run_id, f"scores/{dataset}-test.parquet")
    return pd.read_parquet(path)


def checkpoint(store, run_id: str):
    with runs.artifact(store, run_id, "checkpoints/model.safetensors") as path:
        return load_model(path)[1], load_file(path)


def test_the_command_ends_with_a_table_and_how_to_see_it(quickstart):
    workspace, outcome = quickstart
    assert outcome.err == ""
    assert "Anomaly detection performance" in outcome.out
    assert "…" not in outcome.out
    assert f"mlflow ui --backend-store-uri {workspace.uri}" in outcome.out.splitlines()[-2]


def test_nothing_is_left_behind_in_the_working_folder(workspace):
    left = {path.name for path in workspace.folder.iterdir()}
    assert {"mlruns", "report"} <= left
    assert not list((workspace.folder / ".oodflow").glob("*"))


def test_there_is_one_run_a_model_and_seed_its_analyses_and_one_report(store, models):
    assert set(models) == EXPECTED
    everything = runs.find(store, {})
    analyses = [run for run in everything if run.tags.get("analysis")]
    assert {run.tags["analysis"] for run in analyses} == {"fourier", "extremes"}
    [analysed] = {run.tags["analysed"] for run in analyses}
    assert analysed == models[PLAIN].run_id
    # The two analyses have a parent, and so have the seeds of three settings; three compressors.
    assert len(analyses) == 2 and len(everything) == len(EXPECTED) + 2 + 1 + 1 + 3 + 3
    assert {run.status for run in everything} == {"FINISHED"}
    kinds = [run.tags["kind"] for run in everything]
    assert [kind for kind in kinds if kind != "seeds"][0] == "report"


def test_each_setting_has_a_parent_of_its_seeds_with_their_mean_and_deviation(store, models):
    found = runs.find(store, {"kind": "seeds"})
    parents = {run.run_id: runs.get(store, run.run_id) for run in found}
    nested: dict[str, list[runs.RunInfo]] = {}
    for run in models.values():
        nested.setdefault(run.parent, []).append(run)
    # There is one general model, whatever the seeds.
    assert nested.pop("") == [models[GENERAL]]
    assert set(nested) == set(parents) and len(parents) == 3
    for parent, of_it in nested.items():
        tags = parents[parent].tags
        assert sorted(run.tags["seed"] for run in of_it) == ["1", "2"] and tags["seeds"] == "1,2"
        assert tags["registered"] == "false" and not parents[parent].parent
        for name in ("model", "dataset", "role", "setting", *KEYS[3:6]):
            assert {run.tags[name] for run in of_it} == {tags[name]}
        expected = {}
        for name in of_it[0].metrics:
            values = [run.metrics[name] for run in of_it]
            expected[f"{name}/mean"] = pytest.approx(np.mean(values), rel=1e-9)
            expected[f"{name}/std"] = pytest.approx(np.std(values, ddof=1), rel=1e-9)
        # Diff† as well, which was added to runs that were finished.
        assert parents[parent].metrics == expected
        with runs.artifact(store, parent, "seeds/seeds.csv") as file:
            frame = pd.read_csv(file).set_index("run_id")
        assert {run.run_id: int(run.tags["seed"]) for run in of_it} == frame["seed"].to_dict()


def test_run_names_say_what_the_runs_are(models):
    settings = {
        ("sketch-general", "none"): "general",
        ("sketch-general", "binary"): "general · binary against shapes",
        ("sketch-shapes", "none"): "shapes · plain",
        ("sketch-shapes", "binary"): "shapes · binary",
    }
    groups: dict[str, set[str]] = {}
    for (_, dataset, _, loss, _, _, seed), run in models.items():
        assert run.name == f"{settings[dataset, loss]} · s{seed}"
        assert run.tags["group"].startswith(f"{settings[dataset, loss]} · ")
        groups.setdefault(settings[dataset, loss], set()).add(run.tags["group"])
    assert all(len(group) == 1 for group in groups.values()) and len(groups) == 4


def test_runs_say_who_made_them_with_what(store, models):
    tags = store.client.get_run(models[PLAIN].run_id).data.tags
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL" and tags["mlflow.source.name"]
    assert tags["mlflow.source.git.commit"] == runs.own_commit()


def test_tags_and_parameters_describe_the_experiment_in_the_checkpoint(store, models):
    for (_, dataset, _, loss, outliers, _, seed), run in models.items():
        experiment, _ = checkpoint(store, run.run_id)
        assert run.tags["spec"] == spec_hash(experiment)
        assert run.params == parameters(experiment)
        assert run.tags["model"] == experiment.model.name == "glow"
        assert run.tags["setting"] == "unsupervised"
        assert (experiment.data.dataset, str(experiment.seed)) == (dataset, seed)
        assert (experiment.loss.outlier_loss, experiment.loss.outlier_dataset) == (loss, outliers)
    assert len({run.tags["spec"] for run in models.values()}) == len(models)


def test_finetuned_models_build_on_the_general_model_and_the_right_contrast(store, models):
    general = models[GENERAL]
    for key, run in models.items():
        if key == GENERAL:
            continue
        experiment, _ = checkpoint(store, run.run_id)
        seed = run.tags["seed"]
        plain = models[(*key[:1], "sketch-shapes", "in_distribution", "none", "", "general", seed)]
        assert experiment.init == general.tags["spec"]
        assert run.tags["init_run"] == general.run_id
        if run.tags["outlier_loss"] == "none":
            assert experiment.general == ""
            continue
        contrast = plain if run.tags["role"] == "general" else general
        assert experiment.general == contrast.tags["spec"]
        assert run.tags["contrast_run"] == contrast.run_id


def test_seeds_differ_in_their_weights(store, detectors):
    plain = [run for run in detectors if run.tags["outlier_loss"] == "none"]
    first, second = (checkpoint(store, run.run_id)[1] for run in plain)
    assert any(not first[name].equal(second[name]) for name in first)


def test_detectors_have_the_metrics_of_the_contract_and_no_others(detectors):
    expected = {f"bpd/{name}" for name in ("sketch-shapes", *OODS)}
    scores = (*SCORES, *OF_ONE_SEED)
    expected |= {f"{m}/{o}/{s}" for m in METRICS for o in OODS for s in scores}
    expected |= {f"auroc/mean/{score}" for score in scores}
    expected |= {f"train/{name}" for name in TRAIN}
    expected |= {"valid/bpd", "valid/non_finite_images"}
    expected.add("valid/auroc/mean/diff")
    for run in detectors:
        assert set(run.metrics) == expected


@pytest.fixture
def at_the_store(store):
    """MLflow's own functions look into this store."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.uri)
    yield
    mlflow.set_tracking_uri(before)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_what_people_compare_is_a_metric_and_the_rest_in_tables(store, detectors, at_the_store):
    compared = ("raw", "last_scale", "diff", "diff_outlier")
    expected = {"bpd/sketch-shapes", "valid/bpd", "valid/non_finite_images"}
    expected |= {"valid/auroc/mean/diff", *(f"train/{name}" for name in TRAIN)}
    expected |= {f"auroc/{o}/{s}" for o in (*OODS, "mean") for s in compared}
    for run in detectors:
        found = store.client.get_run(run.run_id).data
        assert set(found.metrics) == expected and len(expected) == 25
        where = store.experiment_id, "metrics.json", [run.run_id]
        numbers = store.client.load_table(*where).set_index("metric")["value"].to_dict()
        final = {n: v for n, v in run.metrics.items() if n.split("/")[0] not in ("train", "valid")}
        # MLflow reads numbers a little less exactly than they are written.
        assert numbers == pytest.approx(final, rel=1e-12) and len(numbers) > 100
        where = store.experiment_id, "validation.json", [run.run_id]
        curves = store.client.load_table(*where).set_index("step")
        assert curves.index.tolist() == [3, 6]
        names = {f"valid/auroc/{o}/{s}" for o in OODS for s in ("raw", "last_scale", "diff")}
        assert names | {n for n in expected if n.startswith(("train/", "valid/"))} <= {*curves}
        means = curves[[f"valid/auroc/{ood}/diff" for ood in OODS]].mean(axis=1)
        np.testing.assert_allclose(curves["valid/auroc/mean/diff"], means, rtol=1e-12)


def test_general_models_have_a_bpd_and_no_auroc(models):
    for run in models.values():
        if run.tags["role"] == "general":
            assert "bpd/sketch-general" in run.metrics
            assert not [name for name in run.metrics if "auroc" in name]


def test_reports_of_training_are_at_every_third_update(store, models):
    for run in models.values():
        for name in ("train/bpd", "train/outlier_loss", "valid/bpd"):
            history = store.client.get_metric_history(run.run_id, name)
            assert [metric.step for metric in history] == [3, 6]
            assert all(np.isfinite(metric.value) for metric in history)


def test_score_tables_hold_one_row_an_image_and_contributions_that_add_up(store, detectors):
    for run in detectors:
        for dataset in ("sketch-shapes", *OODS):
            frame = table(store, run.run_id, dataset)
            assert frame["index"].tolist() == list(range(64))
            scales = frame[["scale1", "scale2", "scale3"]].sum(axis=1)
            np.testing.assert_allclose(scales, frame["log_prob"], rtol=1e-12)


def test_bits_per_dimension_are_those_of_the_score_tables(store, models):
    for run in models.values():
        for name, value in run.metrics.items():
            if name.startswith("bpd/"):
                frame = table(store, run.run_id, name.removeprefix("bpd/"))
                nats = frame["log_prob_dequantised"].mean()
                assert value == pytest.approx(-nats / (3 * 32 * 32 * np.log(2)), rel=1e-9)


def recomputed_scores(store, run, dataset: str) -> dict[str, np.ndarray]:
    own = table(store, run.run_id, dataset)
    general = table(store, run.tags["general_run"], dataset)
    outlier = table(store, run.tags["general_outlier_run"], dataset)
    raw = own["log_prob"]
    scores = {
        "raw": raw,
        "scale1": own["scale1"],
        "scale2": own["scale2"],
        "last_scale": own["scale3"],
        "diff": raw - general["log_prob"],
        "diff_outlier": raw - outlier["log_prob"],
    }
    return {name: values.to_numpy() for name, values in scores.items()}


def test_detection_metrics_are_scikit_learns_on_the_score_tables(store, detectors):
    for run in detectors:
        inliers = recomputed_scores(store, run, "sketch-shapes")
        aurocs: dict[str, list[float]] = {score: [] for score in SCORES}
        for ood in OODS:
            outliers = recomputed_scores(store, run, ood)
            for score in SCORES:
                values = np.concatenate((inliers[score], outliers[score]))
                truth = np.r_[np.ones(64), np.zeros(64)]
                auroc = roc_auc_score(truth, values)
                aurocs[score].append(auroc)
                aupr = average_precision_score(truth, values)
                # The 61st highest of 64 is the first to accept 95 %.
                threshold = np.sort(inliers[score])[::-1][60]
                fpr = np.mean(outliers[score] >= threshold)
                assert run.metrics[f"auroc/{ood}/{score}"] == pytest.approx(auroc, abs=1e-12)
                assert run.metrics[f"aupr/{ood}/{score}"] == pytest.approx(aupr, abs=1e-12)
                assert run.metrics[f"fpr95/{ood}/{score}"] == pytest.approx(fpr, abs=1e-12)
        for score, values in aurocs.items():
            assert run.metrics[f"auroc/mean/{score}"] == pytest.approx(np.mean(values), abs=1e-12)


def test_diff_contrasts_with_the_general_models_of_the_same_seed(models, detectors):
    for run in detectors:
        seed = run.tags["seed"]
        outlier = ("finetune", "sketch-general", "general", "binary", "sketch-shapes", "general")
        assert run.tags["general_run"] == models[GENERAL].run_id
        assert run.tags["general_outlier_run"] == models[(*outlier, seed)].run_id


def test_figures_are_pictures(store, detectors):
    for run in detectors:
        files = runs.list_artifacts(store, run.run_id, "figures")
        assert files
        for file in files:
            with runs.artifact(store, run.run_id, file) as path, Image.open(path) as picture:
                assert min(picture.size) > 200


def test_each_model_has_its_version_in_the_registry(store, models):
    known = {run.run_id for run in models.values()}
    found = store.client.search_model_versions()
    versions = [version for version in found if version.run_id in known]
    # The others are those of the three compressors.
    assert len(found) == len(versions) + 3
    assert sorted(v.run_id for v in versions) == sorted(run.run_id for run in models.values())
    for run in models.values():
        [version] = [v for v in versions if v.run_id == run.run_id]
        assert run.tags["model"] in version.name and run.tags["dataset"] in version.name
        assert runs.resolve(store, f"models:/{version.name}/{version.version}") == run


def test_a_registered_version_is_the_checkpoint(store, models):
    for run in models.values():
        [version] = [v for v in store.client.search_model_versions() if v.run_id == run.run_id]
        source = store.client.get_model_version_download_uri(version.name, version.version)
        folder = Path(mlflow.artifacts.download_artifacts(source, tracking_uri=store.uri))
        loaded = load_file(folder / "model.safetensors")
        kept = checkpoint(store, run.run_id)[1]
        assert loaded.keys() == kept.keys()
        assert all(loaded[name].equal(kept[name]) for name in kept)


def test_descriptions_hold_the_numbers_and_how_to_name_the_model(store, models):
    for run in models.values():
        note = store.client.get_run(run.run_id).data.tags["mlflow.note.content"]
        assert f"{run.metrics['bpd/' + run.tags['dataset']]:.3f}" in note
        uri = note.split("`")[1]
        assert runs.resolve(store, uri).run_id == run.run_id


def test_the_description_of_a_detector_holds_its_table_as_it_is_in_the_metrics(store, detectors):
    for run in detectors:
        note = store.client.get_run(run.run_id).data.tags["mlflow.note.content"]
        lines = [line.strip("| ").split(" | ") for line in note.splitlines() if "|" in line]
        header, rows = lines[0], [line for line in lines[1:] if not line[0].startswith("--")]
        assert [row[0] for row in rows] == [*OODS, "mean"]
        for ood, *cells in rows:
            for score, cell in zip(header[1:], cells, strict=True):
                assert cell == f"{100 * run.metrics[f'auroc/{ood}/{score}']:.1f}"


def test_cells_of_the_report_are_means_over_the_runs_they_name(workspace, store):
    codes = {"Raw": "raw", "4×4": "last_scale", "Diff": "diff", "Diff†": "diff_outlier"}
    text = (workspace.folder / "report" / "tables" / "detection-sketch.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["Out-dist"] in OODS]
    assert len(rows) == len(OODS) * 2 * len(codes)
    for row in rows:
        behind = [runs.get(store, run_id) for run_id in row["run_ids"].split()]
        loss = {"No outlier loss": "none", "Binary outlier loss": "binary"}[row["group"]]
        assert {run.tags["outlier_loss"] for run in behind} == {loss}
        assert sorted(run.tags["seed"] for run in behind) == ["1", "2"]
        name = f"auroc/{row['Out-dist']}/{codes[row['column']]}"
        values = [run.metrics[name] for run in behind]
        assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-12)
        assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_the_report_is_kept_as_a_run_with_its_files_and_text(workspace, store):
    [record] = runs.find(store, {"kind": "report"})
    folder = workspace.folder / "report"
    tags = store.client.get_run(record.run_id).data.tags
    # Whole claims and tables of the report, as many as a description holds.
    text = (folder / "report.md").read_text()
    note = tags["mlflow.note.content"]
    assert 1000 < len(note) <= 8000 and note.endswith("\n")
    assert "## Claims of the paper" in note and "### Anomaly detection performance" in note
    plain = re.sub(r"get-artifact\?path=(.+)&run_uuid=\w+", r"\1", note)
    assert set(plain.splitlines()[1:]) <= set(text.splitlines())
    figures = [file.name for file in (folder / "figures").glob("*.png")]
    links = [f"(get-artifact?path=figures/{name}&run_uuid={record.run_id})" for name in figures]
    assert figures and all(link in note for link in links)
    for kind in ("tables", "figures"):
        names = {path.name for path in (folder / kind).iterdir()}
        assert {path.split("/")[1] for path in runs.list_artifacts(store, record.run_id, kind)} == (
            names
        )
    assert {"detection-sketch.md", "detection-sketch.tex", "detection-sketch.csv"} <= {
        path.name for path in (folder / "tables").iterdir()
    }


# What reads the store


def test_a_second_call_trains_nothing_and_rewrites_the_report(trained, tiny, models):
    report = trained.folder / "report" / "report.md"
    before = report.read_text()
    report.write_text("old")
    (trained.folder / "report" / "tables" / "detection-sketch.csv").unlink()
    outcome = trained.oodflow("main", "--seeds", "1,2", "--workers", "1", *tiny)
    assert outcome.code == 0
    assert report.read_text() == before
    assert (trained.folder / "report" / "tables" / "detection-sketch.csv").is_file()
    found = runs.find(trained.store(), {})
    kinds = Counter(run.tags["kind"] for run in found)
    # One general model, and three compressors.
    assert kinds == {"report": 2, "analyse": 3, "finetune": 6, "train": 4, "seeds": 3}
    assert len({run.tags["spec"] for run in trainings(trained.store())}) == len(models)


@pytest.mark.long
def test_main_under_mlflow_run_gives_every_model_a_run_of_its_own(trained, tiny):
    """``mlflow run`` has made one run for the command: it must not become all seven models."""
    store = trained.store()
    claimed = store.client.create_run(store.experiment_id).info.run_id
    words = ("main", "--seeds", "3", "--workers", "1", *tiny)
    outcome = trained.oodflow(*words, MLFLOW_RUN_ID=claimed)
    assert outcome.code == 0, outcome.err
    new = trainings(store, seed="3")
    assert len({run.tags["spec"] for run in new}) == 4
    assert claimed not in {run.run_id for run in new}
    assert runs.get(store, claimed).status == "FINISHED"
    assert runs.get(store, claimed).tags["kind"] == "report"


def test_runs_list_shows_every_run_with_the_beginning_of_its_id(workspace, store, models):
    outcome = workspace.oodflow("runs", "list")
    assert outcome.code == 0
    for run in runs.find(store, {}):
        [line] = [line for line in outcome.out.splitlines() if run.run_id[:8] in line]
        assert run.tags["kind"] in line
        assert ("registered" if run.registered else "finished") in line
        if run.run_id in {each.run_id for each in models.values()}:
            assert run.name in line
            assert f"{run.metrics['bpd/' + run.tags['dataset']]:.3f}" in line


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--kind", "report"], {"kind": "report"}),
        (["--dataset", "sketch-shapes"], {"dataset": "sketch-shapes"}),
        (["--kind", "train", "--registered"], {"kind": "train", "registered": "true"}),
    ],
)
def test_runs_list_shows_what_its_filters_leave(workspace, store, words, wanted):
    out = workspace.oodflow("runs", "list", *words).out
    left = {run.run_id for run in runs.find(store, wanted)}
    assert left
    for run in runs.find(store, {}):
        assert (run.run_id[:8] in out) == (run.run_id in left)


def test_runs_list_of_nothing_says_how_to_make_some(workspace):
    outcome = workspace.oodflow("runs", "list", "--dataset", "it's not one")
    assert outcome.code == 0
    assert "oodflow main" in outcome.out


def test_runs_show_prints_tags_parameters_numbers_and_files(workspace, store, detectors):
    run = detectors[0]
    outcome = workspace.oodflow("runs", "show", run.run_id)
    assert outcome.code == 0
    for text in (run.run_id, run.name, "finished", run.tags["spec"], "optimisation.lr"):
        assert text in outcome.out
    for name in ("bpd/sketch-shapes", "train/bpd"):
        [line] = [line for line in outcome.out.splitlines() if f" {name} " in line]
        assert f"{run.metrics[name]:.6g}" in line
    assert f"{100 * run.metrics['auroc/sketch-digits/diff']:.1f}" in outcome.out
    for folder in ("checkpoints", "scores", "figures"):
        for path in runs.list_artifacts(store, run.run_id, folder):
            assert path in outcome.out
    [version] = [v for v in store.client.search_model_versions() if v.run_id == run.run_id]
    named = workspace.oodflow("runs", "show", f"models:/{version.name}/{version.version}")
    assert named == outcome


def test_evaluating_again_scores_no_image_again(trained):
    store = trained.store()
    run = trainings(store, dataset="sketch-shapes", outlier_loss="none")[0]
    scored = {file: file.stat().st_mtime_ns for file in trained.folder.rglob("*.parquet")}
    outcome = trained.oodflow("evaluate", "--run", run.run_id, "--limit", "64")
    assert outcome.code == 0, outcome.err
    assert {file: file.stat().st_mtime_ns for file in trained.folder.rglob("*.parquet")} == scored
    assert runs.get(store, run.run_id).metrics == run.metrics
    [record] = runs.find(store, {"kind": "evaluate"})
    record = runs.get(store, record.run_id)
    names = [name for name in run.metrics if name.split("/")[0] in METRICS]
    assert {name: record.metrics[name] for name in names} == {n: run.metrics[n] for n in names}


def test_one_run_evaluated_on_other_images_leaves_the_report_right(trained):
    """Tables of two runs may now be of other images; no figure or table may mix or stumble."""
    store = trained.store()
    [run, *_] = trainings(store, dataset="sketch-shapes", outlier_loss="none")
    assert trained.oodflow("evaluate", "--run", run.run_id, "--limit", "100").code == 0
    outcome = trained.oodflow("report")
    assert outcome.code == 0, outcome.err


def test_an_evaluation_against_one_dataset_keeps_the_mean_over_all_of_the_run(trained):
    store = trained.store()
    run = trainings(store, dataset="sketch-shapes", outlier_loss="none")[0]
    words = ["--run", run.run_id, "--limit", "64", "--ood", "sketch-digits"]
    assert trained.oodflow("evaluate", *words).code == 0
    metrics = runs.get(store, run.run_id).metrics
    for score in SCORES:
        values = [metrics[f"auroc/{ood}/{score}"] for ood in OODS]
        assert metrics[f"auroc/mean/{score}"] == pytest.approx(np.mean(values), abs=1e-12)


def test_an_evaluation_without_contrasts_needs_no_general_model(trained):
    store = trained.store()
    run = trainings(store, dataset="sketch-shapes", outlier_loss="none")[0]
    words = ["--run", run.run_id, "--general", "none", "--general-outlier", "none"]
    outcome = trained.oodflow("evaluate", *words, "--limit", "64")
    assert outcome.code == 0
    [found] = runs.find(store, {"kind": "evaluate"})
    record = runs.get(store, found.run_id)
    assert {name.split("/")[2] for name in record.metrics if name.startswith("auroc/")} == {
        "raw",
        "scale1",
        "scale2",
        "last_scale",
        *OF_ONE_SEED,
    }


def test_score_tables_say_which_weights_and_images_they_are_of(store, models):
    import pyarrow.parquet as parquet

    seen = set()
    for run in models.values():
        for path in runs.list_artifacts(store, run.run_id, "scores"):
            local = store.client.download_artifacts(run.run_id, path)
            if path.endswith(".csv"):
                summary = pd.read_csv(local, index_col=0)
                assert summary.loc["mean", "log_prob"] < 0 < summary.loc["count", "log_prob"]
                continue
            facts = json.loads(parquet.read_schema(local).metadata[b"oodflow.facts"])
            assert path == f"scores/{facts['dataset']}-{facts['fold']}.parquet"
            seen.add((run.run_id, facts["model"]))
    assert len({model for _, model in seen}) == len({run_id for run_id, _ in seen}) == len(models)
