"""LSUN: the validation images of its ten scene categories, as outliers (S5).

On disk: ten LMDB environments ``<category>_val_lmdb/data.mdb``, 300 images each, whose values are
encoded WebP or JPEG. They come in the order of their keys, category by category; the label counts
the sorted categories. The shorter side becomes 32, then the central 32×32 are taken. All are
``test``.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np

from oodflow.data.archives import Shelf
from oodflow.data.decode import SIDE, pieces
from oodflow.data.image_files import UnreadableImage
from oodflow.data.source import Fold, Piece, Raw, Request
from oodflow.errors import UserError

__all__ = ["read"]

CATEGORIES = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
)
MAGIC = 0xBEEFC0DE
PAGE_SIZES = [1 << power for power in range(8, 17)]


def read(request: Request) -> Raw:
    """The fold ``test``; raises UserError where a category is absent or its file damaged."""
    folders = [request.path / f"{category}_val_lmdb" for category in CATEGORIES]
    absent = [folder.name for folder in folders if not (folder / "data.mdb").is_file()]
    if absent:
        raise UserError(
            f"{request.path} has no {', '.join(f'{name}/data.mdb' for name in absent)}; "
            "get the `_val` LMDB folders of LSUN and put them there"
        )
    total = 0
    for folder in folders:
        with _opened(folder) as shelf:
            total += len(shelf.names)

    def every() -> Iterator[Piece]:
        for label, folder in enumerate(folders):
            with _opened(folder) as shelf:
                labels = np.full(len(shelf.names), label, np.int64)
                yield from pieces(request, shelf, shelf.names, labels, resize=SIDE, crop=SIDE)

    return Raw({"test": Fold(total, every)}, CATEGORIES)


@contextmanager
def _opened(folder: Path) -> Iterator[Shelf]:
    """The images of an environment by their keys; raises UserError where it is damaged.

    Nothing is written into the folder, not even a lock.
    """
    path = folder / "data.mdb"
    try:
        problem = _problem(path)
        if problem:
            raise _damaged(path, problem)
        with (
            lmdb.open(str(folder), readonly=True, lock=False, create=False) as environment,
            environment.begin() as transaction,
        ):
            # Every byte is one latin-1 character, so that any key has a name and can be found.
            cursor = transaction.cursor()
            names = tuple(key.decode("latin-1") for key in cursor.iternext(values=False))
            if not names:
                raise _damaged(path, "it holds no image")

            def fetch(name: str) -> io.BytesIO:
                try:
                    value = transaction.get(name.encode("latin-1"))
                except lmdb.Error as error:
                    raise UnreadableImage(str(error)) from error
                return io.BytesIO(value or b"")

            yield Shelf(folder, names, fetch)
    except (lmdb.Error, OSError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}); remove it and get it again")


def _problem(path: Path) -> str:
    """What is wrong with the head of an LMDB file or with its size, or "".

    LMDB maps the file into memory, and reading beyond its end would kill the process. Two pages at
    its start each say how long it is; they are a 16-byte page header and then magic, version,
    address, map size, two records of 48 bytes (the page size is the first word of the first one)
    and the number of the last page. The one written later counts, the longer one is on the safe
    side.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(152)
        if len(head) < 152 or struct.unpack_from("<I", head, 16)[0] != MAGIC:
            return "it is no LMDB file"
        page = struct.unpack_from("<I", head, 40)[0]
        if page not in PAGE_SIZES:
            return f"its page size is {page}"
        file.seek(page)
        other = file.read(152)
    if len(other) < 152 or struct.unpack_from("<I", other, 16)[0] != MAGIC:
        return "its second page is no LMDB page"
    last = max(struct.unpack_from("<Q", each, 136)[0] for each in (head, other))
    if (last + 1) * page > size:
        return f"it has {size} bytes instead of {(last + 1) * page}"
    return ""
