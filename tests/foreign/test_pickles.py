"""Files of torch.save: both serialisations, every layout of tensors, damage anywhere."""

import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.foreign.authors import model_from_authors
from oodflow.foreign.pickles import read_torch_file, state_dict_of
from oodflow.foreign.restricted import Foreign, StoredTensor

AUTHORS_FILE = Path(__file__).parent / "parity" / "authors_format_glow_K2_h16.th"
BOTH = pytest.mark.parametrize("new", [True, False], ids=["new", "old"])


def tensors() -> dict[str, Tensor]:
    """One of every kind: types, layouts, shared memory."""
    random_ = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, generator=random_)
    numbers = {
        "whole": whole,
        "transposed": whole.t(),
        "offset": whole[2:5, 1::2],
        "element": whole[3, 2],
        "expanded": whole[:1].expand(5, 4),
        "parameter": nn.Parameter(whole * 2),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "flag": torch.tensor([True, False, True]),
        "complex": torch.randn(3, dtype=torch.complex64, generator=random_),
    }
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        numbers[str(dtype)] = torch.randn(3, 2, generator=random_).to(dtype)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        numbers[str(dtype)] = torch.arange(5, dtype=dtype)
    return numbers


def saved(path: Path, thing: object, new: bool, **options: int) -> Path:
    torch.save(thing, path, _use_new_zipfile_serialization=new, **options)
    return path


@BOTH
def test_state_dicts_come_back_as_torch_reads_them(tmp_path: Path, new: bool) -> None:
    file = saved(tmp_path / "state.pt", OrderedDict(tensors()), new)
    expected = torch.load(file, weights_only=True)
    found = state_dict_of(read_torch_file(file))
    assert list(found) == list(expected)
    for name, value in found.items():
        other = expected[name]
        assert value.dtype == other.dtype and value.shape == other.shape, name
        assert value.stride() == other.stride(), name
        assert torch.equal(value, other.data), name
        assert not value.requires_grad and type(value) is Tensor


@BOTH
def test_shared_storages_stay_shared(tmp_path: Path, new: bool) -> None:
    found = state_dict_of(read_torch_file(saved(tmp_path / "state.pt", tensors(), new)))
    found["whole"][3, 2] = 77.0
    assert found["element"] == 77.0 and found["transposed"][2, 3] == 77.0
    assert found["parameter"].max() < 77.0


@BOTH
def test_a_modules_own_state_dict_is_read(tmp_path: Path, new: bool) -> None:
    """Its OrderedDict carries version numbers as an attribute."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert hasattr(network.state_dict(), "_metadata")
    found = state_dict_of(read_torch_file(saved(tmp_path / "state.pt", network.state_dict(), new)))
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@BOTH
def test_any_protocol_of_pickle_is_read(tmp_path: Path, new: bool, protocol: int) -> None:
    file = saved(tmp_path / "state.pt", {"w": torch.ones(3)}, new, pickle_protocol=protocol)
    assert state_dict_of(read_torch_file(file))["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_wrapped_and_prefixed_state_dicts_are_found(tmp_path: Path, wrapper: str) -> None:
    state = {f"module.{name}": value for name, value in tensors().items()}
    training = {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1, "device": torch.device("cpu")}}
    found = state_dict_of(read_torch_file(saved(tmp_path / "state.pt", training, True)))
    assert found.keys() == tensors().keys()


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ({}, "got {}"),
        (7, "got 7"),
        (torch.zeros(2), "got something of type StoredTensor"),
        ({"a": 3}, "'a' is a int"),
        ({3: torch.zeros(2)}, "got 3"),
        ({"a\nb": torch.zeros(2)}, r"got 'a\\nb'"),
        (nn.ReLU(), "an object of 'torch.nn.modules.activation.ReLU'"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path: Path, thing: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_dict_of(read_torch_file(saved(tmp_path / "state.pt", thing, True)))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", r"got \[\[\[\[\["),
        (pickle.dumps(10**5000, protocol=2), "got something of type int"),
        (pickle.dumps([10**5000], protocol=2), "got something of type list"),
    ],
    ids=["nested", "long", "nested long"],
)
@BOTH
def test_what_cannot_be_written_out_is_named_nevertheless(
    tmp_path: Path, write_saved: Callable, new: bool, pickled: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        state_dict_of(read_torch_file(write_saved(tmp_path / "state.pt", pickled, new)))


def test_a_dict_that_contains_itself_is_no_state_dict(tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["model"] = loop
    with pytest.raises(UserError, match="state dict"):
        state_dict_of(read_torch_file(saved(tmp_path / "state.pt", loop, True)))


@BOTH
@pytest.mark.filterwarnings("ignore:.*source code.*")
def test_whole_modules_become_placeholders(tmp_path: Path, new: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    found = read_torch_file(saved(tmp_path / "model.pt", network, new))
    assert isinstance(found, Foreign)
    assert found.path == "torch.nn.modules.container.Sequential"
    first = found.state["_modules"]["0"]
    weight = first.state["_parameters"]["weight"]
    assert isinstance(weight, StoredTensor) and torch.equal(weight.tensor(), network[0].weight)
    assert first.state["kernel_size"] == (3, 3)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.th", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read"):
            read_torch_file(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"\x89PNG\r\n\x1a\n" * 50, b"PK\x03\x04", bytes(5000), b"\x80\x02N."],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "thing"
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged, cut short, or not a file of torch.save"):
        read_torch_file(file)


def old_file(tmp_path: Path) -> bytes:
    torch.manual_seed(0)
    state = {"first": torch.randn(40, 5), "second": torch.randn(300).double()}
    return saved(tmp_path / "old.pt", state, new=False).read_bytes()


# Parts of the whole, and counts of bytes from the end: the old file ends with its storages.
CUTS = (0.0, 0.001, 0.01, *(step / 12 for step in range(1, 12)), 0.999, -1, -2, -8, -300, -2400)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["authors", "old"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, cut: float) -> None:
    content = AUTHORS_FILE.read_bytes() if kind == "authors" else old_file(tmp_path)
    file = tmp_path / "cut.th"
    file.write_bytes(content[: int(cut * len(content)) if cut >= 0 else int(cut)])
    with pytest.raises(UserError, match=f"{file}: ") as caught:
        read_torch_file(file)
    assert "\n" not in str(caught.value)


def test_an_old_file_is_refused_at_every_length(tmp_path: Path) -> None:
    content, file = old_file(tmp_path), tmp_path / "cut.th"
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(UserError):
            read_torch_file(file)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("claim", [301, 2**31 - 1])
@BOTH
def test_a_storage_that_claims_more_than_there_is_is_refused(
    tmp_path: Path, write_zip: Callable, new: bool, claim: int
) -> None:
    """Its length of 300 follows "cpu" in the pickle, M\x2c\x01; the opcode J takes four bytes."""
    state = {"w": torch.arange(300).double(), "other": torch.zeros(1000)}
    file = saved(tmp_path / "model.pt", state, new)
    honest = b"cpuq\x06M\x2c\x01tq\x07Q"
    lie = b"cpuq\x06J" + claim.to_bytes(4, "little") + b"tq\x07Q"
    if new:
        parts = members(file)
        (name,) = (name for name in parts if name.endswith("data.pkl"))
        assert parts[name].count(honest) == 1
        write_zip(file, parts | {name: parts[name].replace(honest, lie)})
    else:
        honest = honest.replace(b"tq\x07", b"Ntq\x07")
        lie = lie.replace(b"tq\x07", b"Ntq\x07")
        content = file.read_bytes()
        assert content.count(honest) == 1
        file.write_bytes(content.replace(honest, lie))
    with pytest.raises(UserError, match="claims .* bytes"):
        read_torch_file(file)


def test_lengths_in_front_of_old_storages_are_checked(tmp_path: Path) -> None:
    content = old_file(tmp_path)
    length = (300).to_bytes(8, "little")
    for lie in (0, 299, 301, 2**62, 2**64 - 1):
        file = tmp_path / "model.pt"
        file.write_bytes(replaced(content, length, lie.to_bytes(8, "little")))
        with pytest.raises(UserError, match="claims 2400 bytes"):
            read_torch_file(file)


@pytest.mark.parametrize(
    ("shape", "stride"), [((301,), (1,)), ((2, 300), (300, 1)), ((3,), (150,)), ((2**40,), (0,))]
)
def test_a_tensor_beyond_its_storage_is_refused(
    tmp_path: Path, write_zip: Callable, shape: tuple, stride: tuple
) -> None:
    parts = members(saved(tmp_path / "model.pt", {"w": torch.zeros(300)}, new=True))
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    layout = b"M\x2c\x01\x85q\x08K\x01\x85q\x09"
    assert parts[name].count(layout) == 1

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + v.to_bytes(8, "little") for v in values) + b"t"

    lie = parts[name].replace(layout, numbers(shape) + b"q\x08" + numbers(stride) + b"q\x09")
    with pytest.raises(UserError, match="describes a tensor"):
        read_torch_file(write_zip(tmp_path / "lie.pt", parts | {name: lie}))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """Nothing that torch writes, and the way to make a small file fill the memory."""
    parts = members(saved(tmp_path / "model.pt", {"w": torch.zeros(1000)}, new=True))
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(file)


def test_big_endian_files_are_refused(tmp_path: Path, write_zip: Callable) -> None:
    parts = members(saved(tmp_path / "model.pt", {"w": torch.zeros(3)}, new=True))
    big = {name: b"big" if name.endswith("byteorder") else part for name, part in parts.items()}
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(write_zip(tmp_path / "big.pt", big))


@pytest.mark.parametrize("where", ["file", "pickle", "old"])
def test_flipped_bytes_are_refused_or_harmless(
    tmp_path: Path, write_zip: Callable, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Single bytes of a whole file, of its pickle behind a proper checksum, and of an old file."""
    ran: list[object] = []
    monkeypatch.setattr("os.system", ran.append)
    monkeypatch.setattr("torch.load", ran.append)
    draw = random.Random(where)
    parts = members(AUTHORS_FILE)
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    content = {"file": AUTHORS_FILE.read_bytes(), "pickle": parts[name], "old": old_file(tmp_path)}
    outcomes = {True: 0, False: 0}
    file = tmp_path / "flipped.th"
    for _ in range(300):
        damaged = bytearray(content[where])
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        if where == "pickle":
            write_zip(file, parts | {name: bytes(damaged)})
        else:
            file.write_bytes(damaged)
        try:
            read = read_torch_file(file)
            state_dict_of(read) if where == "old" else model_from_authors(read)
        except UserError as error:
            assert "\n" not in str(error)
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert not ran
    # Both ways out are taken, or this shows nothing.
    assert min(outcomes.values()) > 0
