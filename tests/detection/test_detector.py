"""The detector as a value: its numbers are those of the score tables, saved and loaded."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from oodflow.detection.calibration import Calibration, halves, refuse_training_images
from oodflow.detection.conformal import allowed_rank
from oodflow.detection.detector import Detector, calibrated, roles_of
from oodflow.detection.inputs import InputImage
from oodflow.detection.preprocessing import Preprocessing
from oodflow.errors import UserError
from oodflow.evaluation.scores import compute_scores
from oodflow.evaluation.scoring import score_images


def tables(detector, images):
    pixels = torch.from_numpy(images)
    return [
        score_images(each.model, pixels, None, device="cpu", batch_size=250)
        for each in detector.models.values()
    ]


def test_scores_are_those_of_the_score_tables_alone_or_among_many(detector, shapes):
    own, general = tables(detector, shapes)
    expected = compute_scores(own, general)["diff"]
    np.testing.assert_allclose(detector.scores(shapes), expected, rtol=0, atol=1e-4)
    alone = np.concatenate([detector.scores(shapes[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, expected[:20], rtol=0, atol=1e-4)


def test_the_parts_add_up_to_the_score(detector, shapes):
    found = detector.measure(shapes[:40])
    assert list(found) == ["score", "scale1", "scale2", "scale3"]
    np.testing.assert_allclose(found.drop(columns="score").sum(axis=1), found["score"], atol=1e-9)
    own, general = tables(detector, shapes[:40])
    np.testing.assert_allclose(found["scale2"], own["scale2"] - general["scale2"], atol=1e-4)


def test_p_values_and_decisions_follow_from_the_calibration(detector, shapes):
    fresh = shapes[250:]
    scores = detector.scores(fresh)
    calibration = detector.calibration.table["score"].to_numpy()
    expected = [(1 + (calibration <= score).sum()) / 251 for score in scores]
    np.testing.assert_allclose(detector.p_values(fresh), expected, rtol=1e-12)
    for alpha in (0.01, 0.05, 0.3):
        flagged = detector.decide(fresh, alpha)
        np.testing.assert_array_equal(flagged, np.array(expected) <= alpha)
        threshold = detector.calibration.threshold(allowed_rank(alpha, 250))
        np.testing.assert_array_equal(flagged, scores < threshold)
    by_scale = detector.scale_p_values(fresh)
    assert by_scale.shape == (250, 3) and by_scale.min() > 0 and by_scale.max() <= 1


def test_rows_with_errors_leave_their_neighbours_alone(detector, shapes):
    inputs = [
        InputImage(shapes[300]),
        InputImage(None, error="broken"),
        InputImage(shapes[301], True),
    ]
    rows = detector.judge(inputs, 0.05)
    assert rows["error"].tolist() == ["", "broken", ""]
    assert rows["resized"].tolist() == [False, False, True]
    assert rows["anomalous"].isna().tolist() == [False, True, False]
    np.testing.assert_allclose(rows["score"][[0, 2]], detector.scores(shapes[300:302]), atol=1e-4)
    assert np.isnan(rows["score"][1]) and np.isnan(rows["scale1_p"][1])
    assert detector.judge(inputs, None)["anomalous"].isna().all()
    assert detector.judge([inputs[1]], 0.05)["error"].tolist() == ["broken"]
    assert len(detector.judge([], 0.05)) == 0


@pytest.mark.parametrize("score", ["raw", "scale1", "last_scale", "diff", "diff_outlier"])
def test_saved_and_loaded_it_is_the_same(make_model, shapes, tmp_path, score):
    models = {
        role: make_model(seed=i, pixels=shapes[:32]) for i, role in enumerate(roles_of(score))
    }
    made = calibrated(
        score, "sketch-shapes", Preprocessing(3), models, shapes[:40], {"fold": "test"}
    )
    made.save(tmp_path / "folder")
    files = {path.name for path in (tmp_path / "folder").iterdir()}
    expected = {f"{role}.safetensors" for role in roles_of(score)}
    assert files == expected | {"calibration.parquet", "detector.json"}
    loaded = Detector.from_folder(tmp_path / "folder")
    assert (loaded.score, loaded.dataset, loaded.preprocessing) == (
        made.score,
        made.dataset,
        made.preprocessing,
    )
    assert loaded.calibration.facts == {"fold": "test"}
    pd.testing.assert_frame_equal(loaded.calibration.table, made.calibration.table)
    np.testing.assert_array_equal(loaded.scores(shapes[40:60]), made.scores(shapes[40:60]))
    with pytest.raises(UserError, match="is not empty"):
        made.save(tmp_path / "folder")


def test_a_compressor_can_be_the_general_model(make_model, shapes, tmp_path):
    models = {"in_distribution": make_model(pixels=shapes[:32]), "general": make_model(name="png")}
    made = calibrated("diff", "sketch-shapes", Preprocessing(3), models, shapes[:30], {})
    made.save(tmp_path / "folder")
    loaded = Detector.from_folder(tmp_path / "folder")
    np.testing.assert_array_equal(loaded.scores(shapes[:9]), made.scores(shapes[:9]))
    # PNG has no scales: the parts are those of the in-distribution model.
    [table] = tables(
        replace(made, score="raw", models={"in_distribution": models["in_distribution"]}),
        shapes[:9],
    )
    np.testing.assert_allclose(made.measure(shapes[:9])["scale3"], table["scale3"], atol=1e-4)


def test_non_finite_likelihoods_are_clipped_and_the_most_anomalous(detector, shapes, monkeypatch):
    terms = detector.models["in_distribution"].model.terms

    def broken(images, noise):
        values, priors = terms(images, noise)
        values = values.clone()
        values[0] = float("nan")
        return values, priors

    monkeypatch.setattr(detector.models["in_distribution"].model, "terms", broken)
    p = detector.p_values(shapes[250:260])
    assert p[0] == pytest.approx(1 / 251) and np.isfinite(p).all()


PLAIN = Preprocessing(3)


def test_parts_that_do_not_fit_are_refused(make_model, detector, shapes):
    def refused(match, score="diff", models=None, how=PLAIN, images=shapes[:10]):
        with pytest.raises(UserError, match=match) as caught:
            calibrated(score, "x", how, models or dict(detector.models), images, {})
        assert "\n" not in str(caught.value)

    own = {"in_distribution": detector.models["in_distribution"]}
    refused("needs the models in_distribution, general, but got in_distribution", models=own)
    refused("unknown score 'best'", "best")
    refused("scores images of 3 channels, but they are prepared with 1", how=Preprocessing(1))
    refused("no calibration images", images=shapes[:0])
    png = {"in_distribution": make_model(name="png")}
    refused("needs a model of 2 or more scales", "last_scale", models=png)
    refused("needs a model of 3 scales", "scale1", models=png)
    with pytest.raises(UserError, match="calibrated by score, scale1"):
        table = detector.calibration.table[["score"]]
        replace(detector, calibration=Calibration(table, {}))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.003])
def test_a_rate_that_cannot_be_is_refused(detector, shapes, alpha):
    with pytest.raises(UserError, match="alpha"):
        detector.decide(shapes[:2], alpha)
    with pytest.raises(UserError, match="alpha"):
        detector.judge([InputImage(shapes[0])], alpha)


def test_halves_are_a_partition_and_the_same_each_time():
    first, second = halves(1001)
    assert len(first) == 501 and not set(first) & set(second)
    assert set(first) | set(second) == set(range(1001))
    np.testing.assert_array_equal(first, halves(1001)[0])
    assert (first != np.arange(501)).any()


def test_training_images_cannot_calibrate(shapes, digits):
    training = torch.from_numpy(shapes)
    refuse_training_images(torch.from_numpy(digits), training, "sketch-shapes")
    mixed = torch.from_numpy(np.concatenate([digits, shapes[7:9]]))
    with pytest.raises(UserError, match="2 training images of sketch-shapes are among"):
        refuse_training_images(mixed, training, "sketch-shapes")


def test_scikit_learns_interface_and_sign(detector, shapes, tmp_path):
    fresh = shapes[250:300]
    for alpha in (0.02, 0.2):
        flagged = detector.decide(fresh, alpha)
        assert detector.predict(fresh, alpha).tolist() == [-1 if each else 1 for each in flagged]
        assert ((detector.decision_function(fresh, alpha) < 0) == flagged).all()
    np.testing.assert_array_equal(detector.score_samples(fresh), detector.scores(fresh))


def test_images_come_in_any_form(detector, shapes, tmp_path):
    fresh = shapes[250:253]
    expected = detector.scores(fresh)
    rows = fresh.transpose(0, 2, 3, 1)
    pictures = [Image.fromarray(each) for each in rows]
    pictures[0].save(tmp_path / "a.png")
    for given in (rows, torch.from_numpy(fresh), list(fresh), pictures):
        np.testing.assert_array_equal(detector.scores(given), expected)
    np.testing.assert_array_equal(detector.scores([tmp_path / "a.png"]), detector.scores(fresh[:1]))
    with pytest.raises(UserError, match="image 1 cannot be read: no image of a known format"):
        detector.p_values([fresh[0], b"no image"])
    assert detector.scores([]).shape == (0,)
