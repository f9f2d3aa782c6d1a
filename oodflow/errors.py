"""The one error that people cause and can mend; everything else is a bug."""

from collections.abc import Iterable

__all__ = ["ResourceError", "UserError", "unknown_name"]


class UserError(Exception):
    """Wrong input: one line that says what is wrong, where, and how to mend it.

    The command line prints the line without a traceback and ends with exit code 2.
    """


class ResourceError(UserError):
    """What a command needs gave out under way: the disk is full, the MLflow server is gone.

    The line says what is kept and how to go on. The input was right, so the exit code is 1.
    """


def unknown_name(kind: str, name: str, available: Iterable[str]) -> UserError:
    """The error for a name that is not in a mapping, with the names that are.

    >>> str(unknown_name("model", "glw", ["glow", "png"]))
    "unknown model 'glw'; available: glow, png"
    """
    return UserError(f"unknown {kind} {name!r}; available: {', '.join(available)}")
