"""The published datasets: real file formats, written here byte by byte, read through torchvision.

torchvision compares the files with check sums of the real ones. The tests put the sums of their
own small files in its tables and leave the comparison itself in place.
"""

import contextlib
import gzip
import hashlib
import pickle
import shutil
import struct
import sys
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

from oodflow.data.images import download, load, prepare, present
from oodflow.data.torchvision_sets import enlarge
from oodflow.errors import UserError


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def random_images(count, *shape):
    return np.random.default_rng(0).integers(256, size=(count, *shape), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Five batches of 3 images and a test batch of 2, with the sums that torchvision expects."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = random_images(17, 3072)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        part = rows[3 * i : 3 * i + 3]
        labels = [(3 * i + j) % 10 for j in range(len(part))]
        batch = {"batch_label": name, "labels": labels, "data": part, "filenames": []}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    sums = [[name, md5(folder / name)] for name in names]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    meta = {**datasets.CIFAR10.meta, "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path, rows


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Files with the axes of the real ones: X is 32×32×3×N, y is N×1 from 1 to 10."""
    folder = tmp_path / "svhn"
    folder.mkdir()
    images = random_images(5, 32, 32, 3)
    labels = np.array([[1], [10], [9], [10], [2]], np.uint8)
    table = dict(datasets.SVHN.split_list)
    for fold, chosen in (("train", slice(None)), ("test", slice(1))):
        path = folder / f"{fold}_32x32.mat"
        scipy.io.savemat(path, {"X": images[chosen].transpose(1, 2, 3, 0), "y": labels[chosen]})
        table[fold] = [*table[fold][:2], md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    return tmp_path, images


def write_idx(path, array):
    """The idx format: two zero bytes, 8 for unsigned bytes, the rank, the sizes, the values."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(params=[("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def grey(request, tmp_path):
    name, folder_name = request.param
    folder = tmp_path / folder_name / "raw"
    folder.mkdir(parents=True)
    images = random_images(9, 28, 28)
    labels = np.arange(9, dtype=np.uint8)
    for prefix, chosen in (("train", slice(6)), ("t10k", slice(6, None))):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images[chosen])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels[chosen])
    return name, folder, tmp_path, images


def test_cifar10_pixels_are_red_green_blue_planes_row_by_row(cifar10):
    root, rows = cifar10
    train = load("cifar10", "train", root)
    assert train.pixels.shape == (15, 3, 32, 32) and train.pixels.dtype == torch.uint8
    assert train.pixels.is_contiguous()
    # Bytes of a row: 1024 red, 1024 green, 1024 blue, each 32 rows of 32.
    assert train.pixels[7, 1, 2, 5] == rows[7, 1024 + 2 * 32 + 5]
    assert np.array_equal(train.pixels.reshape(15, 3072).numpy(), rows[:15])
    assert train.labels.tolist() == [i % 10 for i in range(15)]
    test = load("cifar10", "test", root)
    assert np.array_equal(test.pixels.reshape(2, 3072).numpy(), rows[15:])
    assert test.labels.tolist() == [5, 6]
    assert np.array_equal(load("cifar10", "train", root, limit=4).pixels, train.pixels[:4])


def test_cifar100_labels_are_the_fine_ones(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rows = random_images(4, 3072)
    for name, part in (("train", rows[:3]), ("test", rows[3:])):
        count = len(part)
        batch = {
            "data": part,
            "fine_labels": list(range(99, 99 - count, -1)),
            "coarse_labels": [1] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["x"] * 100}))
    kind = datasets.CIFAR100
    monkeypatch.setattr(kind, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(kind, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "meta")})
    train = load("cifar100", "train", tmp_path)
    assert train.labels.tolist() == [99, 98, 97]
    assert np.array_equal(train.pixels.reshape(3, 3072).numpy(), rows[:3])
    assert len(load("cifar100", "test", tmp_path).pixels) == 1


def test_svhn_turns_its_axes_and_its_label_ten(svhn):
    root, images = svhn
    train = load("svhn", "train", root)
    assert np.array_equal(train.pixels.numpy(), images.transpose(0, 3, 1, 2))
    assert train.pixels.is_contiguous()
    assert train.labels.tolist() == [1, 0, 9, 0, 2] and train.labels.dtype == torch.int64
    test = load("svhn", "test", root)
    assert test.pixels.shape == (1, 3, 32, 32) and test.labels.tolist() == [1]


def test_grey_sets_are_enlarged_to_32_bilinearly(grey):
    name, _, root, images = grey
    train = load(name, "train", root)
    assert train.pixels.shape == (6, 1, 32, 32) and train.pixels.dtype == torch.uint8
    assert train.labels.tolist() == list(range(6))
    test = load(name, "test", root)
    assert test.labels.tolist() == [6, 7, 8]
    # The centre of target pixel t lies at (t + 0.5)·28/32 − 0.5 of the source, clamped to it.
    for y, x in ((0, 0), (9, 20), (31, 31), (16, 3)):
        at_y, at_x = (min(max((t + 0.5) * 28 / 32 - 0.5, 0), 27) for t in (y, x))
        top, left = int(at_y), int(at_x)
        bottom, right = min(top + 1, 27), min(left + 1, 27)
        in_y, in_x = at_y - top, at_x - left
        image = images[7].astype(float)
        value = (1 - in_y) * ((1 - in_x) * image[top, left] + in_x * image[top, right])
        value += in_y * ((1 - in_x) * image[bottom, left] + in_x * image[bottom, right])
        assert abs(test.pixels[1, 0, y, x].item() - value) <= 0.5 + 1e-3


def test_enlarging_keeps_extremes_and_order_over_its_parts():
    images = torch.zeros(5000, 1, 28, 28, dtype=torch.uint8)
    images[4500:] = 255
    enlarged = enlarge(images)
    assert (enlarged[:4500] == 0).all() and (enlarged[4500:] == 255).all()
    assert len(enlarged) == 5000


def test_compressed_mnist_files_that_are_there_are_unpacked_without_a_download(
    grey, monkeypatch, capfd
):
    name, folder, root, _ = grey
    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    before = load(name, "train", root)
    resources = []
    for path in sorted(folder.iterdir()):
        packed = folder / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        resources.append((packed.name, md5(packed)))
    monkeypatch.setattr(kind, "resources", resources)
    download(name, root)
    assert load(name, "train", root).digest == before.digest
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("svhn", "svhn"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_absent_files_say_where_they_belong_and_how_to_get_them(tmp_path, name, where):
    with pytest.raises(UserError) as caught:
        load(name, "test", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name} is not at {tmp_path / where}. ")
    assert f"`oodflow datasets prepare {name} --download`" in message
    assert "\n" not in message


def expect_damaged(name, fold, root, folder):
    with pytest.raises(UserError) as caught:
        load(name, fold, root)
    message = str(caught.value)
    assert f"{name} at {folder} is incomplete or damaged" in message
    assert "download=True" not in message and "\n" not in message


def test_a_changed_pickle_is_refused_before_it_is_opened(cifar10, monkeypatch):
    root, _ = cifar10
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    def never(*_, **__):
        raise AssertionError("unpickled a file with a wrong sum")

    monkeypatch.setattr(pickle, "load", never)
    with pytest.raises(UserError, match="the check sum of data_batch_3 is wrong"):
        load("cifar10", "train", root)


def test_incomplete_or_damaged_files_name_their_folder(cifar10):
    root, _ = cifar10
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    expect_damaged("cifar10", "train", root, root / "cifar-10-batches-py")


def test_a_truncated_mat_file_names_its_folder(svhn, monkeypatch):
    root, _ = svhn
    path = root / "svhn" / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:700])
    expect_damaged("svhn", "train", root, root / "svhn")
    # The same where the sum is right, as after a change of torchvision's table.
    table = dict(datasets.SVHN.split_list)
    table["train"] = [*table["train"][:2], md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    expect_damaged("svhn", "train", root, root / "svhn")


@pytest.mark.parametrize("keep", [0, 3, 10, 16, 900])
def test_truncated_idx_files_name_their_folder(grey, keep):
    name, folder, root, _ = grey
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    expect_damaged(name, "train", root, folder)


def test_labels_that_do_not_fit_the_images_are_refused(grey):
    name, folder, root, _ = grey
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(5, np.uint8))
    with pytest.raises(UserError, match="holds 6 images but 5 labels"):
        load(name, "train", root)
    write_idx(folder / "train-labels-idx1-ubyte", np.full(6, 10, np.uint8))
    with pytest.raises(UserError, match="holds labels outside 0 to 9"):
        load(name, "train", root)


def test_download_is_quiet_and_its_failure_one_line(tmp_path, monkeypatch, capfd):
    def fail(self):
        print("Downloading to somewhere")
        print("  1%|#", file=sys.stderr)
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(UserError) as caught:
        download("cifar10", tmp_path)
    message = str(caught.value)
    assert message.startswith("cifar10 could not be downloaded to ")
    assert "(no route to host)" in message and "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_download_fetches_both_folds(svhn, monkeypatch):
    root, _ = svhn
    kept = root / "kept"
    shutil.copytree(root / "svhn", kept)
    shutil.rmtree(root / "svhn")
    asked = []

    def fetch(self):
        asked.append(self.filename)
        with contextlib.suppress(FileExistsError):
            (root / "svhn").mkdir()
        shutil.copy(kept / self.filename, root / "svhn")

    monkeypatch.setattr(datasets.SVHN, "download", fetch)
    download("svhn", root)
    assert asked == ["train_32x32.mat", "test_32x32.mat"]
    assert len(load("svhn", "train", root).pixels) == 5


def test_an_archive_is_read_as_the_folder_it_holds(cifar10, tmp_path):
    root, rows = cifar10
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    prepare("cifar10", tmp_path / "data", archive)
    train = load("cifar10", "train", tmp_path / "data")
    assert np.array_equal(train.pixels.reshape(15, 3072).numpy(), rows[:15])


def test_a_path_that_leads_out_of_the_archive_is_refused(cifar10, tmp_path):
    root, _ = cifar10
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
        packed.add(root / "cifar-10-batches-py" / "test_batch", "../../escaped")
    with pytest.raises(UserError, match="evil.tar.gz leads out of the archive"):
        prepare("cifar10", tmp_path / "data", archive)
    assert not list(tmp_path.rglob("escaped")) and not present("cifar10", tmp_path / "data")


@pytest.mark.parametrize("size", [0, 10, 4000])
def test_a_cut_archive_is_named(cifar10, tmp_path, size):
    root, _ = cifar10
    archive = tmp_path / "cut.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(UserError, match="cut.tar.gz is not a whole tar"):
        prepare("cifar10", tmp_path / "data", archive)
