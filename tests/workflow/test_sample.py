"""``oodflow sample``: one picture of what a model draws, the same for the same seed."""

import numpy as np
import pytest
from PIL import Image

from oodflow.tracking import runs


def drawn(workspace, run: str, name: str, *words: str) -> np.ndarray:
    outcome = workspace.oodflow("sample", run, "--count", "5", "--out", name, *words)
    assert outcome.code == 0, outcome.err
    return np.asarray(Image.open(workspace.folder / name))


def test_a_picture_is_written_and_logged_and_follows_from_the_seed(trained):
    store = trained.store()
    run = runs.find(store, {"kind": "finetune", "role": "in_distribution"})[0].run_id
    first = drawn(trained, run, "a.png")
    # Two rows of three images of 32 pixels, with a line between them and around.
    assert first.shape == (67, 100, 3)
    assert np.array_equal(first, drawn(trained, run, "b/c.png"))
    assert not np.array_equal(first, drawn(trained, run, "d.png", "--seed", "1"))
    logged = [path for path in runs.list_artifacts(store, run, "images") if path.endswith(".png")]
    assert len(logged) == 3
    with runs.artifact(store, run, logged[0]) as file:
        assert np.asarray(Image.open(file).convert("RGB")).shape == first.shape


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--count", "0"), "at least 1"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--out", "a.nothing"), "cannot write a.nothing"),
    ],
)
def test_what_makes_no_picture_is_refused(trained, words, said):
    run = runs.find(trained.store(), {"kind": "train", "model": "glow"})[0].run_id
    outcome = trained.oodflow("sample", run, *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert said in outcome.err
