"""A folder whose files are all verified by digests: an unknown file is refused unread.

``detector.json`` holds facts and the SHA-256 of every other file. A folder comes from anywhere, so
its names are compared with the few there can be, links are refused, and nothing is opened before
its digest is verified.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from oodflow.errors import UserError
from oodflow.training.checkpoint import write_atomically

__all__ = ["FACTS_FILE", "folder_digest", "seal", "verified"]

FACTS_FILE = "detector.json"

MOST_BYTES = 1 << 20
"""No facts are longer."""

FORMAT = 1


def seal(folder: Path, facts: Mapping[str, Any]) -> str:
    """Write ``detector.json`` over all files of a folder; returns :func:`folder_digest`.

    It comes last: a folder that was not finished has none, and is refused.
    """
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    content = {"format": FORMAT, "files": files, **facts}
    write_atomically(folder / FACTS_FILE, (json.dumps(content, indent=1) + "\n").encode())
    return folder_digest(folder)


def folder_digest(folder: Path) -> str:
    """SHA-256 of ``detector.json``, 16 digits: it stands for every byte of the folder."""
    return _sha256(folder / FACTS_FILE)[:16]


def verified(folder: Path, known: Collection[str]) -> dict[str, Any]:
    """The facts of a folder that holds nothing but files of ``known`` names, as they were sealed.

    Raises UserError, naming the file, for any other content: other names, folders, links, files
    that are absent or were changed, facts that are no JSON of this version.
    """
    if not folder.is_dir():
        raise UserError(f"no detector at {folder}: there is no such folder")
    if not os.path.lexists(folder / FACTS_FILE):
        raise UserError(f"no detector at {folder}: it has no {FACTS_FILE}")
    found = set()
    for entry in os.scandir(folder):
        if entry.name not in {*known, FACTS_FILE}:
            raise _refused(folder, f"{entry.name!r} is not a file of a detector")
        if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
            raise _refused(folder, f"{entry.name} is a link or a folder and may lead out of it")
        found.add(entry.name)
    facts = _facts(folder)
    files = facts["files"]
    for name in files:
        if name not in known:
            raise _refused(
                folder, f"{FACTS_FILE} names {name!r}, which is not a file of a detector"
            )
    if found - {FACTS_FILE} != set(files):
        odd = sorted((found - {FACTS_FILE}) ^ set(files))[0]
        raise _refused(folder, f"{odd} is not both there and in {FACTS_FILE}")
    for name, digest in files.items():
        if _sha256(folder / name) != digest:
            raise _refused(folder, f"{name} was changed after the detector was made")
    return facts


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    if path.stat().st_size > MOST_BYTES:
        raise _refused(folder, f"{FACTS_FILE} is too long")
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refused(folder, f"{FACTS_FILE} is no JSON") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("files"), dict):
        raise _refused(folder, f"{FACTS_FILE} lists no files")
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{path} is of format {facts.get('format')!r}, this version of oodflow reads "
            f"{FORMAT}; build the detector again"
        )
    return facts


def _refused(folder: Path, why: str) -> UserError:
    return UserError(f"the detector at {folder} is refused: {why}; build it again, or get it again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
