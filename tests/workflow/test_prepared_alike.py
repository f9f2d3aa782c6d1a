"""Images are prepared for scoring as they were for the training, and tables name their files."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oodflow.tracking import runs


@pytest.fixture
def photos(blank):
    """45 pictures of many sizes, and some of exactly 32×32; no two sizes alike in every way."""
    rng = np.random.default_rng(5)
    for i in range(45):
        size = (32, 32) if i % 9 == 0 else (33 + 2 * i, 90 - i)
        pixels = rng.integers(256, size=(size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        file = blank.folder / "photos" / f"{'ab'[i % 2]}{i // 2:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize(size).save(file)
    return blank.folder / "photos"


def evaluated_table(workspace, fold="test"):
    store = workspace.store()
    [run] = runs.find(store, {"kind": "train", "model": "glow"})
    paths = runs.list_artifacts(store, run.run_id, "scores")
    [path] = [each for each in paths if fold in each and each.endswith("-test.parquet")]
    with runs.artifact(store, run.run_id, path) as file:
        return run.run_id, pd.read_parquet(file)


@pytest.mark.parametrize(
    ("options", "words"),
    [("?resize=32&crop=32", ["--resize"]), ("?crop=32", []), ("", [])],
)
def test_score_agrees_with_the_evaluated_table_on_every_image(blank, photos, tiny, options, words):
    folder = f"folder:{photos}{options}{'&' if options else '?'}role=general"
    trained = blank.oodflow("train", "--dataset", folder, *tiny)
    assert trained.code == 0, trained.err
    run_id, table = evaluated_table(blank)
    out = blank.folder / "s.csv"
    scored = blank.oodflow("score", run_id, str(photos), "--out", str(out), *words)
    assert scored.code == 0, scored.err
    found = pd.read_csv(out)
    assert len(found) == 45
    found.index = [file.rpartition("/")[2] for file in found.file]
    assert len(table) > 3 and set(table.file) < set(found.index)
    np.testing.assert_allclose(found.loc[table.file, "log_prob"], table.log_prob, rtol=1e-6)


def test_an_evaluation_on_other_images_than_those_of_the_training_says_so(blank, photos, tiny):
    folder = f"folder:{photos}?crop=16"
    trained = blank.oodflow("train", "--dataset", folder, *tiny)
    assert trained.code == 0, trained.err
    run_id, table = evaluated_table(blank, "photos-")
    words = ("evaluate", "--run", run_id[:8], "--general", "none", "--ood", "sketch-digits")
    same = blank.oodflow(*words, "--limit", "8")
    assert same.code == 0 and "trained on other images" not in same.out
    for i in range(20):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(photos / f"new{i}.png")
    (photos / "IMG_1.HEIC").write_bytes(b"?")
    grown = blank.oodflow(*words)
    assert grown.code == 0, grown.err
    assert "was trained on other images than" in grown.out
    assert "1 left out: 1 .heic (install pillow-heif to read them)" in grown.out
    # Images of the old test fold are test images still, and no training image is among the new.
    _, new = evaluated_table(blank, "photos-")
    added = set(new.file) - set(table.file)
    assert set(table.file) < set(new.file) and all(name.startswith("new") for name in added)
