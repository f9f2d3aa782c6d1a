"""Tables as values: layout, means within a seed, and frames that are refused."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from reports.layouts import bpd_table, detection_table
from reports.tables import Cell, Row


def detection_frame(seeds=(0, 1, 2), datasets=None) -> pd.DataFrame:
    """A number for each place; all different, none round."""
    rng = np.random.default_rng(7)
    datasets = datasets or {"cifar10": ["svhn", "lsun"], "cifar100": ["svhn", "cifar10"]}
    trainings = [("unsupervised", "none"), ("supervised", "binary"), ("unsupervised", "binary")]
    return pd.DataFrame(
        [
            {
                "run_id": f"{dataset}-{loss}-{setting[0]}-{seed}",
                "seed": seed,
                "dataset": dataset,
                "setting": setting,
                "outlier_loss": loss,
                "ood": ood,
                "score": score,
                "auroc": rng.uniform(0.3, 0.999),
            }
            for (setting, loss), dataset, score in itertools.product(
                trainings, datasets, ["diff_outlier", "raw", "last_scale", "diff", "scale1"]
            )
            for ood in datasets[dataset]
            for seed in seeds
        ]
    )


def select(frame, **where):
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def test_layout():
    table = detection_table(detection_frame())
    assert table.row_header == ("In-dist", "Out-dist")
    assert [row.labels for row in table.rows] == [
        ("cifar10", "svhn"),
        ("cifar10", "lsun"),
        ("cifar10", "Mean"),
        ("cifar100", "svhn"),
        ("cifar100", "cifar10"),
        ("cifar100", "Mean"),
        ("All", "Mean"),
    ]
    assert table.columns == tuple(
        itertools.product(
            ["No outlier loss", "Binary outlier loss", "Binary outlier loss, supervised"],
            ["Raw", "4×4", "Diff", "Diff†"],
        )
    )


def test_columns_are_those_that_the_frame_has():
    frame = detection_frame(datasets={"cifar10": ["svhn"]})
    frame = frame[(frame["score"] == "raw") | (frame["outlier_loss"] == "binary")]
    frame = frame[frame["setting"] == "unsupervised"]
    table = detection_table(frame[frame["score"] != "diff_outlier"])
    assert table.columns == (
        ("No outlier loss", "Raw"),
        ("Binary outlier loss", "Raw"),
        ("Binary outlier loss", "4×4"),
        ("Binary outlier loss", "Diff"),
    )
    assert [row.labels for row in table.rows] == [("cifar10", "svhn"), ("cifar10", "Mean")]


def test_cells_hold_the_values_by_seed_and_their_runs():
    frame = detection_frame()
    cell = detection_table(frame.sample(frac=1, random_state=1)).rows[0].cells[0]
    assert cell is not None and cell.count == 3
    table = detection_table(frame)
    chosen = select(
        frame,
        dataset="cifar100",
        ood="svhn",
        outlier_loss="binary",
        setting="supervised",
        score="diff",
    )
    place = table.columns.index(("Binary outlier loss, supervised", "Diff"))
    cell = table.rows[3].cells[place]
    assert cell == Cell(tuple(chosen["auroc"]), tuple(chosen["run_id"]))
    assert cell.mean == pytest.approx(statistics.mean(chosen["auroc"]))
    assert cell.std == pytest.approx(statistics.stdev(chosen["auroc"]))


def test_mean_rows_average_within_a_seed_first():
    # The seeds' differences cancel: per-seed means are 0.7 each, but both rows have a large std.
    values = {("svhn", 0): 0.6, ("svhn", 1): 0.8, ("lsun", 0): 0.8, ("lsun", 1): 0.6}
    frame = pd.DataFrame(
        [
            dict(
                run_id=f"run{seed}",
                seed=seed,
                dataset="cifar10",
                setting="unsupervised",
                outlier_loss="none",
                ood=ood,
                score="diff",
                auroc=value,
            )
            for (ood, seed), value in values.items()
        ]
    )
    first, second, mean = (row.cells[0] for row in detection_table(frame).rows)
    assert first.std == pytest.approx(second.std) == pytest.approx(0.2 / math.sqrt(2))
    assert mean.values == pytest.approx((0.7, 0.7))
    assert mean.std == pytest.approx(0)
    assert mean.run_ids == ("run0", "run1")


def test_overall_mean_averages_the_datasets_means_within_a_seed():
    # Three outlier datasets on one side, one on the other: datasets weigh the same.
    frame = detection_frame(datasets={"cifar10": ["svhn", "lsun", "celeba"], "svhn": ["lsun"]})
    table = detection_table(frame)
    raw = select(frame, score="raw", outlier_loss="none")
    expected = [
        statistics.mean(
            statistics.mean(select(raw, dataset=dataset, seed=seed)["auroc"])
            for dataset in ("cifar10", "svhn")
        )
        for seed in (0, 1, 2)
    ]
    cell = table.rows[-1].cells[0]
    assert table.rows[-1].labels == ("All", "Mean")
    assert cell.values == pytest.approx(expected)
    assert set(cell.run_ids) == set(raw["run_id"])


def test_a_seed_without_all_outlier_datasets_is_left_out_of_the_mean():
    frame = select(detection_frame(datasets={"cifar10": ["svhn", "lsun"]}), score="raw")
    place = {"outlier_loss": "none"}
    gap = select(frame, ood="lsun", seed=2, **place).index
    table = detection_table(frame.drop(gap))
    svhn, lsun, mean = (row.cells[0] for row in table.rows)
    assert (svhn.count, lsun.count, mean.count) == (3, 2, 2)
    nothing = detection_table(frame.drop(select(frame, ood="lsun", **place).index))
    assert [row.cells[0] is None for row in nothing.rows] == [False, True, True]


def test_best_is_the_highest_auroc_and_the_lowest_bpd():
    frame = detection_frame()
    place = ["dataset", "ood", "outlier_loss", "setting", "score"]
    means = frame.groupby(place)["auroc"].transform("mean")
    # Seeds are closer to each other than most scores are.
    table = detection_table(frame.assign(auroc=means + 0.2 * (frame["auroc"] - means)))
    seen = set()
    for row in table.rows:
        values = [cell.values for cell in row.cells]
        top = max(values, key=statistics.mean)
        p_values = [ttest_ind(each, top, equal_var=False).pvalue for each in values]
        expected = {place for place, p_value in enumerate(p_values) if p_value > 0.05}
        assert table.best(row) == expected
        seen.add(len(expected))
    assert 1 in seen and 1 < max(seen) < 12
    alone = [Cell((value,), ("r",)) for value in (0.5, 0.6)]
    assert table.best(Row(("a", "b"), (*alone, Cell((0.4, 0.7), ("r", "s"))))) == {1}
    one = Cell((0.5,), ("r",))
    assert table.best(Row(("a", "b"), (one, None))) == frozenset()
    assert table.best(Row(("a", "b"), (one, one, None))) == {0, 1}
    bpd = bpd_table(bpd_frame())
    assert [bpd.best(row) for row in bpd.rows] == [{2}, {1}]


def bpd_frame() -> pd.DataFrame:
    rows = [
        ("g", 0, "svhn", "general", 2.34),
        ("s0", 0, "svhn", "scratch", 2.071),
        ("s1", 1, "svhn", "scratch", 2.083),
        ("f0", 0, "svhn", "finetuned", 2.058),
        ("s2", 0, "cifar10", "scratch", 3.40),
        ("f2", 0, "cifar10", "finetuned", 3.405),
    ]
    return pd.DataFrame(rows, columns=["run_id", "seed", "dataset", "kind", "bpd"])


def test_bpd_table_has_the_layout_of_table_s1():
    table = bpd_table(bpd_frame())
    assert [name for _, name in table.columns] == ["General", "From scratch", "Finetuned"]
    assert [row.labels for row in table.rows] == [("svhn",), ("cifar10",)]
    assert table.rows[0].cells[1] == Cell((2.071, 2.083), ("s0", "s1"))
    assert table.rows[1].cells[0] is None
    scratch_only = bpd_table(select(bpd_frame(), kind="scratch"))
    assert scratch_only.columns == (("Bits per dimension", "From scratch"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: pd.concat([frame, frame[:1].assign(run_id="other")]), "2 rows share"),
        (lambda frame: frame.drop(columns=["run_id"]), "lacks the columns run_id"),
        (lambda frame: frame.assign(setting="semi"), "unknown setting 'semi'"),
        (lambda frame: frame.assign(outlier_loss="hinge"), "unknown outlier_loss 'hinge'"),
    ],
)
def test_detection_frames_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        detection_table(change(detection_frame()))


def test_bpd_frames_that_are_refused():
    with pytest.raises(ValueError, match="such as dataset svhn, kind general, seed 0; pass"):
        bpd_table(pd.concat([bpd_frame(), bpd_frame()[:1]]))
    with pytest.raises(ValueError, match="unknown kind 'big'"):
        bpd_table(bpd_frame().assign(kind="big"))


def test_a_frame_without_rows_is_a_table_without_rows():
    for make, frame in ((detection_table, detection_frame()), (bpd_table, bpd_frame())):
        table = make(frame[:0])
        assert (table.rows, table.columns) == ((), ())
