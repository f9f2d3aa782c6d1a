"""Files by name, in a folder or in a zip archive that is read without being extracted.

Archives of a few large files, tar or zip, are unpacked for the time they are read.
"""

import io
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from oodflow.data.account import Account
from oodflow.data.image_files import UnreadableImage, image_suffixes, printable
from oodflow.errors import UserError

__all__ = ["Shelf", "is_image", "open_shelf", "unpacked", "walk"]


@dataclass(frozen=True)
class Shelf:
    """Files that are read one by one."""

    path: Path
    """The folder or the archive."""
    names: tuple[str, ...]
    """Relative to it, with ``/``, sorted."""
    fetch: Callable[[str], BinaryIO | Path]
    """The file of a name; raises UnreadableImage where an archive cannot give it.

    Not to be called by two threads at once.
    """


def is_image(name: str) -> bool:
    """Whether a file is an image by the end of its name.

    >>> is_image("a/b.JPEG"), is_image("png"), is_image("a.png/b.txt")
    (True, False, False)
    """
    return os.path.splitext(name)[1].lower() in image_suffixes()


def walk(folder: Path, account: Account | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files below a folder with their relative names, one folder after another, each sorted.

    Hidden files and folders, links to folders, broken links, devices and pipes are left out and
    counted in ``account``. Raises UserError where a folder cannot be listed.
    """
    left_out = (account or Account()).left_out
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{printable(folder / prefix)} cannot be listed: {error.strerror}"
            ) from error
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            # os.path takes a link to itself for absent, where the entry would raise.
            elif entry.is_symlink() and not os.path.isfile(entry.path):
                left_out["links to folders or to nothing"] += 1
            elif entry.is_dir():
                folders.append(f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry
            else:
                left_out["devices or pipes"] += 1
        waiting += reversed(folders)


def walk_images(
    folder: Path, account: Account | None = None
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Those files of :func:`walk` that are images; the others are counted by their endings."""
    account = account or Account()
    for name, entry in walk(folder, account):
        if is_image(name):
            yield name, entry
        else:
            ending = os.path.splitext(name)[1].lower()
            account.left_out[printable(ending) or "without an ending"] += 1


def find_images(paths: Iterable[Path], account: Account) -> Iterator[Path]:
    """The files among the paths as they are, and the image files below the folders.

    No more than one folder's names are held at a time. Raises UserError for a path that does not
    exist and for a folder that cannot be listed, as soon as it comes to it; and where there is no
    image at all, at the end.
    """
    paths, nothing = list(paths), True
    for path in paths:
        if path.is_dir():
            found: Iterable[Path] = (path / name for name, _ in walk_images(path, account))
        elif path.exists():
            found = (path,)
        else:
            raise UserError(f"no file or folder at {printable(path)}")
        for file in found:
            nothing = False
            yield file
    if nothing:
        where = ", ".join(map(printable, paths))
        raise UserError("; ".join([f"no image in {where}", *account.lines()]))


def open_shelf(path: Path) -> Shelf:
    """The files of a folder or of a zip archive, hidden ones left out.

    Raises UserError for what is neither, for an archive that is damaged, and for one with a member
    whose name leads out of it.
    """
    if path.is_dir():
        return Shelf(path, tuple(sorted(name for name, _ in walk(path))), lambda name: path / name)
    if not path.is_file():
        raise UserError(f"no file or folder at {path}")
    try:
        # Stays open, so that the long list of members is read once; closed when it is let go.
        archive = zipfile.ZipFile(path)
    # Damaged lists of members end in errors of struct, of text encodings and of zipfile.
    except Exception as error:
        raise UserError(
            f"{path} is not a complete zip archive ({error}); remove it and get it again"
        ) from error
    names = {name for name in archive.namelist() if not name.endswith("/")}
    for name in names:
        if _leads_out(name):
            archive.close()
            raise UserError(
                f"{path} holds a member {name!r} whose name leads out of it; "
                "remove it and get it again from its makers"
            )

    def fetch(name: str) -> BinaryIO:
        try:
            return io.BytesIO(archive.read(name))
        # Damaged members end in errors of zlib and of zipfile, encrypted ones in RuntimeError.
        except Exception as error:
            raise UnreadableImage(_line(error)) from error

    visible = (name for name in names if not any(p.startswith(".") for p in name.split("/")))
    return Shelf(path, tuple(sorted(visible)), fetch)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder itself, or what a tar or zip archive holds, in a folder that is removed at the end.

    Raises UserError for another file, a damaged archive, and a member that leads out of it.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="oodflow-") as temporary:
        place = Path(temporary)
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    for name in filter(_leads_out, packed.namelist()):
                        raise UserError(f"{path} leads out of the archive ({name}); it is refused")
                    packed.extractall(place)
            else:
                with tarfile.open(path) as archive:
                    archive.extractall(place, filter="data")
        except tarfile.FilterError as error:
            raise UserError(
                f"{path} leads out of the archive ({_line(error)}); it is refused"
            ) from error
        # Encrypted zip archives end in RuntimeError, unknown methods in NotImplementedError.
        except (
            tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error, RuntimeError
        ) as error:  # fmt: skip
            raise UserError(
                f"{path} is not a whole tar or zip archive ({_line(error)}); get it "
                "again, or give a folder"
            ) from error
        yield place


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _leads_out(name: str) -> bool:
    """Whether a member's name is absolute, on any system, or has a ``..``.

    >>> [_leads_out(name) for name in ("a/b..png", "/a", "a/../../b", "C:\\\\a", "..\\\\a")]
    [False, True, True, True, True]
    """
    return bool(re.match(r"[/\\]|[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)
