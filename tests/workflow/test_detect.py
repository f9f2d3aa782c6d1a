"""``oodflow detect`` over real files: rows, decisions, the test of the whole, pages, bad input."""

import os
import re
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oodflow.data.sketch import generate
from oodflow.detection.conformal import benjamini_hochberg, folder_p_value
from oodflow.workflow.detectors import load_detector

CHAMPION = "models:/oodflow-detector-sketch-shapes@champion"

ODD = (
    "with space.png",
    'quote\'s "double".png',
    "100%.png",
    "what?.png",
    "[red]markup[blue].png",
    "[closing].png",
    "-dash.png",
    "#1;semicolon,comma.png",
    "line\nbreak\x1b[31m.png",
    "Größe 写真.PNG",
    "<script>alert(1)<-script>.png",
)


@pytest.fixture(scope="module")
def digits():
    return generate("sketch-digits", "test", 200)["pixels"]


@pytest.fixture(scope="module")
def anomalies(with_detector):
    """Forty images that this little model finds the most unusual, the most of all first."""
    scenes = generate("sketch-scenes", "test", 1000)["pixels"]
    detector = load_detector(with_detector.store(), CHAMPION)
    order = np.argsort(detector.scores(scenes))[:40]
    assert detector.p_values(scenes[order[-1:]])[0] <= 0.05
    return scenes[order]


@pytest.fixture
def photos(detecting, shapes, draw):
    """A folder of 60 shapes that were not calibrated with, below the workspace's."""
    from oodflow.detection.calibration import halves

    for i in halves(1000)[1][:60]:
        draw(detecting.folder / "photos" / f"{i:03}.png", shapes[i])
    return detecting.folder / "photos"


def detect(workspace, *words):
    outcome = workspace.oodflow("detect", CHAMPION, *words)
    assert outcome.code == 0, outcome.err
    return outcome


def rows(workspace, *words, ending="csv"):
    """The rows of a detection, as they were written."""
    detect(workspace, *words, "--out", f"out/rows.{ending}")
    file = workspace.folder / "out" / f"rows.{ending}"
    return pd.read_csv(file, keep_default_na=False, na_values={"score": [""], "p_value": [""]}) if (
        ending == "csv"
    ) else pd.read_parquet(file)  # fmt: skip


def refused(workspace, *words, code=2):
    outcome = workspace.oodflow(*words)
    assert outcome.code == code, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("error: "), outcome.err
    return outcome.err


def test_a_row_a_file_in_csv_and_parquet(detecting, photos):
    table = rows(detecting, "photos", "--alpha", "0.2", ending="parquet")
    assert table["file"].tolist() == [f"photos/{each.name}" for each in sorted(photos.iterdir())]
    assert table["anomalous"].tolist() == (table["p_value"] <= 0.2).tolist()
    assert {"scale1", "scale2", "scale3", "scale3_p", "resized", "error"} < set(table)
    text = rows(detecting, "photos", "--alpha", "0.2")
    assert list(text) == list(table)
    np.testing.assert_allclose(text["score"], table["score"], rtol=1e-12)
    assert text["anomalous"].tolist() == table["anomalous"].tolist()


def test_odd_names_nested_folders_and_other_files(detecting, photos, shapes, draw):
    """Nothing that is an image is lost, nothing else is taken, and every name can be read."""
    for i, name in enumerate(ODD):
        draw(photos / "a" / "b c" / name, shapes[i], format="PNG")
    draw(photos / ".hidden" / ".too.png", shapes[0])
    (photos / "notes.txt").write_text("no image")
    (photos / "Thumbs.db").write_bytes(b"\0" * 10)
    (photos / "empty").mkdir()
    bad = os.fsencode(photos) + b"/not-\xff-utf8.png"
    with open(bad, "wb") as file:
        file.write((photos / "a" / "b c" / "100%.png").read_bytes())
    images = 60 + len(ODD) + 1
    for ending in ("parquet", "csv"):
        table = rows(detecting, "photos", "--alpha", "0.9", "--html", "page.html", ending=ending)
        assert len(table) == images and not table["error"].any()
        assert table["file"].is_unique
        assert {f"photos/a/b c/{name}" for name in ODD} < set(table["file"])
        assert "photos/not-\\xff-utf8.png" in set(table["file"])
    left_out = detect(detecting, "photos", "--alpha", "0.9").out
    assert "3 left out: 1 hidden, 1 .db, 1 .txt" in left_out
    # One after the other: how many are among the most anomalous depends on their scores.
    said = "".join(detect(detecting, f"photos/a/b c/{name}", "--alpha", "0.99").out for name in ODD)
    assert "\x1b" not in said
    for part in ("[closing].png", "[red]markup[blue].png", "100%.png", "\\x1b[31m.png"):
        assert part in said
    assert "more than inliers alone would give" in said
    assert ": more than" not in said
    # As one word each on the command line.
    table = rows(detecting, *(f"photos/a/b c/{name}" for name in ODD), ending="parquet")
    assert table["file"].tolist() == [f"photos/a/b c/{name}" for name in ODD]


def test_the_rate_over_many_is_controlled(detecting, photos, anomalies, draw):
    for i, pixels in enumerate(anomalies[:20]):
        draw(photos / f"strange{i}.png", pixels)
    table = rows(detecting, "photos", "--fdr", "0.1")
    expected = benjamini_hochberg(table["p_value"], 0.1)
    assert (table["anomalous"].astype(str) == expected.astype(str)).all()
    assert 10 < expected.sum() < 40
    outcome = detect(detecting, "photos", "--fdr", "0.1")
    assert f"{expected.sum()} of 80 images are anomalous at a false discovery rate 0.1" in (
        outcome.out
    )


def test_a_folder_of_inliers_and_one_of_others_are_told_apart(detecting, photos, draw, anomalies):
    table = rows(detecting, "photos")
    flagged = (table["p_value"] <= 0.05).sum()
    p_value = folder_p_value(flagged, 60, 0.05, 500)
    assert p_value > 0.05
    said = detect(detecting, "photos").out
    assert f"{flagged} of 60 images are anomalous at a false-positive rate 0.05" in said
    assert "no more than inliers alone would give" in said and f"p = {p_value:.3g}" in said
    for i, pixels in enumerate(anomalies):
        draw(photos / "strange" / f"{i}.png", pixels)
    table = rows(detecting, "photos")
    flagged = (table["p_value"] <= 0.05).sum()
    assert flagged >= 40
    said = detect(detecting, "photos").out
    assert ": more than inliers alone would give" in said
    assert f"p = {folder_p_value(flagged, 100, 0.05, 500):.3g}" in said
    assert "Most anomalous" in said and "photos/strange/0.png" in said


def test_the_page_is_one_file_with_escaped_names(detecting, photos, draw, digits, anomalies):
    draw(photos / "<img src=x onerror=alert(1)>.png", 255 - digits[0])
    draw(photos / "<script>&.png", anomalies[0])
    outcome = detect(detecting, "photos", "--html", "deep/page.html")
    assert "written: deep/page.html" in outcome.out
    page = (detecting.folder / "deep" / "page.html").read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert "photos/&lt;script&gt;&amp;.png" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    files = re.findall(r"<p>(photos/[^<]*)</p>", page)
    assert files[0] == "photos/&lt;script&gt;&amp;.png" and len(files) == 62
    assert "scale3" in page


def test_pipelines_can_fail_on_an_anomaly(detecting, photos, draw, anomalies):
    words = ("detect", CHAMPION, "photos", "--fail-on-anomaly", "--alpha", "0.002")
    assert detecting.oodflow(*words).code == 0
    draw(photos / "strange.png", anomalies[0])
    outcome = detecting.oodflow(*words, "--out", "rows.csv")
    assert outcome.code == 1 and "photos/strange.png" in outcome.out
    assert (detecting.folder / "rows.csv").exists()
    assert detecting.oodflow(*words[:3], "--alpha", "0.002").code == 0


def png_head(width, height):
    """A PNG of this size in a few bytes: its pixels are all black, and compressed well."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    packer = zlib.compressobj(9)
    line = bytes(1 + width // 8)
    packed = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def test_files_that_are_no_images_are_rows_with_an_error(detecting, photos, shapes, draw):
    (photos / "text.png").write_text("this is a text\n")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.png").write_bytes(next(photos.glob("*.png")).read_bytes()[:150])
    (photos / "huge.png").write_bytes(png_head(20_000, 15_000))
    (photos / "loop.png").symlink_to("loop.png")
    assert (photos / "huge.png").stat().st_size < 100_000
    table = rows(detecting, "photos", ending="parquet").set_index("file")
    assert len(table) == 64
    broken = table[table["error"] != ""]
    assert {name.removeprefix("photos/") for name in broken.index} == {
        "text.png", "empty.jpg", "cut.png", "huge.png",
    }  # fmt: skip
    assert broken["score"].isna().all() and broken["anomalous"].isna().all()
    assert not broken["error"].str.contains("\n").any()
    assert "300000000 pixels" in broken["error"]["photos/huge.png"]
    assert "no image" in broken["error"]["photos/text.png"]
    outcome = detect(detecting, "photos", "--out", "rows.csv")
    assert outcome.err == "error: 4 of 64 files could not be read; see column error\n"
    assert "1 left out: 1 links to folders or to nothing" in outcome.out
    assert "--out" in detect(detecting, "photos").err
    assert "of 60 images are anomalous" in outcome.out


def test_it_is_the_users_error_where_no_file_can_be_read(detecting, photos):
    (photos / "text.png").write_text("this is a text\n")
    words = ("photos/text.png", "--out", "rows.csv")
    outcome = detecting.oodflow("detect", CHAMPION, *words)
    assert outcome.code == 2
    assert outcome.err == "error: 1 of 1 files could not be read; see column error\n"
    assert len(pd.read_csv(detecting.folder / "rows.csv")) == 1


def test_other_sizes_and_modes_are_judged_and_said_to_be_resized(detecting, photos, shapes, draw):
    draw(photos / "large.webp", shapes[0], (300, 200), lossless=True)
    draw(photos / "small.bmp", shapes[1], (20, 20))
    Image.fromarray(shapes[2][0]).save(photos / "grey.png")
    Image.fromarray(shapes[3].transpose(1, 2, 0)).convert("RGBA").save(photos / "alpha.png")
    table = rows(detecting, "photos", ending="parquet").set_index("file")
    assert len(table) == 64 and not table["error"].any()
    assert set(table.index[table["resized"]]) == {"photos/large.webp", "photos/small.bmp"}
    said = detect(detecting, "photos").out
    assert "2 images were resized to 32×32" in said


def test_a_folder_is_judged_by_a_folder_without_any_store(detecting, photos, tmp_path):
    store = detecting.store()
    place = store.client.get_model_version_download_uri("oodflow-detector-sketch-shapes", "1")
    bare = type(detecting)(tmp_path / "bare", detecting.data)
    bare.folder.mkdir()
    for folder in (place, f"{place}/artifacts/detector"):
        outcome = bare.oodflow("detect", folder, str(photos))
        assert outcome.code == 0, outcome.err
        assert "of 60 images" in outcome.out
    assert list(bare.folder.iterdir()) == []


@pytest.mark.parametrize(
    "reference, said",
    [
        ("nosuch", "no run 'nosuch'"),
        ("./no/such", "no folder at ./no/such"),
        ("models:/nothing/1", "no model version 'models:/nothing/1'"),
        ("models:/nothing", "no model version"),
        ("models:/oodflow-detector-sketch-shapes/7", "no model version"),
        ("models:/oodflow-detector-sketch-shapes/one", "no model version"),
        ("models:/oodflow-detector-sketch-shapes@nobody", "no model version"),
        ("models:/oodflow-glow-sketch-shapes/1", "holds no detector"),
        (".", "no detector at ."),
    ],
)
def test_unknown_detectors_are_one_line(with_detector, reference, said):
    assert said in refused(with_detector, "detect", reference, ".")


def test_a_run_that_holds_none_is_one_line(with_detector):
    from oodflow.tracking import runs

    for tags in ({"kind": "finetune"}, {"kind": "evaluate"}, {"kind": "report"}):
        for run in runs.find(with_detector.store(), tags)[:1]:
            said = refused(with_detector, "detect", run.run_id, ".")
            assert f"run {run.run_id}" in said and "holds no detector" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (("--alpha", "0"), "between 0 and 1"),
        (("--alpha", "1"), "between 0 and 1"),
        (("--alpha", "-0.1"), "between 0 and 1"),
        (("--alpha", "nan"), "between 0 and 1"),
        (("--alpha", "five"), "not a valid float"),
        (("--alpha", "0.0019"), "1/501 = 0.002"),
        (("--fdr", "1.5"), "false discovery rate"),
        (("--out", "rows.xlsx"), ".csv or .parquet"),
        (("nowhere",), "no file or folder at nowhere"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_image(detecting, photos, words, said):
    assert said in refused(detecting, "detect", CHAMPION, "photos", *words)
    assert not (detecting.folder / "rows.xlsx").exists()


def test_nothing_to_judge_is_one_line(detecting):
    (detecting.folder / "nothing").mkdir()
    assert "no image in nothing" in refused(detecting, "detect", CHAMPION, "nothing")


def test_files_that_cannot_be_written_are_one_line(detecting, photos):
    (detecting.folder / "file").write_text("in the way")
    for option, name in (("--out", "file/rows.csv"), ("--html", "file/page.html")):
        said = refused(detecting, "detect", CHAMPION, "photos", option, name, code=1)
        assert f"cannot write {name}" in said
