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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from oodflow.data.image_files import UnreadableImage, image_suffixes
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


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files below a folder with their relative names, unsorted.

    Hidden files, links to folders and broken links are left out.
    Raises UserError where a folder cannot be listed.
    """
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        # os.path takes a link to itself for absent, where the entry would raise.
                        if os.path.isfile(entry.path):
                            yield prefix + entry.name, entry
                    elif entry.is_dir():
                        waiting.append(f"{prefix}{entry.name}/")
                    elif entry.is_file():
                        yield prefix + entry.name, entry
        except OSError as error:
            raise UserError(f"{folder / prefix} cannot be listed: {error.strerror}") from error


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
            f"{path} is no complete zip archive ({error}); remove it and get it again"
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
                f"{path} is no whole tar archive or zip archive ({_line(error)}); get it "
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
