"""The one error that the user can fix; every other exception is a bug. No secrets in either."""

import re
from collections.abc import Iterable

__all__ = ["FailedTraining", "ResourceError", "UserError", "unknown_name", "without_secrets"]

SECRETS = (
    # User and password of an address; up to the last @, since a password may hold one.
    (re.compile(r"(\b[a-z][\w+.-]*://)[^\s\"'<>/][^\s\"'<>]*@", re.IGNORECASE), r"\1"),
    # password=…, sslpassword=…, &sig=…, "token": "…"
    (
        re.compile(
            r"((?:[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|credential|signature"
            r"|(?:api|access|account)[_-]?key)[\w.-]*|\bsig)(?:=|[\"']\s*[:=]\s*)[\"']?)"
            r"[^\s&;,\"'#<>]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"(authorization\W+(?:basic|bearer)\s+)\S+", re.IGNORECASE), r"\1***"),
)
"""What is taken out of a text, and what stands in its place."""


def without_secrets(text: str) -> str:
    """A text without the users, passwords and tokens of the addresses in it.

    >>> without_secrets("no store at postgresql://bob:pa/ss@db:5432/x?sslpassword=abc&a=1")
    'no store at postgresql://db:5432/x?sslpassword=***&a=1'
    >>> without_secrets("models:/name@champion")
    'models:/name@champion'
    """
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class UserError(Exception):
    """Wrong input: one line names the problem, where it is, and the fix.

    The command line prints the line without a traceback and ends with its exit code. The line is
    without secrets.

    >>> try:
    ...     raise UserError("steps is 0; it must be a number above 0")
    ... except UserError as error:
    ...     print(error)
    steps is 0; it must be a number above 0
    """

    exit_code = 2

    def __init__(self, line: str) -> None:
        super().__init__(without_secrets(line))


class ResourceError(UserError):
    """A resource failed during the work: the disk is full, the MLflow server is gone.

    The line says what was saved and how to continue. The input was right, so the exit code is 1.
    """

    exit_code = 1


class FailedTraining(UserError):
    """A training ran to its end or to a fault of its numbers, and what it made is of no use."""

    exit_code = 1


def unknown_name(kind: str, name: str, available: Iterable[str]) -> UserError:
    """The error for a name that is not in a mapping, with the names that are.

    >>> str(unknown_name("model", "glw", ["glow", "png"]))
    "unknown model 'glw'; available: glow, png"
    """
    return UserError(f"unknown {kind} {name!r}; available: {', '.join(available)}")
