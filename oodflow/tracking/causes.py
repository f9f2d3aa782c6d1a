"""Why a store fails, in its own words, and what mends it: one line for each kind of failure."""

import re
import textwrap
from collections.abc import Iterator
from urllib.parse import unquote

from oodflow.errors import without_secrets

__all__ = ["cause", "cure_of", "explained"]

CURES = (
    (
        r"error code 401|\b401\b.*(?:unauthori|auth)|unauthorized|not authenticated",
        "the server refuses these credentials; set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    (
        r"error code 403|forbidden|PERMISSION_DENIED",
        "the server does not allow this user that; ask who runs it for the permission",
    ),
    (
        r"password authentication failed|no password supplied|access denied for user|"
        r"role \S+ does not exist|login failed|no pg_hba.conf entry",
        "the database refuses these credentials; correct user and password in its address, or in "
        "PGPASSWORD",
    ),
    (r"database \S+ does not exist|unknown database", "create the database first: createdb NAME"),
    (r"No module named 'psycopg2?'", "install the driver: pip install 'oodflow[postgresql]'"),
    (r"No module named '(\w+)'", r"install the driver that brings the Python module \1"),
    (
        r"mlflow-artifacts URI was supplied",
        "a server keeps the files of these runs; name that server in MLFLOW_TRACKING_URI, not its "
        "database",
    ),
    (
        r"Can't load plugin|Could not parse SQLAlchemy URL",
        "write the address of a database that SQLAlchemy knows, such as postgresql://HOST/NAME",
    ),
    (
        r"mlflow db upgrade|out-of-date database schema",
        "make a copy of the database, then: mlflow db upgrade ADDRESS",
    ),
    (
        r"Can't locate revision|No such revision",
        "a newer MLflow has made this database; install that version here",
    ),
    (
        r"MLFLOW_ALLOW_FILE_STORE|maintenance mode",
        "name a database such as sqlite:///mlflow.db, move the folder's runs there with `mlflow "
        "migrate-filestore`, or set MLFLOW_ALLOW_FILE_STORE=true",
    ),
    (
        r"unable to open database file|readonly database|permission denied|EACCES|"
        r"read-only file system",
        "give this user the right to write the file and its folder, or name another place in "
        "MLFLOW_TRACKING_URI",
    ),
    (
        r"file is not a database|file is encrypted|disk image is malformed",
        "the file is damaged or something else; put a copy in its place, or move it away",
    ),
    (r"no space left|database or disk is full", "make room on the disk"),
    (r"database is locked", "another process holds it; try again, or use a server for many"),
    (
        r"too many (?:clients|connections)|remaining connection slots",
        "raise max_connections of the database, or use fewer workers",
    ),
    (r"too many 5\d\d|error code 5\d\d", "the server itself fails; its log says why"),
    (r"certificate|SSLError", "correct the certificate, or name it in REQUESTS_CA_BUNDLE"),
    (
        r"connection refused|failed to establish|timed? ?out|name or service not known|"
        r"could not translate host name|no route to host|max retries exceeded|"
        r"remote end closed|connection reset|server closed the connection",
        "",
    ),
)
"""What an error says → what mends it; "" where a server does not answer, which only starting it
mends. The first that fits counts."""

LIBRARIES = {"mlflow", "requests", "sqlalchemy", "urllib3"}
"""Where errors of a store come from; an error of another kind is a bug."""


def cause(error: BaseException, address: str = "") -> str:
    """The message of an error as one short line without secrets; mlflow's own have many.

    ``address`` is that of the store: drivers repeat parts of a password that they take for others.
    """
    text = re.sub(r"\(Background on this error at: \S+\)|\s+", " ", str(error))
    # urllib3 ends with the reason, behind the address and its own words.
    text = text.rpartition("(Caused by ")[2]
    text = without_secrets(text) or type(error).__name__
    userinfo, at, _ = address.partition("://")[2].rpartition("@")
    for part in filter(None, re.split(r"[:@/?]", userinfo.partition(":")[2]) if at else ()):
        for secret in {part, unquote(part)} - {""}:
            text = text.replace(secret, "***") if len(secret) > 2 else text
    return textwrap.shorten(text, 160, placeholder=" …")


def cure_of(error: BaseException) -> str:
    """What mends an error of a store, "" where nothing is known."""
    return next((cure for _, cure in _found(error)), "")


def explained(error: BaseException) -> str:
    """A line for an error of mlflow, a database or a server whose kind is known, else ""."""
    if any(type(each).__module__.partition(".")[0] in LIBRARIES for each in _chain(error)):
        for what, cure in _found(error):
            return "; ".join(filter(None, (f"the MLflow store fails ({what})", cure)))
    return ""


def _found(error: BaseException) -> Iterator[tuple[str, str]]:
    """Message and cure of the first error in a chain whose kind is known."""
    for pattern, cure in CURES:
        for each in _chain(error):
            if match := re.search(pattern, str(each), re.IGNORECASE | re.DOTALL):
                yield cause(each), match.expand(cure)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
