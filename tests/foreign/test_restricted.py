"""Pickles that try to run something: refused in both serialisations, and nothing has run."""

import builtins
import codecs
import functools
import importlib
import operator
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oodflow.errors import UserError
from oodflow.foreign.pickles import read_torch_file
from oodflow.foreign.restricted import (
    ADMITTED,
    Foreign,
    Refused,
    StorageType,
    admitted,
    end_of_pickle,
    unpickle,
)

BOTH = pytest.mark.parametrize("new", [True, False], ids=["new", "old"])


class Call:
    """Pickles as a call, the classic way to make an unpickler run something."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce_ex__(self, protocol: object) -> tuple:
        return self.parts


def runs(marker: Path) -> dict[str, object]:
    """Ways to create the marker file, each of which works with the plain unpickler."""
    command = f"touch {marker}"
    opened = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(builtins.eval, opened),
        "builtins.exec": Call(builtins.exec, opened),
        "builtins.getattr": Call(builtins.getattr, Call(importlib.import_module, "os"), "system"),
        "builtins.open": Call(builtins.open, str(marker), "w"),
        "builtins.map": Call(list, Call(map, os.system, [command])),
        "subprocess": Call(subprocess.check_call, ["touch", str(marker)]),
        "functools.partial": Call(functools.partial(os.system, command)),
        "operator": Call(operator.methodcaller("touch"), marker),
        "codecs": Call(codecs.decode, b"61", "hex"),
        "torch.load": Call(torch.load, str(marker)),
        "torch.hub": Call(torch.hub.load, "a/b", "c"),
        "torch function": Call(torch.save, [1], str(marker)),
        "nested in a dict": {"weights": [1, (2, Call(os.system, command))]},
        "in a state": {"state": Call(set, [1], state=Call(os.system, command))},
    }


@BOTH
@pytest.mark.parametrize("way", runs(Path("marker")))
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_and_run_nothing(
    tmp_path: Path, write_saved: Callable, way: str, protocol: int, new: bool
) -> None:
    marker = tmp_path / "marker"
    pickled = pickle.dumps(runs(marker)[way], protocol=protocol)
    file = write_saved(tmp_path / "model.th", pickled, new)
    with pytest.raises(UserError, match="nothing of it was run") as caught:
        read_torch_file(file)
    assert str(caught.value).startswith(f"{file}: refused")
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_gadgets_would_run_with_the_plain_unpickler(tmp_path: Path) -> None:
    """Else their refusal would mean nothing."""
    marker = tmp_path / "marker"
    for way in ("os.system", "builtins.eval", "builtins.map", "functools.partial", "operator"):
        pickle.loads(pickle.dumps(runs(marker)[way]))
        assert marker.exists()
        marker.unlink()


@BOTH
def test_torch_save_of_a_gadget_is_refused_by_name(tmp_path: Path, new: bool) -> None:
    file, marker = tmp_path / "model.th", tmp_path / "marker"
    gadget = {"model": Call(os.system, f"touch {marker}"), "weights": torch.zeros(3)}
    torch.save(gadget, file, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"it uses '(posix|nt)\.system'"):
        read_torch_file(file)
    assert not marker.exists()


def foreign(state: bytes) -> bytes:
    """A pickle of an authors' object whose state is made by the given opcodes."""
    return b"\x80\x02cinvglow.models.glow\nConv2d\n)\x81" + state + b"b."


@BOTH
def test_a_call_inside_the_state_of_a_placeholder_is_refused(
    tmp_path: Path, write_saved: Callable, new: bool
) -> None:
    marker = tmp_path / "marker"
    command = f"touch {marker}".encode()
    call = b"cposix\nsystem\nX" + struct.pack("<I", len(command)) + command + b"\x85R"
    file = write_saved(tmp_path / "model.th", foreign(b"}X\x01\x00\x00\x00a" + call + b"s"), new)
    with pytest.raises(UserError, match=r"posix\.system"):
        read_torch_file(file)
    assert not marker.exists()


def test_a_placeholder_stores_its_state_and_nothing_else() -> None:
    pickled = foreign(b"}(X\x05\x00\x00\x00emptyK\x00X\x08\x00\x00\x00__call__K\x07u")
    made = unpickle(pickled, lambda identity: None)
    assert isinstance(made, Foreign)
    assert (made.path, made.name) == ("invglow.models.glow.Conv2d", "Conv2d")
    assert made.state == {"empty": 0, "__call__": 7}
    assert not callable(made) and not hasattr(made, "empty") and not hasattr(made, "__dict__")


def test_names_are_refused_before_anything_is_made() -> None:
    """The name comes last, behind an object that would be made first."""
    pickled = b"\x80\x02" + b"cinvglow.a\nB\n)R" + b"cos\nsystem\n" + b"."
    with pytest.raises(Refused, match=r"os\.system"):
        end_of_pickle(pickled)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("torch", "load"),
        ("torch", "FloatStorage.from_file"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.nn", "modules.conv.os.system"),
        ("torch.nn.modulesx", "A"),
        ("invglowx", "A"),
        ("collections", "OrderedDict.fromkeys"),
        ("oodflow.foreign.restricted", "unpickle"),
        ("torch.storage", "_load_from_bytes"),
    ],
)
def test_names_beyond_the_list_are_refused(module: str, name: str) -> None:
    with pytest.raises(Refused):
        admitted(module, name)


@pytest.mark.parametrize("name", ["ActNorm", "os.system", "__class__.__init__.__globals__", ""])
def test_names_of_the_authors_package_are_only_paths(name: str) -> None:
    made = admitted("invglow.invertible.actnorm", name)
    assert isinstance(made, type) and issubclass(made, Foreign)
    assert made.path == f"invglow.invertible.actnorm.{name}"
    assert made(1, a=2).state == {}


@pytest.mark.parametrize(
    "state",
    [b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x04\x00\x00\x00pathX\x01\x00\x00\x00xs\x86"],
    ids=["attributes", "slots"],
)
@pytest.mark.parametrize("name", [*ADMITTED, ("invglow.a", "B"), ("torch.nn.modules.a", "B")])
def test_a_file_cannot_change_what_a_name_stands_for(name: tuple[str, str], state: bytes) -> None:
    """The opcode BUILD gives state to the object on the stack, here the admitted thing itself."""
    pickled = b"\x80\x02c" + "\n".join(name).encode() + b"\n" + state + b"b."
    before = admitted(*name)
    # The reader of files turns each of these into a UserError.
    with pytest.raises((Refused, TypeError, AttributeError, pickle.UnpicklingError)):
        unpickle(pickled, lambda identity: None)
    assert admitted(*name) is before
    assert not hasattr(before, "a")
    if isinstance(before, type):
        assert before.path == ".".join(name)


def test_storage_types_are_no_functions() -> None:
    assert isinstance(admitted("torch", "FloatStorage"), StorageType)
    assert not callable(admitted("torch", "FloatStorage"))


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # the memo's position 2**31 − 1: 16 GB if believed
        b"\x80\x02Np2147483647\n.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00N.",  # a bytearray of a terabyte
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02\x82\x01.",  # a name by its number in copyreg
        b"\x80\x02\x8a\xff.",
        b"\x80\x02" + b"(" * 100 + b".",
        b"\x80\x02.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x00N.",  # a frame longer than the file
        b"",
    ],
)
@BOTH
def test_malformed_pickles_are_refused_in_one_line(
    tmp_path: Path, write_saved: Callable, pickled: bytes, new: bool
) -> None:
    file = write_saved(tmp_path / "model.th", pickled, new)
    with pytest.raises(UserError) as caught:
        read_torch_file(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (2, 3), (3, 1)),  # not a storage at all: the first argument is None
        (-1, (1,), (1,)),
        (0, (2,), (1, 1)),
        (0, (2.0,), (1,)),
        (0, ("a",), (1,)),
        (0, 5, 1),
    ],
)
def test_impossible_tensors_are_refused(arguments: tuple) -> None:
    inner = pickle.dumps((None, *arguments, False, None), protocol=2)[2:-1]
    with pytest.raises((Refused, TypeError)):
        unpickle(b"\x80\x02" + TENSOR + inner + b"R.", lambda identity: None)
