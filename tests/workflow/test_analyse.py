"""``oodflow analyse``: every number recomputed from the weights and the images."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from oodflow.data.batches import step_generator
from oodflow.evaluation.fourier import derangement
from oodflow.options import AnalyseOptions
from oodflow.tracking import runs
from oodflow.training.checkpoint import load_model
from oodflow.workflow.analyse import analyse
from oodflow.workflow.session import Session

LIMIT, SUBSET, TOP = 64, 300, 5
WORDS = ("analyse", "--limit", str(LIMIT), "--subset", str(SUBSET), "--top", str(TOP))
SETS = ("sketch-shapes", "sketch-digits", "sketch-letters", "sketch-scenes")
OODS = SETS[1:]
FAMILIES = ("glow", "glow-local", "pixelcnn")


@pytest.fixture(scope="module")
def prepared(quickstart, tiny, tmp_path_factory):
    """The quickstart's Glow for two seeds, two families without scales for one, a classifier."""
    workspace = quickstart[0].clone(tmp_path_factory.mktemp("analyse") / "workspace")
    # What the quickstart analyses itself is out of the way.
    for run in runs.find(workspace.store(), {"kind": "analyse"}):
        workspace.store().client.delete_run(run.run_id)
    families = {"glow-local": ["--hidden", "8"], "pixelcnn": ["--hidden", "4"]}
    commands = [(name, model) for model in families for name in ("train", "finetune")]
    families["wide-resnet"] = ["--hidden", "1", "--depth", "10"]
    for command, model in (*commands, ("train", "wide-resnet")):
        outcome = workspace.oodflow(command, *tiny, "--model", model, *families[model])
        assert outcome.code == 0, outcome.err
    return workspace


@pytest.fixture(scope="module")
def analysed(prepared, tmp_path_factory):
    """After ``oodflow analyse`` of everything, and what the command printed."""
    workspace = prepared.clone(tmp_path_factory.mktemp("analysed") / "workspace")
    outcome = workspace.oodflow(*WORDS)
    assert outcome.code == 0, outcome.err
    return workspace, outcome


@pytest.fixture
def changeable(prepared, tmp_path):
    """A copy of the workspace for one test."""
    return prepared.clone(tmp_path / "analyse")


@pytest.fixture(scope="module")
def store(analysed):
    return analysed[0].store()


def model_runs(store, **tags: str) -> list[runs.RunInfo]:
    found = runs.find(store, {"role": "in_distribution", "init": "general", **tags})
    return [run for run in found if run.tags["kind"] == "finetune"]


def analyses(store, **tags: str) -> list[runs.RunInfo]:
    return [run for run in runs.find(store, {"kind": "analyse", **tags}) if run.parent]


def arrays(store, run: runs.RunInfo, name: str) -> dict[str, np.ndarray]:
    with (
        runs.artifact(store, run.run_id, f"analysis/{name}.npz") as path,
        np.load(path, allow_pickle=False) as file,
    ):
        return dict(file)


def pixels(workspace, dataset: str, fold: str = "test") -> np.ndarray:
    return np.load(workspace.data / "prepared" / dataset / f"{fold}.npy")


def contributions(store, run_id: str, images: np.ndarray) -> np.ndarray:
    """N×S noise-free contributions of uint8 images under a run's weights, float64."""
    with runs.artifact(store, run_id, "checkpoints/model.safetensors") as path:
        model = load_model(path)[0].eval()
    with torch.inference_mode():
        return model(torch.from_numpy(images), 0.5).double().numpy()


def by_hand(store, run: runs.RunInfo, images: np.ndarray) -> dict[str, np.ndarray]:
    """raw, diff and, for a model with scales, last_scale."""
    own = contributions(store, run.run_id, images)
    general = contributions(store, run.tags["general_run"], images).sum(1)
    scores = {"raw": own.sum(1), "diff": own.sum(1) - general}
    return scores | ({"last_scale": own[:, 2]} if own.shape[1] == 3 else {})


def log_prob_table(store, run_id: str, dataset: str, fold: str = "test") -> np.ndarray:
    with runs.artifact(store, run_id, f"scores/{dataset}-{fold}.parquet") as path:
        return pd.read_parquet(path)["log_prob"].to_numpy()


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, of the ranks."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def numpy_mix(amplitude: np.ndarray, phase: np.ndarray) -> np.ndarray:
    combined = np.abs(np.fft.fft2(amplitude)) * np.exp(1j * np.angle(np.fft.fft2(phase)))
    return np.clip(np.rint(np.fft.ifft2(combined).real), 0, 255).astype(np.uint8)


# Which analyses are made, and what their runs say


def test_auto_makes_all_of_models_without_outlier_loss_and_extremes_of_the_binary_ones(store):
    made = {(run.tags["analysed"], run.tags["analysis"]) for run in analyses(store)}
    expected = set()
    for run in model_runs(store):
        names = ["fourier", "correlation", "extremes", "folds", "scores"]
        expected |= {
            (run.run_id, name)
            for name in (names if run.tags["outlier_loss"] == "none" else ["extremes"])
        }
    assert len(expected) == 2 * 5 + 2 + 2 * 5
    assert made == expected
    assert len(analyses(store)) == len(made)


def test_runs_carry_the_tags_of_the_model_and_are_registered_below_one_parent(store):
    inherited = ("model", "dataset", "role", "setting", "outlier_loss", "init", "seed")
    found = analyses(store)
    [parent] = {run.parent for run in found}
    assert runs.get(store, parent).tags["kind"] == "analyse"
    assert runs.get(store, parent).tags["registered"] == "false"
    assert runs.get(store, parent).status == "FINISHED"
    assert len({run.tags["spec"] for run in found}) == len(found)
    for run in found:
        model = runs.get(store, run.tags["analysed"])
        assert {tag: run.tags[tag] for tag in inherited} == {
            tag: model.tags[tag] for tag in inherited
        }
        assert run.registered
        contrast = "" if run.tags["analysis"] == "fourier" else model.tags["general_run"]
        assert run.tags.get("general_run", "") == contrast


def test_inputs_of_a_run_are_the_folds_it_read(store):
    used = {}
    for run in analyses(store, analysis="folds"):
        inputs = store.client.get_run(run.run_id).inputs.dataset_inputs
        used[run.run_id] = {each.dataset.name for each in inputs}
    assert set(map(frozenset, used.values())) == {
        frozenset([*(f"{name}-test" for name in SETS), "sketch-shapes-train"])
    }


def test_descriptions_and_the_terminal_hold_the_numbers(analysed, store):
    for run in analyses(store):
        note = store.client.get_run(run.run_id).data.tags["mlflow.note.content"]
        assert run.tags["analysed"] in note and note.startswith(f"**{run.name}**")
        cells = {
            "fourier": [f"{v:.3f}" for k, v in run.metrics.items()],
            "correlation": [f"{v:.3f}" for k, v in run.metrics.items()],
            "extremes": [f"{v:.1f}" for k, v in run.metrics.items() if "threshold" in k],
            "folds": [
                f"{100 * run.metrics[k]:.1f} → {100 * run.metrics['train_fold/' + k]:.1f}"
                for k in run.metrics
                if k.startswith("auroc/") and f"train_fold/{k}" in run.metrics
            ],
            "scores": [f"{100 * v:.1f}" for k, v in run.metrics.items() if k[:6] == "auroc/"],
        }[run.tags["analysis"]]
        assert cells
        assert all(f"| {cell} |" in note and f" {cell} " in analysed[1].out for cell in cells)


# The numbers


def expected_donors(name: str, count: int) -> np.ndarray:
    return derangement(count, step_generator(0, f"fourier/{name}", 0)).numpy()


def test_fourier_metrics_are_rank_correlations_of_mixes_scored_by_hand(analysed, store):
    workspace, names = analysed[0], SETS[:3]
    images = {name: pixels(workspace, name)[:LIMIT] for name in names}
    images["together"] = np.concatenate(list(images.values()))
    for run in analyses(store, analysis="fourier"):
        model = run.tags["analysed"]
        assert run.metrics.keys() == {
            f"spearman/{name}/{donor}" for name in images for donor in ("amplitude", "phase")
        }
        for name, own in images.items():
            parts = names if name == "together" else [name]
            known = np.concatenate([log_prob_table(store, model, part) for part in parts])
            donors = expected_donors(name, len(own))
            mixed = contributions(store, model, numpy_mix(own, own[donors])).sum(1)
            for donor, values in (("amplitude", known), ("phase", known[donors])):
                expected = rank_correlation(mixed, values)
                assert run.metrics[f"spearman/{name}/{donor}"] == pytest.approx(expected, abs=2e-4)


def test_fourier_examples_are_the_first_mixes_across_datasets(analysed, store):
    pool = np.concatenate([pixels(analysed[0], name)[:LIMIT] for name in SETS[:3]])
    donors = expected_donors("together", len(pool))
    across = [i for i in range(len(pool)) if i // LIMIT != donors[i] // LIMIT][:8]
    for run in analyses(store, analysis="fourier"):
        found = arrays(store, run, "fourier")
        assert set(found) == {"amplitude", "phase", "mixed"}
        assert all(each.dtype == np.uint8 for each in found.values())
        assert np.array_equal(found["amplitude"], pool[across])
        assert np.array_equal(found["phase"], pool[donors[across]])
        assert np.array_equal(found["mixed"], numpy_mix(found["amplitude"], found["phase"]))


def test_correlations_are_of_each_pair_of_families_once_and_of_the_general_model(store):
    found = analyses(store, analysis="correlation")
    assert sorted((run.tags["model"], run.tags["seed"]) for run in found) == [
        ("glow", "1"), ("glow", "2"), ("glow-local", "1"), ("pixelcnn", "1"),
    ]  # fmt: skip
    for run in found:
        seed, own = run.tags["seed"], runs.get(store, run.tags["analysed"])
        later = FAMILIES[FAMILIES.index(run.tags["model"]) + 1 :] if seed == "1" else ()
        others = {"general": own.tags["general_run"]}
        for family in later:
            [other] = model_runs(store, model=family, seed=seed, outlier_loss="none")
            others[family] = other.run_id
        assert run.metrics.keys() == {f"spearman/{s}/{name}" for s in SETS for name in others}
        assert set(run.tags["other_runs"].split()) == set(others.values())
        for dataset in SETS:
            mine = log_prob_table(store, own.run_id, dataset)
            assert len(mine) == LIMIT
            for name, other in others.items():
                expected = rank_correlation(mine, log_prob_table(store, other, dataset))
                value = run.metrics[f"spearman/{dataset}/{name}"]
                assert value == pytest.approx(expected, abs=1e-12)


def test_extremes_are_the_highest_of_all_images_scored_by_hand(analysed, store):
    general = pixels(analysed[0], "sketch-general", "train")
    order = torch.randperm(len(general), generator=step_generator(0, "extremes/sketch-general", 0))
    subset = np.sort(order[:SUBSET].numpy())
    for run in analyses(store, analysis="extremes"):
        model = runs.get(store, run.tags["analysed"])
        scores = by_hand(store, model, general[subset])
        assert ("last_scale" in scores) == (run.tags["model"] == "glow")
        found = arrays(store, run, "extremes")
        assert set(found) == {
            f"{s}/{kind}" for s in scores for kind in ("images", "values", "indices")
        }
        assert run.metrics.keys() == {
            "extremes/images",
            *(f"extremes/{score}/threshold" for score in scores),
        }
        assert run.metrics["extremes/images"] == SUBSET
        for score, values in scores.items():
            best = np.sort(values)[::-1][:TOP]
            np.testing.assert_allclose(found[f"{score}/values"], best, atol=0.02)
            where = found[f"{score}/indices"]
            assert len(set(where.tolist())) == TOP
            np.testing.assert_allclose(values[np.searchsorted(subset, where)], best, atol=0.02)
            assert np.array_equal(found[f"{score}/images"], general[where])
            assert run.metrics[f"extremes/{score}/threshold"] == found[f"{score}/values"][-1]


def test_folds_are_scikit_learns_aurocs_of_likelihoods_computed_by_hand(analysed, store):
    workspace = analysed[0]
    inliers = {fold: pixels(workspace, SETS[0], fold)[:LIMIT] for fold in ("test", "train")}
    truth = np.r_[np.ones(LIMIT), np.zeros(LIMIT)]
    for run in analyses(store, analysis="folds"):
        model = runs.get(store, run.tags["analysed"])
        own = {fold: by_hand(store, model, images) for fold, images in inliers.items()}
        names = set()
        for ood in OODS:
            outliers = by_hand(store, model, pixels(workspace, ood)[:LIMIT])
            for score, values in outliers.items():
                test, train = (
                    roc_auc_score(truth, np.r_[own[fold][score], values])
                    for fold in ("test", "train")
                )
                expected = {"auroc": test, "train_fold/auroc": train, "gap": train - test}
                for kind, value in expected.items():
                    name = f"{kind}/{ood}/{score}"
                    assert run.metrics[name] == pytest.approx(value, abs=2e-3)
                    names.add(name)
        assert run.metrics.keys() == names
        assert ("auroc/sketch-digits/last_scale" in names) == (run.tags["model"] == "glow")


def test_a_model_never_gets_more_images_than_a_batch(changeable):
    """However many images are ranked, and the public function gives the runs."""
    store = changeable.store()
    session = Session(store, changeable.data, torch.device("cpu"), "")
    [run] = model_runs(store, model="glow", seed="1", outlier_loss="none")
    sizes = []
    for each in (run, runs.get(store, run.tags["general_run"])):
        session.model(each).model.register_forward_pre_hook(
            lambda _, given: sizes.append(len(given[0]))
        )
    chosen = AnalyseOptions(what="extremes", run=run.run_id, top=TOP, subset=1100, limit=LIMIT)
    [made] = analyse(session, chosen)
    assert made.metrics["extremes/images"] == 1100
    assert max(sizes) <= 250 and sum(sizes) == 2 * 1100
    [again] = analyse(session, chosen)
    assert again.run_id == made.run_id


# Repetition, choice of models, and what is refused


def test_a_repeated_command_makes_nothing_and_another_option_only_what_it_decides(
    analysed, tmp_path
):
    workspace = analysed[0].clone(tmp_path / "again")
    store = workspace.store()
    before = {run.run_id for run in runs.find(store, {})}
    outcome = workspace.oodflow(*WORDS)
    assert outcome.code == 0, outcome.err
    assert {run.run_id for run in runs.find(store, {})} == before
    assert outcome.out.count("already there") == len(analyses(store))
    assert workspace.oodflow(*WORDS, "--top", "6").code == 0
    new = [run for run in runs.find(store, {}) if run.run_id not in before]
    kinds = sorted(run.tags.get("analysis", "parent") for run in new)
    assert kinds == ["extremes"] * 6 + ["parent"]


@pytest.mark.long
def test_of_equal_models_the_newest_is_analysed(changeable, tiny):
    store = changeable.store()
    older = {run.run_id for run in model_runs(store)}
    assert changeable.oodflow("finetune", *tiny).code == 0
    [new] = [run for run in model_runs(store) if run.run_id not in older]
    assert changeable.oodflow(*WORDS, "--what", "folds").code == 0
    seeds = {run.tags["seed"]: run.tags["analysed"] for run in analyses(store, model="glow")}
    assert seeds["1"] == new.run_id and seeds["2"] in older
    # Its weights are those of the older one, whose analysis is another run all the same.
    [twin] = {run for run in older if runs.get(store, run).tags["spec"] == new.tags["spec"]}
    assert changeable.oodflow(*WORDS, "--what", "folds", "--run", twin).code == 0
    [own] = runs.find(store, {"analysed": twin})
    [other] = runs.find(store, {"analysed": new.run_id})
    assert own.tags["spec"] == other.tags["spec"] and own.metrics == other.metrics


@pytest.mark.long
def test_the_other_families_are_represented_by_their_newest_model(changeable, tiny):
    store = changeable.store()
    [older] = model_runs(store, model="glow-local")
    assert changeable.oodflow("finetune", *tiny, "--model", "glow-local").code == 0
    [new] = [each for each in model_runs(store, model="glow-local") if each.run_id != older.run_id]
    [run] = model_runs(store, model="glow", seed="1", outlier_loss="none")
    assert changeable.oodflow(*WORDS, "--what", "correlation", "--run", run.run_id).code == 0
    [made] = runs.find(store, {"kind": "analyse"})
    others = made.tags["other_runs"].split()
    assert new.run_id in others and older.run_id not in others


@pytest.mark.long
def test_one_analysis_of_one_run_is_the_run_that_mlflow_has_made(changeable):
    store = changeable.store()
    [run] = model_runs(store, model="glow", seed="2", outlier_loss="binary")
    given = {"what": "fourier", "run": run.run_id, "limit": "32", "images": "sketch-scenes"}
    project = changeable.mlflow_run("analyse", **given)
    assert project.code == 0, project.text
    made = runs.get(store, project.run_id)
    assert made.registered and not made.parent
    assert (made.tags["analysis"], made.tags["analysed"]) == ("fourier", run.run_id)
    assert {name.split("/")[1] for name in made.metrics} == {"sketch-scenes", "together"}


def test_several_are_nested_below_the_run_that_mlflow_has_made(changeable):
    store = changeable.store()
    [run] = model_runs(store, model="pixelcnn")
    claimed = store.client.create_run(store.experiment_id).info.run_id
    words = (*WORDS, "--run", run.run_id, "--what", "folds, correlation")
    assert changeable.oodflow(*words, MLFLOW_RUN_ID=claimed).code == 0
    found = analyses(store)
    assert sorted(each.tags["analysis"] for each in found) == ["correlation", "folds"]
    assert {each.parent for each in found} == {claimed}
    assert runs.get(store, claimed).tags["registered"] == "false"


def refused(workspace, *words: str) -> str:
    outcome = workspace.oodflow("analyse", *words)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    return outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--what spectra", ["'spectra'", "fourier, correlation, extremes, folds"]),
        ("--what fourier,", ["''", "fourier"]),
        ("--images nope", ["'nope'", "sketch-shapes"]),
        ("--images mnist", ["mnist", "1 channel"]),
        ("--run 0123456789abcdef", ["'0123456789abcdef'", "oodflow runs list"]),
        ("--top 0", ["top is 0"]),
        ("--subset -1", ["subset is -1"]),
        ("--limit -1", ["limit is -1"]),
    ],
)
def test_a_wrong_word_is_refused_before_any_run_is_made(prepared, words, said):
    before = len(prepared.all_runs())
    line = refused(prepared, *words.split())
    assert [text for text in said if text not in line] == [], line
    assert len(prepared.all_runs()) == before


def test_a_run_without_a_likelihood_of_inliers_is_refused(prepared):
    store = prepared.store()
    [classifier] = runs.find(store, {"model": "wide-resnet"})
    assert "no likelihood" in refused(prepared, "--run", classifier.run_id)
    [general, *_] = runs.find(store, {"role": "general"})
    assert "no in-distribution model" in refused(prepared, "--run", general.run_id)
    [report, *_] = runs.find(store, {"kind": "report"})
    assert "no in-distribution model" in refused(prepared, "--run", report.run_id)


def test_a_store_without_models_names_the_command_that_makes_one(blank):
    assert "oodflow finetune" in refused(blank)


def test_a_deleted_run_is_refused_and_left_out_by_auto(changeable):
    store = changeable.store()
    [run] = model_runs(store, model="pixelcnn")
    store.client.delete_run(run.run_id)
    assert f"mlflow runs restore --run-id {run.run_id}" in refused(changeable, "--run", run.run_id)
    assert changeable.oodflow(*WORDS, "--what", "correlation").code == 0
    found = analyses(store)
    assert {each.tags["model"] for each in found} == {"glow", "glow-local"}
    assert not [name for each in found for name in each.metrics if "pixelcnn" in name]


def test_extremes_without_a_general_model_name_the_command_that_gives_one(changeable):
    store = changeable.store()
    [run] = model_runs(store, model="glow", seed="1", outlier_loss="none")
    store.client.delete_tag(run.run_id, "oodflow.general_run")
    words = ("--what", "extremes", "--run", run.run_id)
    command = re.search(r"oodflow (evaluate .*)", refused(changeable, *words))
    assert changeable.oodflow(*command[1].split(), "--limit", "32").code == 0
    assert changeable.oodflow(*WORDS, *words).code == 0


def test_an_analysis_that_fails_is_a_failed_run_and_is_made_anew(changeable):
    store = changeable.store()
    [run] = model_runs(store, model="glow", seed="1", outlier_loss="none")
    words = ("--what", "fourier", "--run", run.run_id)
    assert "at least 2" in refused(changeable, *words, "--limit", "1")
    [failed] = runs.find(store, {"kind": "analyse"})
    assert failed.status == "FAILED" and failed.tags["registered"] == "false"
    assert changeable.oodflow("analyse", *words, "--limit", "2").code == 0
