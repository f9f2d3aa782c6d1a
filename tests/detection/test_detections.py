"""Many files: a row for each, decided as the detector decides, in constant memory."""

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from oodflow.data.account import Account
from oodflow.data.archives import find_images
from oodflow.detection import detections, stream
from oodflow.detection.conformal import benjamini_hochberg, folder_p_value
from oodflow.detection.detections import detect, empty_tally
from oodflow.detection.stream import judged_files
from oodflow.errors import ResourceError, UserError


@pytest.fixture(autouse=True)
def batches_of_256(monkeypatch):
    """So that a few hundred files are more than one batch."""
    monkeypatch.setattr(stream, "TOGETHER", 256)


def write(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:04}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shapes, digits):
    """200 shapes, then 60 digits, then a text file and a larger image."""
    path = tmp_path_factory.mktemp("photos")
    write(path, np.concatenate([shapes[250:450], digits[:60]]))
    (path / "9000.png").write_text("no image")
    Image.fromarray(shapes[460].transpose(1, 2, 0)).resize((50, 40)).save(path / "9001.png")
    (path / "notes.txt").write_text("not looked at")
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_row_a_file_with_the_numbers_of_the_detector(
    detector, folder, shapes, digits, tmp_path, ending, monkeypatch
):
    monkeypatch.setattr(detections, "ROWS_AT_ONCE", 100)
    out = tmp_path / "new" / f"rows{ending}"
    found = detect(detector, [folder], alpha=0.05, out=out)
    rows = pd.read_csv(out) if ending == ".csv" else pd.read_parquet(out)
    assert rows["file"].tolist() == [str(folder / f"{i:04}.png") for i in range(260)] + [
        str(folder / "9000.png"),
        str(folder / "9001.png"),
    ]
    pixels = np.concatenate([shapes[250:450], digits[:60]])
    np.testing.assert_allclose(rows["score"][:260], detector.scores(pixels), rtol=0, atol=1e-4)
    np.testing.assert_allclose(rows["p_value"][:260], detector.p_values(pixels), rtol=1e-9)
    anomalous = detector.decide(pixels, 0.05)
    assert rows["anomalous"][:260].astype(bool).tolist() == anomalous.tolist()
    assert np.isnan(rows["score"][260]) and pd.isna(rows["anomalous"][260])
    assert rows["error"][260] == "no image of a known format"
    assert rows["error"].drop(260).fillna("").eq("").all()
    assert rows["resized"].tolist() == [False] * 261 + [True]
    assert {"scale1", "scale3_p"} <= set(rows.columns)
    assert (found.tally.files, found.tally.images, found.tally.errors) == (262, 261, 1)
    assert found.tally.resized == 1
    assert found.anomalous == found.flagged == (rows["p_value"] <= 0.05).sum()
    assert found.folder_p == folder_p_value(found.anomalous, 261, 0.05, 250)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_false_discovery_rate_decides_over_all_files(detector, folder, shapes, tmp_path):
    out = tmp_path / "rows.parquet"
    lowest = shapes[250:][np.argsort(detector.scores(shapes[250:]))[:60]]
    write(tmp_path / "low", lowest)
    found = detect(detector, [tmp_path / "low", folder], fdr=0.3, out=out)
    rows = pd.read_parquet(out).dropna(subset="p_value")
    expected = benjamini_hochberg(rows["p_value"], 0.3)
    assert rows["anomalous"].tolist() == expected.tolist()
    assert found.anomalous == expected.sum() > 0


def test_the_most_anomalous_are_kept_in_order(detector, folder, tmp_path):
    out = tmp_path / "rows.parquet"
    found = detect(detector, [folder], out=out, keep=7)
    rows = pd.read_parquet(out).dropna(subset="score").sort_values("score", kind="stable")
    assert [each.row["file"] for each in found.most_anomalous] == rows["file"][:7].tolist()
    assert [each.row["anomalous"] for each in found.most_anomalous] == rows["anomalous"][
        :7
    ].tolist()
    assert found.most_anomalous[0].pixels.shape == (3, 32, 32)


def test_the_counts_are_those_of_all_rows(detector, folder):
    tally = empty_tally(250)
    frames = []
    for judged in judged_files(detector, find_images([folder], Account()), 0.1):
        tally = tally.plus(judged.rows)
        frames.append(judged.rows)
    rows = pd.concat(frames)
    assert sum(map(len, frames)) == 262
    assert len(frames) > 1 and max(map(len, frames)) <= stream.TOGETHER
    assert tally.anomalous(25) == rows["anomalous"].sum()
    assert tally.counts.sum() == rows["p_value"].notna().sum()


def test_more_anomalies_than_inliers_give_are_noticed(detector, shapes, tmp_path):
    order = np.argsort(detector.scores(shapes[250:]))
    write(tmp_path / "usual", shapes[250:])
    write(tmp_path / "drifted", shapes[250:][order[:80]])
    assert detect(detector, [tmp_path / "usual"], alpha=0.1).folder_p > 0.01
    assert detect(detector, [tmp_path / "drifted"], alpha=0.1).folder_p < 1e-4


def test_no_row_is_lost_whatever_the_number_of_files(detector, folder):
    files = list(find_images([folder], Account()))
    for count in (1, 31, 32, 33, 255, 256, 257, 262):
        done = []
        rows = [j.rows for j in judged_files(detector, files[:count], None, done.append)]
        assert sum(map(len, rows)) == count == done[-1]
        names = [name for frame in rows for name in frame["file"]]
        assert names == [str(file) for file in files[:count]]


def test_files_are_read_ahead_but_not_far(detector, folder):
    """What is read before the first batch is decided does not grow with the number of files."""
    files = list(find_images([folder], Account())) * 20
    asked = []

    def watched():
        for file in files:
            asked.append(file)
            yield file

    judged = judged_files(detector, watched())
    next(judged)
    assert len(asked) <= (2 * stream.MOST_SCORERS + 1) * stream.TOGETHER < len(files)
    judged.close()


def test_the_numbers_are_the_same_every_time(detector, folder):
    """How many files come together does not depend on which thread was quick."""
    files = list(find_images([folder], Account()))
    first, second = (
        pd.concat([each.rows for each in judged_files(detector, files)]) for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_torch_computes_with_as_many_threads_as_before(detector, folder, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        files = list(find_images([folder], Account()))
        for whole in (True, False):
            judged = judged_files(detector, files)
            assert len(next(judged).rows)
            assert torch.get_num_threads() == threads
            rest = list(judged) if whole else judged.close()
            assert rest or not whole
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


def test_no_file_is_read_once_the_rows_are_not_wanted(detector, folder, monkeypatch):
    files = list(find_images([folder], Account())) * 20
    read = []
    original = stream.from_file
    monkeypatch.setattr(stream, "from_file", lambda *a: read.append(a) or original(*a))
    judged = judged_files(detector, files)
    next(judged)
    judged.close()
    assert len(read) < 2 * stream.MOST_SCORERS * stream.TOGETHER
    before = len(read)
    time.sleep(0.2)
    assert len(read) == before


def test_memory_does_not_grow_with_the_files(detector, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(detections, "ROWS_AT_ONCE", 256)
    files = [file for file in find_images([folder], Account()) if file.name < "0128"]
    detect(detector, files, keep=5, out=tmp_path / "warm.csv")
    peaks = []
    for repeats in (8, 24):
        tracemalloc.start()
        detect(detector, files * repeats, keep=5, out=tmp_path / f"{repeats}.csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 2 048 files more; their pixels alone would be 6 MB.
    assert peaks[1] - peaks[0] < 500_000


def test_names_that_are_no_text_are_spelled_out(detector, shapes, tmp_path):
    [file] = write(tmp_path / "in", shapes[:1])
    strange = file.with_name(b"\xff\xfe<b>.png".decode("utf-8", "surrogateescape"))
    file.rename(strange)
    out = tmp_path / "rows.csv"
    detect(detector, [tmp_path / "in"], out=out)
    assert pd.read_csv(out)["file"].tolist() == [f"{tmp_path}/in/\\xff\\xfe<b>.png"]


def test_what_cannot_be_is_refused_before_any_image_is_read(detector, folder, tmp_path):
    def refused(match, paths=(folder,), **options):
        with pytest.raises(UserError, match=match) as caught:
            detect(detector, paths, on_progress=lambda done: pytest.fail("read"), **options)
        assert "\n" not in str(caught.value)

    refused("the smallest possible is 1/251", alpha=0.001)
    refused("alpha is 1.5", alpha=1.5)
    refused("false discovery rate is 0", fdr=0.0)
    refused(r"must end in \.csv or \.parquet", out=tmp_path / "rows.txt")
    refused("no file or folder at", paths=(folder, tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    refused("no image in", paths=(tmp_path / "empty",))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        detect(detector, [folder], out=tmp_path / "file" / "rows.csv")
