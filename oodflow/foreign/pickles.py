"""Files of ``torch.save``, in the old and the new format, read without running any code.

The new one is a zip archive: ``NAME/data.pkl`` and the elements of every storage under
``NAME/data/KEY``, none compressed. The old one is a row of pickles (a magic number, the version of
the format, facts about the machine, the object, the keys of the storages) and then, key by key,
the length of each storage and its elements.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from oodflow.errors import UserError
from oodflow.foreign.restricted import (
    Foreign,
    Refused,
    Storage,
    StorageType,
    StoredTensor,
    end_of_pickle,
    shown,
    unpickle,
)

__all__ = ["read_torch_file", "state_dict_of"]

ZIP_MAGIC = b"PK\x03\x04"
OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_VERSION = 1001
LENGTH_BYTES = 8
"""Of the number in front of the elements of a storage in the old serialisation."""


def read_torch_file(path: Path) -> object:
    """What was saved: containers, numbers, strings; tensors and foreign objects as descriptions.

    A tensor is a :class:`~oodflow.foreign.restricted.StoredTensor`, which gives it on request; an
    object of a class of PyTorch's layers or of the authors' package is a
    :class:`~oodflow.foreign.restricted.Foreign`, which stores its state.

    Raises UserError with one line for a file that is missing, damaged, cut short, something else,
    or that names anything beyond what stored weights need. Nothing of the file is ever run.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        return _read_zip(path) if is_zip else _read_old(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Refused as problem:
        raise UserError(f"{path}: refused, and nothing of it was run: {problem}") from None
    # A damaged file makes zipfile, pickletools and pickle fail in many ways, all meaning the same.
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path}: damaged, cut short, or not a file of torch.save ({line[:200]})"
        ) from None


def _read_zip(path: Path) -> object:
    size = path.stat().st_size
    storages: dict[str, Storage] = {}
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise Refused("it is compressed, which files of torch.save are not")
        pickles = [name for name in archive.namelist() if name.count("/") == 1]
        (name,) = [name for name in pickles if name.endswith("/data.pkl")]
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in pickles and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("it was saved on a big-endian machine")

        def storage(identity: object) -> object:
            made = _described_storage(identity, storages, size)
            if isinstance(made, Storage) and made.content is None:
                key = _key_of(identity)
                # Checked before reading, so that no more is read than the file holds.
                stored = archive.getinfo(f"{folder}data/{key}").file_size
                if stored != made.size:
                    raise Refused(f"storage {shown(key)} claims {made.size} bytes and has {stored}")
                made.content = bytearray(archive.read(f"{folder}data/{key}"))
            return made

        data = archive.read(name)
        end_of_pickle(data)
        return unpickle(data, storage)


def _read_old(data: bytes) -> object:
    storages: dict[str, Storage] = {}
    end = 0

    def next_object() -> Any:
        nonlocal end
        start, end = end, end_of_pickle(data, end)
        return unpickle(
            data[start:end], lambda identity: _described_storage(identity, storages, len(data))
        )

    if next_object() != OLD_MAGIC or next_object() != OLD_VERSION:
        raise ValueError("no magic number")
    if not next_object()["little_endian"]:
        raise Refused("it was saved on a big-endian machine")
    saved = next_object()
    keys = next_object()
    if set(keys) != set(storages):
        raise Refused("the storages of its tensors are not those that it lists")
    for key in keys:
        storage = storages[key]
        length = int.from_bytes(data[end : end + LENGTH_BYTES], "little")
        start, end = end + LENGTH_BYTES, end + LENGTH_BYTES + storage.size
        if length != storage.length or end > len(data):
            held = max(len(data) - start, 0)
            raise Refused(
                f"storage {shown(key)} claims {storage.size} bytes; "
                f"the file has {length} elements there, and {held} bytes left"
            )
        storage.content = bytearray(data[start:end])
    return saved


def _key_of(identity: Any) -> str:
    return identity[2]


def _described_storage(identity: Any, known: dict[str, Storage], file_size: int) -> object:
    """The storage of an identity ("storage", type, key, location, length, …), made once a key.

    In the old serialisation the classes of modules come from outside too: ("module", class,
    source file, source).
    """
    kind, type_, *rest = identity
    if kind == "module" and isinstance(type_, type) and issubclass(type_, Foreign):
        return type_
    if kind != "storage" or not isinstance(type_, StorageType):
        raise Refused(f"it refers to something outside that is not a storage: {shown(kind)}")
    key, _, length, *view = rest
    if any(part is not None for part in view):
        raise Refused(f"storage {shown(key)} is a part of another (a format of before PyTorch 0.4)")
    if type(key) is not str or type(length) is not int or length < 0:
        raise Refused(f"storage {shown(key)} has no key, or no length")
    if key not in known:
        known[key] = Storage(type_.dtype, length)
        if known[key].size > file_size:
            raise Refused(
                f"storage {shown(key)} claims {known[key].size} bytes; the file has {file_size}"
            )
    if (known[key].dtype, known[key].length) != (type_.dtype, length):
        raise Refused(f"storage {shown(key)} is described in two ways")
    return known[key]


WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Under these names training scripts put a state dict next to an optimiser's."""


def state_dict_of(saved: object) -> dict[str, Tensor]:
    """The tensors of a saved state dict, by name, on the CPU; shared ones share their memory.

    It may lie in another dict under one of the usual names, and all names may begin with the
    ``module.`` of DataParallel. Raises UserError for anything else.
    """
    if isinstance(saved, Mapping):
        wrapped = (saved.get(name) for name in WRAPPERS)
        saved = next((inner for inner in wrapped if isinstance(inner, Mapping)), saved)
    if not isinstance(saved, Mapping) or not saved:
        raise UserError(f"expected a state dict, names with a tensor each; got {shown(saved)}")
    tensors = dict(_named_tensors(saved))
    prefixed = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if prefixed else name: t for name, t in tensors.items()}


def _named_tensors(saved: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in saved.items():
        # Names end up in messages.
        if not isinstance(name, str) or not name.isprintable():
            raise UserError(f"expected a state dict, names with a tensor each; got {shown(name)}")
        if not isinstance(value, StoredTensor):
            raise UserError(
                "expected a state dict, names with a tensor each; "
                f"{shown(name)} is a {type(value).__name__}"
            )
        yield name, value.tensor()
