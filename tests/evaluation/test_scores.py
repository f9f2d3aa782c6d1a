"""Scores: which there are, their sign, the clipping before differences, and alignment."""

import math

import numpy as np
import pandas as pd
import pytest

from oodflow import registration
from oodflow.errors import UserError
from oodflow.evaluation.scores import (
    CLIP,
    SCORES,
    bits_per_dimension_mean,
    clip_non_finite,
    compute_scores,
    register_score,
)


def make_table(log_prob, **columns) -> pd.DataFrame:
    count = len(log_prob)
    return pd.DataFrame(
        {"index": np.arange(count), "label": np.arange(count) % 3, "log_prob": log_prob, **columns}
    )


def test_every_score_of_a_three_scale_model():
    table = make_table([-6.0, -9.0], scale1=[-1.0, -2.0], scale2=[-2.0, -3.0], scale3=[-3.0, -4.0])
    scores = compute_scores(table, make_table([-7.0, -7.0]), make_table([-16.0, -8.0]))
    assert tuple(scores) == SCORES.names()[:6]
    assert {name: values.tolist() for name, values in scores.items()} == {
        "raw": [-6.0, -9.0],
        "scale1": [-1.0, -2.0],
        "scale2": [-2.0, -3.0],
        "last_scale": [-3.0, -4.0],
        "diff": [1.0, -2.0],
        "diff_outlier": [10.0, -1.0],
    }


def test_scores_that_a_table_does_not_have():
    assert set(compute_scores(make_table([-1.0]))) == {"raw"}
    two = compute_scores(make_table([-3.0], scale1=[-1.0], scale2=[-2.0]))
    assert set(two) == {"raw", "last_scale"}
    assert two["last_scale"].tolist() == [-2.0]


def test_last_scale_is_the_highest_number_not_the_last_name():
    scales = {f"scale{i}": [-float(i)] for i in (10, 9, 1, 2, 3, 4, 5, 6, 7, 8)}
    assert compute_scores(make_table([-55.0], **scales))["last_scale"].tolist() == [-10.0]


def test_non_finite_values_are_clipped_before_the_difference():
    bad = [-math.inf, math.nan, math.inf]
    table = make_table([*bad, -math.inf, -5.0], scale1=[*bad, 0, 0], scale2=[*bad, 0, 1])
    general = make_table([-9.0, -9.0, -9.0, -math.inf, math.nan])
    scores = compute_scores(table, general)
    assert CLIP == -3_000_000
    assert scores["raw"].tolist() == [CLIP, CLIP, CLIP, CLIP, -5.0]
    assert scores["last_scale"].tolist() == [CLIP, CLIP, CLIP, 0.0, 1.0]
    assert scores["diff"].tolist() == [CLIP + 9, CLIP + 9, CLIP + 9, 0.0, -5.0 - CLIP]
    assert math.isnan(table["log_prob"][1]), "the table itself is left alone"


def test_finite_values_below_the_clip_stay():
    assert clip_non_finite(np.array([-5e6])).tolist() == [-5e6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:2], "3 and 2 rows"),
        (lambda table: table.assign(index=[1, 0, 2]), "different columns index"),
        (lambda table: table.assign(label=[0, 1, 1]), "different columns label"),
        (lambda table: table[::-1], "different columns index and label"),
    ],
)
@pytest.mark.parametrize("score", ["diff", "diff_outlier"])
def test_tables_of_other_images_are_refused(change, message, score):
    table = make_table([-1.0, -2.0, -3.0])
    contrast = {"diff": "general", "diff_outlier": "general_outlier"}[score]
    with pytest.raises(UserError, match=f"score '{score}'.*{message}"):
        compute_scores(table, **{contrast: change(table)})


def test_rows_are_compared_by_position_not_by_pandas_labels():
    table = make_table([-1.0, -2.0])
    moved = make_table([-4.0, -8.0]).set_axis([1, 0])
    assert compute_scores(table, moved)["diff"].tolist() == [3.0, 6.0]


def test_bits_per_dimension():
    nats = np.array([-3072 * 3.5 * math.log(2), -3072 * 3.0 * math.log(2)])
    table = make_table([0.0, 0.0], log_prob_dequantised=nats)
    assert bits_per_dimension_mean(table, (3, 32, 32)) == pytest.approx(3.25)
    table.loc[0, "log_prob_dequantised"] = math.nan
    assert math.isnan(bits_per_dimension_mean(table, (3, 32, 32)))


@pytest.fixture
def registered():
    """``registered(name, needs, compute)`` registers a score for one test."""
    names = []

    def register(name, needs, compute):
        register_score(name, needs, compute)
        names.append(name)

    yield register
    for name in names:
        del SCORES[name]


def test_a_registered_score_is_computed_where_its_tables_are_there(registered):
    registered("half", ("general",), lambda tables: 0.5 * tables.general["log_prob"].to_numpy())
    table, general = make_table([-1.0, -2.0]), make_table([-4.0, -6.0])
    assert "half" not in compute_scores(table)
    assert compute_scores(table, general)["half"].tolist() == [-2.0, -3.0]
    assert set(compute_scores(table, general, names=["half"])) == {"half"}
    with pytest.raises(UserError, match="score 'half'.*2 and 1 rows"):
        compute_scores(table, general[:1], names=["half"])


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda tables: 1 / 0, "cannot compute its score 'bad': ZeroDivisionError"),
        (lambda tables: np.zeros(3), "an array of shape (3,) for 2 images"),
        (lambda tables: np.array([1.0, np.nan]), "values that are not finite"),
    ],
)
def test_a_registered_score_that_fails_costs_one_line_and_no_other(
    registered, capsys, compute, why
):
    registered("bad", (), compute)
    warned = set(registration._warned)
    table = make_table([-1.0, -2.0])
    assert set(compute_scores(table)) == {"raw"} and set(compute_scores(table)) == {"raw"}
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: plug-in ") and why in line
    registration._warned.intersection_update(warned)
    with pytest.raises(UserError) as caught:
        compute_scores(table, names=["bad"])
    assert why in str(caught.value)
