"""An unpickler that runs nothing: admitted names become inert objects, all others are refused.

A pickle is a program. It can import any name and call it, and hand state to whatever it has made.
Here the names it may import are listed below, and what they stand for is this module's: tensors
become descriptions of tensors, classes of models become :class:`Foreign`, which stores its state
and does nothing. Whatever a file can get hold of is closed to state that it might bring.
"""

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Foreign",
    "Refused",
    "Storage",
    "StorageType",
    "StoredTensor",
    "end_of_pickle",
    "shown",
    "unpickle",
]


MAX_EXPANDED = 2**24
"""Elements of a tensor that has more of them than are stored (strides of 0)."""


class Refused(Exception):
    """What is wrong with the file; the reader of files adds its name."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


def shown(value: object) -> str:
    """Something of a file as a part of a message: short and on one line, whatever it is.

    >>> shown("a\\nb"), shown((2, 2)), shown(10**5000)
    ("'a\\\\nb'", '(2, 2)', 'something of type int')
    """
    if isinstance(value, Foreign):
        return f"an object of {shown(value.path)}"
    with suppress(ValueError):  # Python refuses to write out very long integers
        if not isinstance(value, _Inert):
            return _REPR.repr(value)
    return f"something of type {type(value).__name__}"


class _Inert:
    """Something that a file can name or make, but not change."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Refused(f"it brings state for a {type(self).__name__}")


class Storage(_Inert):
    """The elements that tensors of a file are views of; ``content`` may be filled in later."""

    __slots__ = ("content", "dtype", "length", "_elements")

    def __init__(self, dtype: torch.dtype, length: int, content: bytearray | None = None) -> None:
        self.dtype = dtype
        self.length = length
        self.content = content
        self._elements: Tensor | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.length * self.dtype.itemsize

    def elements(self) -> Tensor:
        """All elements, flat. The tensors of one storage share them, as they did when saved."""
        if self._elements is None:
            assert self.content is not None, "the reader of files fills in every storage"
            self._elements = (
                torch.frombuffer(self.content, dtype=self.dtype)
                if self.length
                else torch.empty(0, dtype=self.dtype)
            )
        return self._elements


class StoredTensor(_Inert):
    """A tensor as the file describes it, known to lie within its storage."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, offset: int, shape: Any, strides: Any) -> None:
        layout = (offset, *shape, *strides)
        if (
            not isinstance(storage, Storage)
            or len(shape) != len(strides)
            or not all(type(number) is int and 0 <= number < 2**63 for number in layout)
        ):
            raise Refused("it describes a tensor that cannot be")
        self.storage = storage
        self.offset = offset
        self.shape = tuple(shape)
        self.strides = tuple(strides)
        last = sum((size - 1) * stride for size, stride in zip(self.shape, strides, strict=True))
        elements = math.prod(self.shape)
        if elements and offset + last >= storage.length:
            raise Refused("it describes a tensor that reaches beyond its elements")
        if elements > max(storage.length, MAX_EXPANDED):
            raise Refused(f"it describes a tensor of {elements} elements, all from a few")

    def tensor(self) -> Tensor:
        """The tensor itself, on the CPU; it shares memory with others of the same storage."""
        return self.storage.elements().as_strided(self.shape, self.strides, self.offset)


class Foreign(_Inert):
    """An object of a class that is not here: the class's path, and what the file says of it."""

    __slots__ = ("state",)

    path = ""
    """Where the class was defined, such as ``invglow.invertible.actnorm.ActNorm``."""

    state: Mapping[str, Any]
    """What would have been its attributes."""

    def __new__(cls, *args: object, **keywords: object) -> "Foreign":
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *args: object, **keywords: object) -> None:
        """Arguments of a constructor mean nothing without the class."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise Refused(f"the state of {shown(self)} is a {type(state).__name__}")
        self.state = state

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


class StorageType(_Inert):
    """A class of storages, which is no more than a type of elements."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Function(_Inert):
    """An admitted name that the file may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)


class _OrderedDict(dict[Any, Any]):
    """State dicts are OrderedDicts with version numbers as an attribute, of no use here."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Forget the attributes."""


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: object) -> StoredTensor:
    return StoredTensor(storage, offset, size, stride)


def _parameter(data: StoredTensor, *_: object) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Refused("it describes a parameter that is no tensor")
    return data


_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")

ADMITTED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _Function(_OrderedDict),
    ("builtins", "set"): _Function(set),
    ("__builtin__", "set"): _Function(set),
    ("torch", "Size"): _Function(tuple),
    # A device without its class: everything is read to the CPU.
    ("torch", "device"): _Function(lambda *_: None),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    **{("torch", f"{name}Storage"): StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", name): getattr(torch, name) for name in (*_DTYPES, "bool")},
}
"""Names, by module, that a file may use, and what each stands for."""

ADMITTED_CLASSES = ("invglow.", "torch.nn.modules.", "torch.nn.parallel.")
"""Modules whose names become classes of inert objects, whatever they were."""


@lru_cache(maxsize=4096)
def _class_of(path: str) -> type[Foreign]:
    return type("Foreign", (Foreign,), {"__slots__": (), "path": path})


def admitted(module: str, name: str) -> object:
    """What a file means by a name; raises :class:`Refused` unless it is admitted."""
    if (module, name) in ADMITTED:
        return ADMITTED[module, name]
    if f"{module}.".startswith(ADMITTED_CLASSES):
        return _class_of(f"{module}.{name}")
    raise Refused(f"it uses {shown(f'{module}.{name}')}, which has no place in stored weights")


class _Unpickler(pickle.Unpickler):
    """The standard unpickler; every import and every storage goes through this module."""

    def __init__(self, data: bytes, storage: Callable[[object], object]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        return admitted(module, name)

    def persistent_load(self, identity: object) -> Any:
        return self._storage(identity)


def end_of_pickle(data: bytes, start: int = 0) -> int:
    """Where the pickle that starts at ``start`` ends, after a look at its opcodes.

    Refuses what can be seen before anything is made: names that are not admitted, and positions in
    the memo beyond the length of the file, for which the unpickler would reserve memory.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            admitted(module, name)
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise Refused("it is damaged (a position in the memo)")
        elif opcode.name.startswith("EXT"):
            raise Refused("it uses names by number")
    return stream.tell()


def unpickle(data: bytes, storage: Callable[[object], object]) -> object:
    """The object of a pickle that :func:`end_of_pickle` has looked at.

    ``storage`` turns the identity of something that lies outside the pickle into that thing.
    """
    return _Unpickler(data, storage).load()
