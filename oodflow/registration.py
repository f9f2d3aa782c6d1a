"""Models, datasets and scores by their names: the built-in ones and those of other packages.

A package names what it adds in its metadata, by entry points of the groups ``oodflow.models``,
``oodflow.datasets`` and ``oodflow.scores``: the entry point's name is that of the model, dataset or
score, its value the module that registers it when it is imported. Names are listed from the
metadata alone. A module is imported when a name is asked for that nobody has registered yet, or
when all entries are read. What is wrong with one is a line on stderr, and everything else goes on.
"""

import contextlib
import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from oodflow.errors import UserError, unknown_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["DATASETS", "MODELS", "SCORES", "Register", "all_origins", "origin_of", "warn"]

Entry = TypeVar("Entry")

NAME = r"[a-z0-9][a-z0-9._-]*"
"""Names stand in metrics, file names and command lines."""

_LOADING: ContextVar[str] = ContextVar("loading", default="")
"""The origin of the plug-in whose module is being imported; "" outside."""

_imported: set[tuple[str, str]] = set()
_warned: set[str] = set()


class Register(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by their names; ``built_in`` are names that this package fills itself.

    To look up a name, or to iterate, imports plug-ins where that is needed; :meth:`names` does not.
    """

    def __init__(self, kind: str, built_in: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.built_in = built_in
        self._entries: dict[str, Entry] = {}
        self._origins: dict[str, str] = {}

    def add(self, name: str, entry: Entry, origin: str = "") -> None:
        """Register an entry; the origin is "" for a built-in one, see :func:`origin_of`.

        What one's own code registers again replaces what it registered before. Raises UserError
        for a name that another has, and for one with other signs than a-z, 0-9, ``.``, ``_``, -.
        """
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise UserError(
                f"{name!r} is not a name for a {self.kind}; write it as in my-{self.kind}"
            )
        taken = name in self._entries or origin and name in self.built_in
        owner = self._origins.get(name, "")
        if taken and (not origin or _package(owner) != _package(origin)):
            raise UserError(
                f"there is a {self.kind} {name!r} already, of {owner or 'oodflow'}; "
                "choose another name"
            )
        self._entries[name] = entry
        self._origins[name] = origin

    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first; no plug-in is imported."""
        return tuple(dict.fromkeys((*self.built_in, *self._entries, *self._declared)))

    def origin(self, name: str) -> str:
        """``DISTRIBUTION VERSION`` of the package that registered a name; "" for a built-in one."""
        return self._origins[name] if name in self else ""

    def origins(self) -> dict[str, str]:
        """Name → origin of what plug-ins and one's own code add; no plug-in is imported."""
        declared = {name: _origin(each) for name, each in self._declared.items()}
        return declared | {name: origin for name, origin in self._origins.items() if origin}

    def unknown(self, name: str, origin: str = "") -> UserError:
        """The error for a name that is not here; ``origin`` is who registered it at the time."""
        if name in self._declared:
            return UserError(
                f"the {self.kind} {name!r} is of the plug-in {_origin(self._declared[name])}, "
                "which cannot be loaded; repair or remove that package"
            )
        if origin:
            return UserError(
                f"the {self.kind} {name!r} is of {origin}, which is not here; install that package,"
                " or register your own code before"
            )
        return unknown_name(self.kind, name, self.names())

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries and name in self._declared:
            self._load(self._declared[name])
        return self._entries[name]

    def __delitem__(self, name: str) -> None:
        """Forget an entry, so that its name is free again."""
        del self._entries[name], self._origins[name]

    def __iter__(self) -> Iterator[str]:
        for each in self._declared.values():
            self._load(each)
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @cached_property
    def _declared(self) -> "dict[str, EntryPoint]":
        """The plug-ins' entry points by name: of each name that is free, the first package's."""
        # Imported late: it takes longer than all else that help needs.
        from importlib.metadata import entry_points

        found: dict[str, EntryPoint] = {}
        for each in sorted(entry_points(group=f"oodflow.{self.kind}s"), key=_origin):
            builtin = each.name in (*self.built_in, *self._entries)
            builtin = builtin and not self._origins.get(each.name)
            if builtin or each.name in found:
                owner = "oodflow" if builtin else _origin(found[each.name])
                warn(f"plug-in {_origin(each)}: there is a {self.kind} {each.name!r} already, of "
                     f"{owner}; its own is left out")  # fmt: skip
            else:
                found[each.name] = each
        return found

    def _load(self, declared: "EntryPoint") -> None:
        """Import the module of an entry point, once; what goes wrong is a line on stderr."""
        origin = _origin(declared)
        if (origin, declared.value) not in _imported:
            _imported.add((origin, declared.value))
            _import(declared, origin)
        if declared.name not in self._entries and not any(origin in line for line in _warned):
            warn(f"plug-in {origin}: its module {declared.value} registers no {self.kind} "
                 f"{declared.name!r} when it is imported, as its entry point says")  # fmt: skip


def _import(declared: "EntryPoint", origin: str) -> None:
    said = io.StringIO()
    loading = _LOADING.set(origin)
    try:
        # Standard output may be a table that another program reads.
        with contextlib.redirect_stdout(said):
            declared.load()
    except (Exception, SystemExit) as error:
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        warn(f"plug-in {origin} cannot be loaded: {why}")
    finally:
        _LOADING.reset(loading)
    if text := said.getvalue().strip():
        warn(f"plug-in {origin} printed while it was imported: {text[:200]}")


def warn(line: str) -> None:
    """A line on stderr, once in a process."""
    line = " ".join(line.split())
    if line not in _warned:
        _warned.add(line)
        print(f"warning: {line}", file=sys.stderr)


def all_origins() -> dict[str, str]:
    """Name → origin of all models, datasets and scores that plug-ins and one's own code add."""
    return {name: origin for each in _REGISTERS.values() for name, origin in each.origins().items()}


def origin_of(function: Callable[..., Any]) -> str:
    """``NAME VERSION`` of the code that registers a function: of its package, else of its module.

    The version of a module outside plug-ins is a digest of its source, so that changed code is
    another version.
    """
    if loading := _LOADING.get():
        return loading
    module = getattr(function, "__module__", None) or "__main__"
    for register in _REGISTERS.values():
        for each in register._declared.values():
            if _root(each.value) == _root(module):
                return _origin(each)
    import inspect

    source = ""
    # A notebook has no file, but its cells have their source; a built-in function has neither.
    for place in (sys.modules.get(module), function):
        if not source and place is not None:
            with contextlib.suppress(OSError, TypeError):
                source = inspect.getsource(place)
    return f"{module} {hashlib.sha256(source.encode()).hexdigest()[:8]}"


def _root(module: str) -> str:
    return re.split(r"[.:]", module)[0]


def _package(origin: str) -> str:
    return origin.partition(" ")[0]


def _origin(declared: "EntryPoint") -> str:
    return f"{declared.dist.name} {declared.dist.version}" if declared.dist else declared.value


MODELS: Register[Any] = Register(
    "model",
    (
        "glow",
        "glow-conditional",
        "glow-local",
        "glow-dense",
        "pixelcnn",
        "tarflow",
        "wide-resnet",
        "png",
        "webp",
        "jpeg2000",
    ),
)
"""Model families: name → preset → settings, see :mod:`oodflow.presets`."""

DATASETS: Register[Any] = Register("dataset")
"""Datasets: name → facts, see :mod:`oodflow.data.catalog`."""

SCORES: Register[Any] = Register(
    "score",
    (
        "raw",
        "scale1",
        "scale2",
        "last_scale",
        "diff",
        "diff_outlier",
        "typicality",
        "waic",
        "complexity",
        "dose",
        "dose_svm",
        "gradient",
    ),
)
"""Anomaly scores: name → :class:`oodflow.evaluation.scores.Score`."""

_REGISTERS = {each.kind: each for each in (MODELS, DATASETS, SCORES)}
