"""The one error that the user can fix; every other exception is a bug."""

from collections.abc import Iterable

__all__ = ["FailedTraining", "ResourceError", "UserError", "unknown_name"]


class UserError(Exception):
    """Wrong input: one line names the problem, where it is, and the fix.

    The command line prints the line without a traceback and ends with its exit code.

    >>> try:
    ...     raise UserError("steps is 0; it must be a number above 0")
    ... except UserError as error:
    ...     print(error)
    steps is 0; it must be a number above 0
    """

    exit_code = 2


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
