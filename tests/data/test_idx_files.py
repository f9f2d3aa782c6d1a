"""Fashion-MNIST and MNIST as published: spellings, compression, trees, archives, single folds."""

import gzip
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from idx import write_folds

from oodflow.data.images import load, prepare
from oodflow.errors import UserError


def read_idx(path):
    """The format by its definition, byte by byte, independent of the reader under test."""
    with path.open("rb") as stream:
        raw = stream.read()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    assert raw[0] == raw[1] == 0 and raw[2] == 8
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    values = list(raw[4 + 4 * len(sizes) :])
    return np.array(values, np.uint8).reshape(sizes)


def enlarged(images):
    """28×28 to 32×32, bilinear between the centres of pixels, as a product with one matrix."""
    weights = np.zeros((32, 28))
    for target in range(32):
        at = min(max((target + 0.5) * 28 / 32 - 0.5, 0), 27)
        low = int(at)
        weights[target, low] += 1 - (at - low)
        weights[target, min(low + 1, 27)] += at - low
    return np.einsum("ai,bj,nij->nab", weights, weights, images.astype(float))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_every_pixel_is_that_of_an_independent_reader(tmp_path, name, packed, dotted):
    folder = write_folds(tmp_path / "flat", packed, dotted)
    prepare(name, tmp_path / "data", folder)
    for fold, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (
            read_idx(next(folder.glob(f"{prefix}-{kind}*"))) for kind in ("images", "labels")
        )
        ours = load(name, fold, tmp_path / "data")
        assert ours.labels.tolist() == labels.tolist()
        exact = enlarged(images)
        assert np.abs(ours.pixels[:, 0].numpy() - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("kind", ["tree", "gz tree", "tar", "tar.gz", "zip", "lying in the data"])
def test_trees_and_archives_hold_the_same_images(tmp_path, kind):
    flat = write_folds(tmp_path / "flat", packed="gz" in kind)
    prepare("fashion-mnist", tmp_path / "expected", flat)
    data, path = tmp_path / "data", tmp_path / "given"
    if "tree" in kind:
        shutil.copytree(flat, path / "FashionMNIST" / "raw")
    elif kind == "lying in the data":
        shutil.copytree(flat, data / "FashionMNIST" / "raw")
        path = None
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in flat.iterdir():
                # As Kaggle packs them: each in a folder of its own name.
                archive.write(file, f"archive/{file.name}/{file.name}")
            archive.writestr("__MACOSX/._train-images-idx3-ubyte", b"junk")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(flat, "some/where")
    prepare("fashion-mnist", data, path)
    for fold in ("train", "test"):
        digests = {
            load("fashion-mnist", fold, place).digest for place in (data, tmp_path / "expected")
        }
        assert len(digests) == 1


def test_a_tree_of_both_datasets_gives_each_its_own(tmp_path):
    root = tmp_path / "root"
    digits = write_folds(root / "MNIST" / "raw")
    with pytest.raises(UserError, match="holds no idx file of fashion-mnist; expected are train-"):
        prepare("fashion-mnist", tmp_path / "data", root)
    clothes = write_folds(root / "FashionMNIST" / "raw")
    file = clothes / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:8] + bytes(70))
    for name, folder in (("mnist", digits), ("fashion-mnist", clothes)):
        prepare(name, tmp_path / "data", root)
        labels = read_idx(folder / "train-labels-idx1-ubyte").tolist()
        assert load(name, "train", tmp_path / "data").labels.tolist() == labels


def test_a_file_beside_its_packed_form_is_taken_and_either_may_have_the_others_name(tmp_path):
    folder = write_folds(tmp_path / "both")
    labels = folder / "train-labels-idx1-ubyte"
    (folder / f"{labels.name}.gz").write_bytes(gzip.compress(b"older"))
    # Browsers unpack what they download and leave the name.
    images = folder / "train-images-idx3-ubyte"
    images.rename(folder / f"{images.name}.gz")
    prepare("mnist", tmp_path / "data", folder)
    assert load("mnist", "train", tmp_path / "data").labels.tolist() == read_idx(labels).tolist()


@pytest.mark.parametrize(
    ("prefix", "own", "other"), [("t10k", "test", "train"), ("train", "train", "test")]
)
def test_one_fold_alone_is_a_dataset_and_the_other_is_named_when_needed(
    tmp_path, prefix, own, other
):
    folder = write_folds(tmp_path / "one", packed=True, folds=(prefix,))
    prepare("mnist", tmp_path / "data", folder)
    count = {"t10k": 30, "train": 70}[prefix]
    assert len(load("mnist", own, tmp_path / "data").pixels) == count
    with pytest.raises(UserError, match=f"prepared without its {other} fold; get the files of"):
        load("mnist", other, tmp_path / "data")


def test_files_that_are_absent_are_named(tmp_path):
    folder = write_folds(tmp_path / "flat", dotted=True)
    (folder / "t10k-labels.idx1-ubyte").unlink()
    with pytest.raises(UserError, match="holds t10k-images.idx3-ubyte but no t10k-labels-idx1-uby"):
        prepare("mnist", tmp_path / "data", folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError) as caught:
        prepare("mnist", tmp_path / "data", empty)
    for prefix in ("train", "t10k"):
        assert f"{prefix}-images-idx3-ubyte" in str(caught.value)
        assert f"{prefix}-labels-idx1-ubyte" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 9, 15, 40, 3000])
def test_a_cut_packed_file_is_named(tmp_path, keep):
    folder = write_folds(tmp_path / "flat", packed=True)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="incomplete or damaged \\(t10k-images-idx3-ubyte.gz: "):
        prepare("mnist", tmp_path / "data", folder)


def test_images_where_labels_belong_are_refused(tmp_path):
    folder = write_folds(tmp_path / "flat")
    shutil.copy(folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte")
    with pytest.raises(UserError, match="labels-idx1-ubyte: it is not an idx file of bytes with 1"):
        prepare("mnist", tmp_path / "data", folder)


def test_a_zip_archive_that_leads_out_or_is_cut_is_refused(tmp_path):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped", b"")
    with pytest.raises(UserError, match="evil.zip leads out of the archive"):
        prepare("mnist", tmp_path / "data", path)
    assert not list(tmp_path.rglob("escaped"))
    path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(UserError, match="evil.zip is not a whole tar or zip archive"):
        prepare("mnist", tmp_path / "data", path)


def test_the_files_of_debians_package_are_found(tmp_path, monkeypatch):
    write_folds(tmp_path / "share" / "datasets" / "fashion-mnist", packed=True)
    monkeypatch.setenv("XDG_DATA_DIRS", f"/nowhere:{tmp_path / 'share'}")
    assert len(load("fashion-mnist", "train", tmp_path / "data").pixels) == 70
