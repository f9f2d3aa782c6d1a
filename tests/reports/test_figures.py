"""The paper's figures: what is drawn, read back from the figure and computed anew."""

import inspect
import itertools
import math
import re
import statistics

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from oodflow.evaluation.plots import COLOURS
from oodflow.evaluation.scores import CLIP
from reports import curves as curves_module
from reports import overview, pictures, style
from reports.overview import (
    SERIES,
    extremes_figure,
    fourier_figure,
    overview_figure,
    save_both,
    scatter_figure,
    training_curves_figure,
)

SHAPE = (3, 32, 32)
UNIT = 3072 * math.log(2)
LONG = (
    "my-own-folder-of-photographs-from-the-microscope-2019",
    "my-own-folder-of-photographs-from-the-microscope-2020",
    "alongnamewithoutanyhyphenwhichnobodywouldgivetoadataset",
)


def images(n=4, channels=3, seed=0) -> np.ndarray:
    shape = (n, channels, 6, 6)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def curves(runs: dict[tuple[str, str, int], dict[int, float]]) -> pd.DataFrame:
    """(panel, series, seed) → step → value, as a frame."""
    return pd.DataFrame(
        [
            {"panel": panel, "series": series, "seed": seed, "step": step, "value": value}
            for (panel, series, seed), values in runs.items()
            for step, value in values.items()
        ]
    )


def random_curves(panels, series=("scratch", "general"), steps=range(100, 2100, 100)):
    rng = np.random.default_rng(1)
    keys = itertools.product(panels, series, range(3))
    return curves({key: {step: rng.normal(3, 0.1) for step in steps} for key in keys})


def training_figure(frame, **options):
    return training_curves_figure(frame, **{"ylabel": "BPD", "title": "Title"} | options)


def detections(datasets=("shapes", "letters"), oods=("digits", "letters", "shapes"), seeds=3):
    rng = np.random.default_rng(2)
    return pd.DataFrame(
        [
            {
                "dataset": dataset,
                "ood": ood,
                "score": score,
                "setting": setting,
                "seed": seed,
                "auroc": rng.uniform(0.2, 0.99),
            }
            for dataset, ood, score, setting, seed in itertools.product(
                datasets,
                oods,
                ["diff", "raw", "last_scale", "diff_outlier", "scale1"],
                ["supervised", "unsupervised"],
                range(seeds),
            )
            if dataset != ood
        ]
    )


def likelihoods(n=300, mean=-3.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    general = rng.normal(mean, 0.3, n)
    return general * UNIT, (general + rng.normal(0, 0.2, n)) * UNIT


def scatter(points, shape=SHAPE):
    return scatter_figure(points, shape, xlabel="general", ylabel="own", title="Title")


def panels(figure) -> dict[str, Axes]:
    return {axes.get_title("left").replace("\n", " "): axes for axes in figure.axes}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def thin(axes) -> list:
    return [line for line in axes.lines if line.get_alpha() is not None]


def means(axes) -> dict[str, list[tuple[float, float]]]:
    """Series → points of its thick line."""
    names = {(series.colour, series.marker): key for key, series in SERIES.items()}
    return {
        names[line.get_color(), line.get_marker()]: list(
            zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True)
        )
        for line in axes.lines
        if line.get_linewidth() > 1
    }


def levels(axes) -> list[float]:
    """Heights of the horizontal lines across a panel."""
    return [line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [0, 1]]


# ---- images ----


@pytest.mark.parametrize("channels", [1, 3])
def test_fourier_shows_every_image_in_its_row_and_column(channels):
    rows = [images(5, channels, seed) for seed in range(3)]
    figure = fourier_figure(*rows)
    assert [text.get_text() for text in figure.texts] == ["Amplitude", "Phase", "Result"]
    assert len(figure.axes) == 15
    # From the top left, line by line, wherever the axes come in the figure's list.
    places = sorted(figure.axes, key=lambda axes: (-round(axes.bbox.y0), axes.bbox.x0))
    for axes, (row, column) in zip(places, itertools.product(range(3), range(5)), strict=True):
        (shown,) = axes.images
        expected = np.moveaxis(rows[row][column], 0, -1).squeeze()
        np.testing.assert_array_equal(shown.get_array(), expected)
        assert shown.get_interpolation() == "nearest" and shown.get_clim() == (0, 255)
        assert not axes.axison
        assert axes.bbox.width == pytest.approx(axes.bbox.height)
    for text, axes in zip(figure.texts, places[::5], strict=True):
        y = figure.transFigure.transform(text.get_position())[1]
        assert y == pytest.approx((axes.bbox.y0 + axes.bbox.y1) / 2)


def test_extremes_have_a_title_and_a_row_for_each_label():
    rows = {"Raw likelihood": images(12, seed=1), "Log-likelihood ratio": images(12, seed=2)}
    figure = extremes_figure(rows, "Most likely images")
    assert figure.get_suptitle() == "Most likely images"
    assert [t.get_text().replace("\n", " ") for t in figure.texts if t.get_text()][:2] == list(rows)
    heights = sorted({round(axes.bbox.y0) for axes in figure.axes}, reverse=True)
    for height, stack in zip(heights, rows.values(), strict=True):
        row = [axes for axes in figure.axes if round(axes.bbox.y0) == height]
        shown = [axes.images[0].get_array() for axes in sorted(row, key=lambda axes: axes.bbox.x0)]
        np.testing.assert_array_equal(shown, np.moveaxis(stack, 1, -1))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (images(3), r"different shapes: .*Phase \(4, 3, 6, 6\)"),
        (images(4).astype(float), "Amplitude: images are uint8 .* not float64"),
        (images(4, 2), r"C = 3 or 1, not uint8 of \(4, 2, 6, 6\)"),
        (images(4)[0], r"not uint8 of \(3, 6, 6\)"),
        (images(0), "Amplitude: there are no images"),
    ],
)
def test_images_are_checked(broken, message):
    with pytest.raises(ValueError, match=message):
        fourier_figure(broken, images(), images())


def test_rows_of_images_are_needed():
    with pytest.raises(ValueError, match="no images"):
        extremes_figure({}, "")


# ---- training curves ----


def test_seeds_and_their_mean():
    frame = random_curves(["shapes", "digits"])
    figure = training_figure(frame.sample(frac=1, random_state=0))
    for panel, axes in panels(figure).items():
        part = frame[frame["panel"] == panel]
        drawn = {(line.get_color(), tuple(line.get_ydata())) for line in thin(axes)}
        assert drawn == {
            (SERIES[series].colour, tuple(run.sort_values("step")["value"]))
            for (series, _), run in part.groupby(["series", "seed"])
        }
        assert all(line.get_xdata().tolist() == [*range(100, 2100, 100)] for line in thin(axes))
        for series, points in means(axes).items():
            for step, value in points:
                same = part[(part["series"] == series) & (part["step"] == step)]
                assert value == pytest.approx(statistics.fmean(same["value"]))
            assert len(points) == 20
        (level,) = levels(axes)
        last = part[(part["series"] == "scratch") & (part["step"] == 2000)]
        assert level == pytest.approx(statistics.fmean(last["value"]))
    assert set(means(axes)) == {"scratch", "general"}


def test_the_mean_is_over_steps_that_all_seeds_have():
    frame = curves(
        {
            ("p", "scratch", 0): {10: 1.0, 20: 2.0, 30: 3.0, 40: 9.0},
            ("p", "scratch", 1): {10: 3.0, 25: 7.0, 30: 5.0},
            # This series ends earlier: the seeds of one say nothing of the other.
            ("p", "general", 0): {10: 4.0, 20: 6.0},
            ("p", "own", 0): {10: 1.0},
            ("p", "own", 1): {20: 1.0},
        }
    )
    (axes,) = training_figure(frame).axes
    assert means(axes) == {
        "scratch": [(10, 2.0), (30, 4.0)],
        "general": [(10, 4.0), (20, 6.0)],
        "own": [],
    }
    assert levels(axes) == [4.0]
    assert sorted(len(line.get_xdata()) for line in thin(axes)) == [1, 1, 2, 3, 4]


def test_non_finite_values_are_gaps_in_seed_and_mean():
    frame = curves(
        {
            ("p", "scratch", 0): {1: 1.0, 2: math.nan, 3: 3.0, 4: math.inf, 5: 5.0},
            ("p", "scratch", 1): dict.fromkeys(range(1, 6), 1.0),
        }
    )
    (axes,) = training_figure(frame).axes
    expected = [1.0, math.nan, 2.0, math.nan, 3.0]
    assert [value for _, value in means(axes)["scratch"]] == pytest.approx(expected, nan_ok=True)
    broken, whole = thin(axes)
    np.testing.assert_array_equal(broken.get_ydata(), [1, math.nan, 3, math.nan, 5])
    # Values alone between gaps have no line through them: a marker shows each.
    assert broken.get_markevery() == [0, 2, 4] and whole.get_markevery() == []
    mean = next(line for line in axes.lines if line.get_linewidth() > 1)
    assert {0, 2, 4} <= set(mean.get_markevery())


def test_no_level_where_the_final_mean_is_a_gap_or_not_asked_for():
    runs = {("p", "scratch", 0): {1: 1.0, 2: math.nan}, ("q", "general", 0): {1: 1.0, 2: 2.0}}
    figure = training_figure(curves(runs))
    assert [levels(axes) for axes in figure.axes] == [[], []]
    assert legend(figure) == ["from scratch", "finetuned from general"]
    figure = training_figure(curves(runs), reference="general")
    assert [levels(axes) for axes in figure.axes] == [[], [2.0]]
    assert legend(figure)[-1] == "final mean, finetuned from general"
    assert not levels(training_figure(random_curves(["p"]), reference="").axes[0])


def test_legend_names_the_series_once_and_the_level():
    frame = random_curves(["p", "q", "r", "s"], reversed(SERIES))
    figure = training_figure(frame)
    assert len(figure.legends) == 1
    assert legend(figure) == [
        "from scratch",
        "finetuned from general",
        "finetuned from own model",
        "no outlier loss",
        "binary outlier loss",
        "margin loss",
        "final mean, from scratch",
    ]
    for handle, series in zip(figure.legends[0].legend_handles, SERIES.values(), strict=False):
        assert handle.get_color() == series.colour and handle.get_marker() == series.marker


def test_series_can_be_told_apart_by_each_of_three_means():
    for attribute in ("colour", "line", "marker"):
        assert len({getattr(series, attribute) for series in SERIES.values()}) == len(SERIES) == 6


def test_panels_wrap_at_three_and_share_the_updates():
    names = ["e", "d", "c", "b", "a"]
    figure = training_figure(random_curves(names))
    figure.draw_without_rendering()
    assert list(panels(figure)) == names
    tops = [round(axes.bbox.y1) for axes in figure.axes]
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[4]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    # The lowest panel of each column has the numbers and the label.
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", *["updates"] * 3]
    assert [axes.get_ylabel() for axes in figure.axes] == ["BPD", "", "", "BPD", ""]
    numbered = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes]
    assert numbered == [False, False, True, True, True]


def test_many_updates_are_counted_in_thousands():
    for last, expected in ((150_000, {"0", "50k", "100k", "150k"}), (600, {"0", "200", "600"})):
        figure = training_figure(random_curves(["p"], steps=[0, last // 2, last]))
        figure.draw_without_rendering()
        assert expected <= {label.get_text() for label in figure.axes[0].get_xticklabels()}


def test_a_diverged_update_does_not_squeeze_the_panel():
    frame = random_curves(["p"])
    (axes,) = training_figure(frame).axes
    low, high = axes.get_ylim()
    assert low < frame["value"].min() and frame["value"].max() < high < 4
    frame.loc[7, "value"] = 1e6
    (axes,) = training_figure(frame).axes
    assert axes.get_ylim()[0] < frame["value"].min() and 3 < axes.get_ylim()[1] < 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns=["panel", "value"]), "lacks the columns panel, value"),
        (lambda frame: frame[:0], "no rows"),
        (lambda frame: frame.assign(series="glow"), "unknown series 'glow'; known: scratch"),
        (lambda frame: frame.assign(seed=0), "share their place, such as panel p, series scratch"),
        (lambda frame: frame.assign(value=math.nan), "no value of the frame is finite"),
    ],
)
def test_curves_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        training_figure(change(random_curves(["p"])))


def test_the_reference_is_checked():
    with pytest.raises(ValueError, match="unknown reference 'glow'"):
        training_figure(random_curves(["p"]), reference="glow")


# ---- overview ----

MARKERS = {"raw": "o", "last_scale": "s", "diff": "^", "diff_outlier": "D"}
SETTING_COLOURS = {"unsupervised": COLOURS[0], "supervised": COLOURS[1]}


def points_of(axes) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(score, setting) → place, mean, standard error (NaN without a bar) of a panel's markers."""
    scores = {marker: score for score, marker in MARKERS.items()}
    settings = {colour: setting for setting, colour in SETTING_COLOURS.items()}
    found = {}
    for container in axes.containers:
        marker, _, bars = container
        error = math.nan
        if bars:
            ((bottom, top),) = bars[0].get_segments()
            error = (top[1] - bottom[1]) / 2
            assert (top[1] + bottom[1]) / 2 == pytest.approx(marker.get_ydata()[0])
        key = scores[marker.get_marker()], settings[marker.get_color()]
        found[key] = float(marker.get_xdata()[0]), float(marker.get_ydata()[0]), error
    return found


def test_overview_shows_mean_and_standard_error_of_each_pair():
    frame = detections()
    figure = overview_figure(frame)
    grid = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["digits", "letters", "shapes"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == [
        "shapes\nAUROC in %",
        "letters\nAUROC in %",
    ]
    for (i, dataset), (j, ood) in itertools.product(
        enumerate(["shapes", "letters"]), enumerate(["digits", "letters", "shapes"])
    ):
        axes, found = grid[i, j], points_of(grid[i, j])
        if dataset == ood:
            assert not found and axes.patch.get_hatch() and not axes.lines
            continue
        assert axes.patch.get_hatch() is None
        assert set(found) == set(itertools.product(MARKERS, SETTING_COLOURS))
        for (score, setting), (_, mean, error) in found.items():
            values = [
                100 * row.auroc
                for row in frame.itertuples()
                if (row.dataset, row.ood, row.score, row.setting) == (dataset, ood, score, setting)
            ]
            assert len(values) == 3
            assert mean == pytest.approx(statistics.fmean(values))
            assert error == pytest.approx(statistics.stdev(values) / math.sqrt(3))
        assert levels(axes) == [50]
        assert axes.get_ylim() == grid[0, 0].get_ylim()


def test_overview_has_room_for_every_marker_bar_and_the_chance_level():
    frame = detections().assign(auroc=lambda frame: 0.9 + frame["auroc"] / 10)
    figure = overview_figure(frame)
    low, high = figure.axes[0].get_ylim()
    found = {key: value for axes in figure.axes for key, value in points_of(axes).items()}
    assert low < 50 and all(
        low < mean - error < mean + error < high for _, mean, error in found.values()
    )
    places = [found[score, setting][0] for score in MARKERS for setting in SETTING_COLOURS]
    # Score by score in the tables' order, the settings beside each other.
    assert np.diff(places).min() > 0.2
    left, right = figure.axes[0].get_xlim()
    assert left < places[0] and places[-1] < right


def test_overview_of_one_seed_has_no_bars():
    figure = overview_figure(detections(seeds=1))
    errors = [error for axes in figure.axes for _, _, error in points_of(axes).values()]
    assert len(errors) == 32 and all(math.isnan(error) for error in errors)


def test_overview_names_what_it_shows():
    frame = detections()
    assert legend(overview_figure(frame)) == [
        "Raw",
        "4×4",
        "Diff",
        "Diff†",
        "unsupervised",
        "supervised",
    ]
    part = frame[frame["score"].isin(["diff", "raw"]) & (frame["setting"] == "supervised")]
    figure = overview_figure(part)
    assert legend(figure) == ["Raw", "Diff", "supervised"]
    handles = figure.legends[0].legend_handles
    assert [handle.get_marker() for handle in handles[:2]] == ["o", "^"]
    assert to_hex(handles[2].get_edgecolor()).upper() == COLOURS[1]
    # Alone, a setting's markers stand in the middle of their score's place.
    assert sorted(place for place, *_ in points_of(figure.axes[0]).values()) == [0, 1]


def test_settings_differ_without_colour():
    markers = [container[0] for container in overview_figure(detections()).axes[0].containers]
    faces = {(marker.get_color(), str(marker.get_markerfacecolor())) for marker in markers}
    assert faces == {(COLOURS[0], COLOURS[0]), (COLOURS[1], "white")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="ood"), "lacks the columns ood"),
        (lambda frame: frame[:0], "no rows"),
        (lambda frame: frame.assign(setting="semi"), "unknown setting 'semi'"),
        (lambda frame: frame.assign(auroc=98.5), "outside 0 … 1"),
        (lambda frame: frame.assign(auroc=math.nan), "outside 0 … 1"),
        (lambda frame: frame.assign(score="scale1", seed=range(len(frame))), "none of the scores"),
        (lambda frame: frame.assign(seed=0), "share their place, such as dataset shapes"),
    ],
)
def test_detections_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        overview_figure(change(detections()))


# ---- scatter ----


def brute_spearman(x, y) -> float:
    """Pearson's correlation of the ranks, where equal values share their mean rank."""

    def ranks(values):
        below = (values[None] < values[:, None]).sum(1)
        return below + (values[None] == values[:, None]).sum(1) / 2

    return float(np.corrcoef(ranks(np.asarray(x)), ranks(np.asarray(y)))[0, 1])


def clouds(axes) -> list[PathCollection]:
    return [artist for artist in axes.collections if isinstance(artist, PathCollection)]


def test_scatter_is_in_negative_bits_per_dimension():
    points = {"shapes": likelihoods(200), "digits": likelihoods(150, -1.5, 1)}
    figure = scatter(points)
    (axes,) = figure.axes
    for cloud, (general, own) in zip(clouds(axes), points.values(), strict=True):
        np.testing.assert_allclose(cloud.get_offsets(), np.stack([general, own], 1) / UNIT)
        assert cloud.get_rasterized()
    assert axes.get_xlabel() == "general, −BPD (more likely →)"
    assert axes.get_ylabel() == "own, −BPD (more likely →)"
    for i, handle in enumerate(figure.legends[0].legend_handles):
        assert to_hex(clouds(axes)[i].get_facecolor()).upper() == handle.get_color() == COLOURS[i]
    assert len({handle.get_marker() for handle in figure.legends[0].legend_handles}) == 2


def test_scatter_writes_the_rank_correlations():
    points = {"shapes": likelihoods(200), "digits": likelihoods(150, -1.5, 1)}
    # Replaced likelihoods have equal ranks, and count.
    points["digits"][1][:30] = CLIP
    figure = scatter(points)
    texts = legend(figure)
    for text, (name, sides) in zip(texts, points.items(), strict=True):
        assert text.startswith(f"{name}: ρ = {brute_spearman(*sides):.2f}".replace("-", "−"))
    everything = [np.concatenate(side) for side in zip(*points.values(), strict=True)]
    title = figure.axes[0].get_title("left")
    assert title == f"Title\nall images: Spearman's ρ = {brute_spearman(*everything):.2f}"
    separate = [brute_spearman(*sides) for sides in points.values()]
    assert round(brute_spearman(*everything), 2) not in np.round(separate, 2)


def test_correlation_signs_and_constants():
    rising = np.linspace(-9000, -7000, 16)
    rng = np.random.default_rng(0)
    shuffles = (rng.permutation(rising) for _ in range(10_000))
    unrelated = next(other for other in shuffles if -0.005 < brute_spearman(rising, other) < 0)
    figure = scatter(
        {
            "falling": (rising, rising[::-1]),
            "constant": (rising, np.full(16, -8000.0)),
            "single": (rising[:1], rising[:1]),
            "unrelated": (rising, unrelated),
        }
    )
    assert [re.search("ρ.*?(?=,|$)", text)[0] for text in legend(figure)] == [
        "ρ = −1.00",
        "ρ undefined",
        "ρ undefined",
        "ρ = 0.00",
    ]


def test_replaced_likelihoods_lie_outside_and_are_counted():
    shapes, scenes = likelihoods(1000), likelihoods(1000, -4, 1)
    scenes[1][:123] = CLIP
    # Got back from a difference, it is off by a rounding error.
    shapes[0][:40] = np.nextafter(CLIP, 0)
    figure = scatter({"shapes": shapes, "scenes": scenes})
    (axes,) = figure.axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert -6 < left < -4.5 and -3 < right < -1.5 and -6 < bottom < -4.5 and -3 < top < -1.5
    for text, (x, y) in zip(legend(figure), (shapes, scenes), strict=True):
        x, y = x / UNIT, y / UNIT
        inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
        assert text.endswith(f", {100 * (1 - inside.mean()):.1f} % not shown")
        assert 0.04 <= 1 - inside.mean() < 0.14
    everything_replaced = np.full(5, CLIP)
    assert scatter({"a": (everything_replaced, everything_replaced)}).axes


def test_at_most_2000_points_are_drawn_evenly():
    general = np.linspace(-9000, -7000, 7001)
    many = scatter({"a": (general, general)})
    (cloud,) = clouds(many.axes[0])
    drawn = cloud.get_offsets()[:, 0] * UNIT
    assert len(drawn) == 2000
    assert (drawn[0], drawn[-1]) == pytest.approx((general[0], general[-1]))
    gaps = np.diff(drawn) / (general[1] - general[0])
    assert set(gaps.round(6)) == {3, 4}
    (cloud,) = clouds(scatter({"a": (general[:2000], general[:2000])}).axes[0])
    assert len(cloud.get_offsets()) == 2000


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "no points"),
        ({"a": (np.zeros(3), np.zeros(4))}, r"a: .*shapes \(3,\) and \(4,\)"),
        ({"a": (np.zeros(0), np.zeros(0))}, r"a: .*shapes \(0,\) and \(0,\)"),
        ({"a": (np.zeros((2, 2)), np.zeros((2, 2)))}, r"a: .*shapes \(2, 2\)"),
        ({"a": (np.zeros(2), np.array([0, math.inf]))}, "a: a likelihood is not finite"),
    ],
)
def test_points_are_checked(points, message):
    with pytest.raises(ValueError, match=message):
        scatter(points)


def test_image_shape_is_checked():
    with pytest.raises(ValueError, match="shape of C, H and W"):
        scatter({"a": likelihoods()}, shape=(32, 32))


# ---- on paper ----


def long_figures():
    title = " ".join(LONG)
    pairs = [f"{a} vs {b}" for a, b in itertools.permutations(LONG, 2)]
    ylabel = "AUROC of the log-likelihood ratio, in-distribution against outlier images"
    yield "fourier", lambda: fourier_figure(images(8), images(8), images(8))
    yield "extremes", lambda: extremes_figure(dict.fromkeys(LONG, images(12)), title)
    for count in (1, 2, 5):
        frame = random_curves(pairs[:count], SERIES, steps=range(0, 150_001, 30_000))
        yield (
            f"{count} curves",
            lambda frame=frame: training_figure(frame, title=title, ylabel=ylabel),
        )
    yield "overview", lambda: overview_figure(detections(LONG[:2], LONG))
    short = ["sketch-digits", "sketch-letters", "sketch-scenes", "lsun", "tinyimagenet"]
    yield "wide overview", lambda: overview_figure(detections(["sketch-shapes"], short))
    for names in (LONG, [*LONG, *short, "a", "b", "c"]):
        points = {name: likelihoods(30, seed=i) for i, name in enumerate(names)}
        yield (
            f"{len(names)} clouds",
            lambda points=points: scatter_figure(
                points, SHAPE, xlabel=title, ylabel=title, title=title
            ),
        )


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in long_figures()])
@pytest.mark.filterwarnings("error")
def test_nothing_overlaps_or_leaves_the_page(make):
    figure = make()
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    page = figure.bbox
    texts = [text for text in figure.texts if text.get_text()]
    boxes = [artist.get_tightbbox(renderer) for artist in [*figure.axes, *texts, *figure.legends]]
    for box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    for one, other in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        # Less than a point of the page, at 100 dots an inch.
        assert width < 1 or height < 1
    # No panel is squeezed away by the text around it.
    assert min(axes.bbox.height for axes in figure.axes) > 0.4 * figure.dpi
    assert figure.get_figwidth() <= 7.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: fourier_figure(images(), images(), images()),
        lambda: training_figure(random_curves(["p", "q", "r", "s"])),
        lambda: overview_figure(detections()),
        lambda: scatter({"a": likelihoods(), "b": likelihoods(mean=-2)}),
    ],
)
def test_both_files_are_the_same_each_time(make, tmp_path):
    figure = make()
    first = save_both(figure, tmp_path / "new" / "figure-1.5")
    assert [path.name for path in first] == ["figure-1.5.png", "figure-1.5.pdf"]
    again, anew = save_both(figure, tmp_path / "again"), save_both(make(), tmp_path / "anew")
    for path, *others in zip(first, again, anew, strict=True):
        assert all(path.read_bytes() == other.read_bytes() for other in others)
    png, pdf = (path.read_bytes() for path in first)
    assert png.startswith(b"\x89PNG\r\n") and pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert b"CreationDate" not in pdf and b"Matplotlib" not in pdf and b"Software" not in png
    assert len(pdf) < 300_000


def test_pyplot_is_not_imported():
    for module in (curves_module, overview, pictures, style):
        source = inspect.getsource(module)
        assert not re.search(r"^\s*(from|import)\b.*pyplot", source, re.MULTILINE)
