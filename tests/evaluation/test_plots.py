"""Figures: what they show, also of values far away, without pyplot, and how they are saved."""

import inspect
import re

import numpy as np
import pytest

from oodflow.errors import UserError
from oodflow.evaluation import plots
from oodflow.evaluation.plots import effect_figure, histogram_figure, roc_figure, save_figure
from oodflow.evaluation.scores import CLIP


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def area(line) -> float:
    return float(np.trapezoid(line.get_ydata(), line.get_xdata()))


def test_histogram_shows_each_density_and_its_auroc(rng):
    inliers, outliers = rng.normal(0, 1, 3000), rng.normal(9, 1, 3000)
    figure = histogram_figure("cifar10", inliers, {"svhn": outliers}, "Raw", "log p(x)")
    (axes,) = figure.axes
    assert legend(axes) == ["cifar10 (in-distribution)", "svhn (AUROC 0.0 %)"]
    assert "more in-distribution →" in axes.get_xlabel()
    shown = axes.get_lines()
    for line, mean in zip(shown, (0, 9), strict=True):
        assert area(line) == pytest.approx(1, abs=0.02)
        peak = line.get_xdata()[np.argmax(line.get_ydata())]
        assert peak == pytest.approx(mean, abs=0.5)
        assert line.get_ydata().max() == pytest.approx(0.4, rel=0.1)
    assert shown[0].get_linestyle() != shown[1].get_linestyle()


def test_replaced_likelihoods_do_not_squeeze_the_figure(rng):
    outliers = np.where(rng.random(1000) < 0.4, CLIP, rng.normal(-30, 2, 1000))
    inliers = np.where(rng.random(1000) < 0.001, CLIP, rng.normal(0, 2, 1000))
    figure = histogram_figure("a", inliers, {"b": outliers}, "", "")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert -100 < low < -36 and 4 < high < 20
    share = np.mean(outliers == CLIP)
    assert f"{100 * share:.1f} % not shown" in legend(axes)[1]
    assert "not shown" not in legend(axes)[0]
    assert area(axes.get_lines()[1]) == pytest.approx(1 - share, abs=0.02)


@pytest.mark.parametrize("values", [np.zeros(5), np.array([3.0]), np.full(4, CLIP)])
def test_constant_scores_can_be_drawn(values, tmp_path):
    save_figure(histogram_figure("a", values, {"b": values}, "", ""), tmp_path / "a.png")


def test_roc_curve_ends_in_the_corners(rng):
    inliers, outliers = rng.normal(1, 1, 50), rng.normal(0, 1, 70)
    figure = roc_figure({"svhn": (inliers, outliers)}, "Diff")
    (axes,) = figure.axes
    curve = axes.get_lines()[-1]
    assert (curve.get_xdata()[0], curve.get_ydata()[0]) == (0, 0)
    assert (curve.get_xdata()[-1], curve.get_ydata()[-1]) == (1, 1)
    wins = np.mean(inliers[:, None] > outliers[None])
    assert legend(axes) == [f"svhn: AUROC {100 * wins:.1f} %"]


def test_effect_figure_is_in_bits_per_dimension(rng):
    shape = (3, 32, 32)
    unit = 3072 * np.log(2)
    inliers = {"raw": unit * rng.normal(-3.5, 0.2, 800), "diff": unit * rng.normal(0, 0.05, 800)}
    digits = {"raw": unit * rng.normal(-2, 0.2, 800), "diff": unit * rng.normal(-1, 0.05, 800)}
    raw, ratio = effect_figure("shapes", inliers, {"digits": digits}, shape).axes
    for axes, means in ((raw, (-3.5, -2)), (ratio, (0, -1))):
        for line, mean in zip(axes.get_lines(), means, strict=True):
            peak = line.get_xdata()[np.argmax(line.get_ydata())]
            assert peak == pytest.approx(mean, abs=0.15)
        assert "more in-distribution →" in axes.get_xlabel()
    assert re.search(r"AUROC 0\.0", legend(raw)[1]) and re.search(r"AUROC 100\.0", legend(ratio)[1])


def test_saving(tmp_path):
    for name, magic in (("f.png", b"\x89PNG"), ("f.pdf", b"%PDF")):
        first, second = tmp_path / "new" / name, tmp_path / f"second-{name}"
        for path in (first, second):
            save_figure(roc_figure({"a": (np.arange(5.0), np.arange(3.0))}, ""), path)
        assert first.read_bytes().startswith(magic)
        assert first.read_bytes() == second.read_bytes()
    with pytest.raises(UserError, match=r"'f\.jpg'.*\.png or \.pdf"):
        save_figure(histogram_figure("", np.ones(1), {}, "", ""), tmp_path / "f.jpg")


def test_pyplot_is_not_imported():
    assert not re.search(r"^\s*(from|import)\b.*pyplot", inspect.getsource(plots), re.MULTILINE)
