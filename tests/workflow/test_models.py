"""Every family through the same entry points: trained, evaluated, registered, in the report."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from oodflow.experiment import COMPRESSORS
from oodflow.models.build import BUILDERS
from oodflow.registration import MODELS
from oodflow.tracking import runs

PARITY = Path(__file__).parents[1] / "foreign" / "parity"
DENSITIES = ("glow-local", "glow-dense", "glow-conditional", "pixelcnn")
SMALL = {"pixelcnn": ("--hidden", "4"), "glow-dense": ("--hidden", "4")}


def arguments(tiny: list[str], model: str) -> list[str]:
    return [*tiny, "--model", model, *SMALL.get(model, ())]


def newest(workspace, **tags: str) -> runs.RunInfo:
    store = workspace.store()
    return runs.get(store, runs.find(store, tags)[0].run_id)


def table(workspace, run: runs.RunInfo, dataset: str, fold: str = "test") -> pd.DataFrame:
    with runs.artifact(workspace.store(), run.run_id, f"scores/{dataset}-{fold}.parquet") as path:
        return pd.read_parquet(path)


def auroc(inliers: np.ndarray, outliers: np.ndarray) -> float:
    return roc_auc_score(np.r_[np.ones(len(inliers)), np.zeros(len(outliers))],
                         np.r_[inliers, outliers])  # fmt: skip


def test_every_family_can_be_built_and_has_both_presets() -> None:
    assert set(MODELS) == set(BUILDERS)
    assert all({"quick", "paper"} <= set(presets) for presets in MODELS.values())
    # Between the two where its settings were measured.
    small = {name for name, presets in MODELS.items() if "small" in presets}
    assert small == {"glow", "glow-conditional", "tarflow", *COMPRESSORS}


@pytest.mark.parametrize("model", DENSITIES)
@pytest.mark.long
def test_a_density_trains_finetunes_and_is_scored_against_its_general_model(
    blank, tiny, model
) -> None:
    for command in ("train", "finetune"):
        outcome = blank.oodflow(command, *arguments(tiny, model))
        assert outcome.code == 0, outcome.err
    run = newest(blank, kind="finetune", model=model)
    general = newest(blank, kind="train", model=model)
    assert run.registered and run.tags["init_run"] == general.run_id
    own, other = table(blank, run, "sketch-shapes"), table(blank, run, "sketch-digits")
    base, far = table(blank, general, "sketch-shapes"), table(blank, general, "sketch-digits")
    assert run.metrics["auroc/sketch-digits/diff"] == pytest.approx(
        auroc(own.log_prob - base.log_prob, other.log_prob - far.log_prob)
    )
    bpd = -own.log_prob_dequantised.mean() / (3072 * math.log(2))
    assert run.metrics["bpd/sketch-shapes"] == pytest.approx(bpd)
    assert ("auroc/sketch-digits/last_scale" in run.metrics) == (
        model not in ("glow-local", "pixelcnn")
    )
    report = blank.oodflow("report")
    assert report.code == 0, report.err
    assert f"detection-sketch-{model}" in {
        path.stem for path in (blank.folder / "report/tables").iterdir()
    }


@pytest.mark.long
def test_the_outlier_loss_takes_a_pixelcnn(blank, tiny) -> None:
    words = arguments(tiny, "pixelcnn")
    assert blank.oodflow("train", *words).code == 0
    outcome = blank.oodflow("finetune", *words, "--outlier-loss", "binary")
    assert outcome.code == 0, outcome.err
    history = newest(blank, outlier_loss="binary", model="pixelcnn")
    assert history.params["loss.temperature"] == "1000.0"
    assert history.params["loss.outlier_weight"] == "6000.0"
    assert history.metrics["train/outlier_loss"] > 0


def test_a_supervised_glow_predicts_classes_and_logs_its_accuracy(trained, tiny) -> None:
    outcome = trained.oodflow("finetune", *tiny, "--supervised")
    assert outcome.code == 0, outcome.err
    run = newest(trained, setting="supervised")
    own = table(trained, run, "sketch-shapes")
    assert set(own.predicted.unique()) <= set(range(10))
    accuracy = (own.predicted == own.label).mean()
    assert run.metrics["accuracy/sketch-shapes"] == pytest.approx(accuracy)
    assert run.registered and run.params["model.classes"] == "10"
    report = trained.oodflow("report")
    assert "No outlier loss, supervised" in report.out


def test_supervision_needs_labels(trained, tiny) -> None:
    outcome = trained.oodflow("finetune", *tiny, "--supervised", "--dataset", "sketch-general")
    assert outcome.code == 2 and "has no labels" in outcome.err


def test_a_classifier_trains_against_the_general_set_and_has_no_bpd(blank) -> None:
    words = "--model wide-resnet --hidden 1 --limit 64 --batch-size 16 --steps 4 --report-every 2"
    outcome = blank.oodflow("train", *words.split())
    assert outcome.code == 0, outcome.err
    run = newest(blank, model="wide-resnet")
    assert run.registered and run.tags["outlier_dataset"] == "sketch-general"
    assert not [name for name in run.metrics if "bpd" in name]
    own, other = table(blank, run, "sketch-shapes"), table(blank, run, "sketch-digits")
    assert (own.log_prob <= 0).all()
    assert run.metrics["auroc/sketch-digits/raw"] == pytest.approx(
        auroc(own.log_prob, other.log_prob)
    )
    refused = blank.oodflow("finetune", "--model", "wide-resnet")
    assert refused.code == 2 and "not finetuned" in refused.err


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_a_compressor_is_a_general_model(trained, codec) -> None:
    target = newest(trained, kind="finetune", outlier_loss="none", role="in_distribution")
    before = trained.store().client.get_run(target.run_id).data.metrics
    words = ("--run", target.run_id, "--general", codec, "--limit", "64")
    outcome = trained.oodflow("evaluate", *words, "--ood", "sketch-digits")
    assert outcome.code == 0, outcome.err
    record = newest(trained, kind="evaluate", general_model=codec)
    general = newest(trained, model=codec)
    own, other = (table(trained, target, f"sketch-{name}") for name in ("shapes", "digits"))
    base, far = (table(trained, general, f"sketch-{name}") for name in ("shapes", "digits"))
    s_score = auroc(own.log_prob - base.log_prob, other.log_prob - far.log_prob)
    assert record.metrics["auroc/sketch-digits/diff"] == pytest.approx(s_score)
    alone = auroc(base.log_prob, far.log_prob)
    assert record.metrics["auroc/sketch-digits/general"] == pytest.approx(alone)
    # bits·ln 2 of whole bytes
    sizes = -base.log_prob / math.log(2) / 8
    assert np.allclose(sizes, sizes.round(), atol=1e-2)
    assert trained.store().client.get_run(target.run_id).data.metrics == before


def test_training_fold_inliers_are_named_as_such(trained) -> None:
    target = newest(trained, kind="finetune", outlier_loss="none", role="in_distribution")
    words = ("--run", target.run_id, "--general", "png", "--inlier-fold", "train")
    outcome = trained.oodflow("evaluate", *words, "--limit", "64", "--ood", "sketch-digits")
    assert outcome.code == 0, outcome.err
    record = newest(trained, kind="evaluate", inlier_fold="train")
    assert all(name.startswith("train_fold/") for name in record.metrics)
    own = table(trained, target, "sketch-shapes", "train")
    other = table(trained, target, "sketch-digits")
    assert record.metrics["train_fold/auroc/sketch-digits/raw"] == pytest.approx(
        auroc(own.log_prob, other.log_prob)
    )
    assert "training-fold inliers" in trained.oodflow("report").out


def test_a_compressor_is_not_trained(blank) -> None:
    outcome = blank.oodflow("train", "--model", "png")
    assert outcome.code == 2 and "oodflow evaluate --general png" in outcome.err


@pytest.mark.long
def test_the_report_correlates_the_likelihoods_of_families(trained, tiny) -> None:
    for command in ("train", "finetune"):
        outcome = trained.oodflow(command, *arguments(tiny, "glow-local"))
        assert outcome.code == 0, outcome.err
    assert trained.oodflow("analyse", "--what", "correlation").code == 0
    assert trained.oodflow("report").code == 0
    frame = pd.read_csv(trained.folder / "report/tables/model-correlation-sketch.csv")
    of_pair = (frame["First"] == "glow") & (frame["Second"] == "glow-local")
    row = frame[of_pair & (frame.column == "sketch-digits")].iloc[0]
    pair = [
        table(trained, newest(trained, kind="finetune", outlier_loss="none", model=model,
                              role="in_distribution", seed="1"), "sketch-digits").log_prob
        for model in ("glow", "glow-local")
    ]  # fmt: skip
    assert row["mean"] == pytest.approx(pair[0].rank().corr(pair[1].rank()))


@pytest.fixture
def imported(blank) -> tuple:
    file = PARITY / "authors_format_glow_K2_h16.th"
    outcome = blank.oodflow("import-checkpoint", str(file), "--format", "authors")
    assert outcome.code == 0, outcome.err
    return blank, outcome.out.strip().splitlines()[-1]


def test_imported_weights_score_the_published_images_as_published(imported, tmp_path) -> None:
    workspace, run_id = imported
    expected = np.load(PARITY / "authors_format_glow_K2_h16_expected.npz")
    for i, image in enumerate(expected["images_uint8_nchw"]):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i}.png")
    for name, read in (("s.csv", pd.read_csv), ("s.parquet", pd.read_parquet)):
        out = tmp_path / "out" / name
        outcome = workspace.oodflow("score", run_id, str(tmp_path), "--out", str(out))
        assert outcome.code == 0, outcome.err
        frame = read(out)
        over_levels = expected["log_prob"] - 3072 * math.log(256)
        assert np.abs(frame.log_prob - over_levels).max() < 1e-2
        assert list(frame.file) == [str(tmp_path / f"{i}.png") for i in range(len(frame))]
        assert np.allclose(frame.scale1 + frame.scale2 + frame.last_scale, frame.log_prob)
        assert np.allclose(frame.bpd, -frame.log_prob / (3072 * math.log(2)))
    assert runs.get(workspace.store(), run_id).registered


def test_unreadable_files_are_listed_after_the_rest_is_scored(imported, tmp_path) -> None:
    workspace, run_id = imported
    Image.new("L", (32, 32), 90).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(tmp_path / "c.png")
    out = tmp_path / "scores.csv"
    outcome = workspace.oodflow("score", run_id, str(tmp_path), "--out", str(out))
    assert outcome.code == 1
    assert "b.png cannot be read" in outcome.err and outcome.err.count("\n") == 1
    assert [Path(file).name for file in pd.read_csv(out).file] == ["a.png", "c.png"]


def test_images_of_another_size_are_refused_by_name_unless_resized(imported, tmp_path) -> None:
    workspace, run_id = imported
    Image.new("RGB", (40, 32)).save(tmp_path / "wide.png")
    words = ("score", run_id, str(tmp_path / "wide.png"), "--out", str(tmp_path / "s.csv"))
    refused = workspace.oodflow(*words)
    assert refused.code == 2 and "wide.png is 40×32" in refused.err
    assert workspace.oodflow(*words, "--resize").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import-checkpoint", "absent.th", "--format", "authors"], "absent.th"),
        (["import-checkpoint", "absent.th", "--format", "tensorflow"], "unknown format"),
        (["score", "0123", ".", "--out", "s.txt"], "must end in .csv or .parquet"),
    ],
)
def test_wrong_words_are_refused_in_one_line(blank, words, said) -> None:
    outcome = blank.oodflow(*words)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1
