"""The published datasets that torchvision knows, as whole tensors (S5).

torchvision finds the files, verifies their checksums and parses them. The arrays of its dataset
objects are used as a whole; no image passes through PIL.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oodflow.data.archives import unpacked
from oodflow.data.catalog import FOLDS, Dataset, lookup
from oodflow.data.source import Fold, Piece, Raw, Request
from oodflow.errors import UserError

__all__ = ["download", "enlarge", "enlarged", "problem_of", "read"]

CHUNK = 4096
"""Images resized at once, since all of MNIST in float32 would take half a gigabyte."""


def read(request: Request) -> Raw:
    """The folds of a dataset whose files, or the archive of them, are at the request's path.

    Both of them; of SVHN, which is published fold by fold, those that are there. Raises UserError
    where a file is absent or not the published one.
    """
    from torchvision.datasets.utils import check_md5

    facts = request.facts
    files = _files(facts.name)
    every = {file for sums in files.values() for file in sums}
    with _folder(request.path, facts.where) as folder:
        absent = {file for file in every if not (folder / file).is_file()}
        if facts.name == "svhn" and absent != every:
            files = {fold: sums for fold, sums in files.items() if not absent & set(sums)}
        elif absent:
            raise _damaged(request, f"{', '.join(sorted(absent))} not there")
        for file, known in (pair for sums in files.values() for pair in sums.items()):
            if not check_md5(folder / file, known):
                raise _damaged(request, f"the check sum of {file} is wrong")
    return Raw({fold: Fold(_size(facts, fold), partial(_pieces, request, fold)) for fold in files})


def _files(name: str) -> dict[str, dict[str, str]]:
    """Fold → file → MD5 sum, as torchvision knows them."""
    kind = _kind(name)
    if name == "svhn":
        return {fold: dict([kind.split_list[fold][1:]]) for fold in FOLDS}
    # torchvision reads the names of the classes with either fold.
    return {
        fold: dict([*files, (kind.meta["filename"], kind.meta["md5"])])
        for fold, files in zip(FOLDS, (kind.train_list, kind.test_list), strict=True)
    }


def _kind(name: str) -> Any:
    """torchvision's class of a dataset."""
    from torchvision import datasets

    return {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN,
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
    }[name]


def _damaged(request: Request, reason: str) -> UserError:
    return UserError(
        f"{request.facts.name} at {request.path} is incomplete or damaged ({reason}). "
        f"Remove it and get it again. {request.facts.obtain}"
    )


def _size(facts: Dataset, fold: str) -> int:
    return facts.train_size if fold == "train" else facts.test_size


def _pieces(request: Request, fold: str) -> Iterator[Piece]:
    facts = request.facts
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oodflow-")))
        # torchvision insists on its own names of folders, the user's may have another.
        place = root / facts.where
        place.symlink_to(stack.enter_context(_folder(request.path, place.name)))
        try:
            pixels, labels = _arrays(facts.name, _opener(facts.name, root)(fold, False))
        # Damaged files end in pickle's, scipy's, torch's and torchvision's own errors.
        except Exception as error:
            reason = _line(error).replace(str(place), str(request.path))
            raise _damaged(request, reason) from error
    problem = problem_of(pixels, labels, facts.channels, facts.classes)
    if problem:
        raise UserError(f"{facts.name} {fold} at {request.path} {problem}. {facts.obtain}")
    yield from enlarged(pixels, labels)


def enlarged(pixels: Tensor, labels: Tensor) -> Iterator[Piece]:
    """Images N×C×H×W and labels N in pieces, enlarged as :func:`enlarge` does."""
    for some, their in zip(pixels.split(CHUNK), labels.split(CHUNK), strict=True):
        yield Piece(enlarge(some).numpy(), their.numpy())


@contextlib.contextmanager
def _folder(path: Path, name: str) -> Iterator[Path]:
    """The folder of a dataset: the path itself, or that of its name in it or in its archive."""
    with unpacked(path) as folder:
        if folder == path:
            yield path / name if (path / name).is_dir() else path
            return
        found = sorted(each for each in folder.rglob(name) if each.is_dir())
        if not found:
            raise UserError(f"{path} holds no folder {name}")
        yield found[0]


def download(name: str, data_dir: Path) -> None:
    """Download both folds quietly to where :func:`read` looks; UserError where that fails.

    Files that are there already with the right sums are not downloaded again.
    """
    silence = io.StringIO()
    try:
        # torchvision has no switch for its progress bars.
        with contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
            for fold in FOLDS:
                _opener(name, data_dir)(fold, True)
    except Exception as error:
        raise UserError(
            f"{name} could not be downloaded to {data_dir / lookup(name).where} ({_line(error)}); "
            "try again, or copy its files there"
        ) from error


def enlarge(pixels: Tensor) -> Tensor:
    """uint8 N×C×H×W resized bilinearly to 32×32 (S5); images of that size are returned as such."""
    if pixels.shape[2:] == (32, 32):
        return pixels.contiguous()
    resized = F.interpolate(pixels.float(), size=(32, 32), mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8)


def _opener(name: str, data_dir: Path) -> Callable[[str, bool], Any]:
    """A function (fold, download) → torchvision's dataset object."""
    kind = _kind(name)
    if name == "svhn":
        root = data_dir / lookup(name).where
        return lambda fold, fetch: kind(root, split=fold, download=fetch)
    return lambda fold, fetch: kind(data_dir, train=fold == "train", download=fetch)


def _arrays(name: str, opened: Any) -> tuple[Tensor, Tensor]:
    """Pixels N×C×H×W and labels N of torchvision's dataset object."""
    if name == "svhn":
        pixels = torch.from_numpy(opened.data)
        # A file with one image has a label without an axis.
        return pixels, torch.from_numpy(opened.labels).reshape(-1)
    labels = torch.as_tensor(opened.targets, dtype=torch.int64)
    return torch.as_tensor(opened.data).permute(0, 3, 1, 2), labels


def problem_of(pixels: Tensor, labels: Tensor, channels: int, classes: int) -> str:
    """What is wrong with arrays that could be read, or "" (MNIST's files carry no check sum)."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != channels:
        return f"holds {pixels.dtype} of shape {tuple(pixels.shape)} instead of 8-bit images"
    if len(pixels) != len(labels):
        return f"holds {len(pixels)} images but {len(labels)} labels"
    if ((labels < 0) | (labels >= classes)).any():
        return f"holds labels outside 0 to {classes - 1}"
    return ""


def _line(error: Exception) -> str:
    """An error of another library as part of one line."""
    return " ".join(str(error).split()) or type(error).__name__
