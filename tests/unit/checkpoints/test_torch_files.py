"""Files of ``torch.save``: every tensor is where torch puts it, and no file makes the reader call, allocate or wait."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from deit.checkpoints.pickles import CorruptError
from deit.checkpoints.tensors import open_tensors
from deit.checkpoints.torch_files import open_torch_file
from deit.errors import CheckpointError
from tests.helpers import noise

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int64, torch.bool)
INT_64 = b"\x8a\x08" + struct.pack("<q", 10**12)
FLOATS = b"ctorch\nFloatStorage\n"


def legacy(*pickles: bytes) -> bytes:
    """Returns a legacy file with this content and keys, without storages."""
    head = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
    return b"".join(pickle.dumps(value, 2) for value in head) + b"".join(pickles)


def storage(numel: bytes, key: bytes = b"0") -> bytes:
    """Returns the opcodes of a storage of floats."""
    return b"(X\x07\0\0\0storage" + FLOATS + b"X\x01\0\0\0" + key + b"X\x03\0\0\0cpu" + numel + b"tQ"


def tensor(numel: bytes, shape: bytes, stride: bytes) -> bytes:
    """Returns the opcodes of a dictionary with one tensor."""
    hooks = b"ccollections\nOrderedDict\n)R"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(numel) + b"K\0" + shape + stride + b"\x89" + hooks + b"tR"
    return b"\x80\x02}X\x01\0\0\0x" + call + b"s."


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_where_torch_puts_them(tmp_path: Path, zipped: bool) -> None:
    matrix = noise(6, 4)
    state = {str(dtype): (noise(3, 5) * 9).to(dtype) for dtype in DTYPES}
    state |= {"transposed": matrix.T, "slice": matrix[1::2, 2:], "tied": matrix, "scalar": torch.tensor(2.5)}
    state |= {"empty": torch.ones(0, 3), "parameter": nn.Parameter(matrix[0]), "expanded": matrix[:1, :1].expand(2, 2)}
    content = {"model": OrderedDict(state), "sizes": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.half}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    file = open_tensors(tmp_path / "a.pth")
    tensors = file.read(file.entries)
    assert tensors.keys() == state.keys()
    for name, expected in state.items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected.detach())
    tensors["tied"].zero_()  # does not change the file
    assert torch.equal(file.read(["tied"])["tied"], matrix)


def big_key(number: int) -> bytes:
    """Returns the opcodes of a multiple of Python's modulus of hashes, and of None."""
    return b"\x8a\x09" + (number * (2**61 - 1)).to_bytes(9, "little") + b"N"


ATTACKS: dict[str, bytes] = {
    "a size that iterates over a storage": b"\x80\x02ctorch\nSize\n" + storage(INT_64) + b"\x85R.",
    "an allocation": b"\x80\x02ctorch\nFloatStorage\n" + INT_64 + b"\x85R.",
    "an untyped allocation": b"\x80\x02ctorch.storage\nUntypedStorage\n" + INT_64 + b"\x85R.",
    "a dictionary of a storage": b"\x80\x02ccollections\nOrderedDict\n" + storage(INT_64) + b"\x85R.",
    "a storage larger than the file": tensor(INT_64, b"K\x01\x85", b"K\x01\x85"),
    "a tensor beyond its storage": tensor(b"K\x01", INT_64 + b"\x85", b"K\x01\x85"),
    "a tensor that repeats its storage": tensor(b"K\x01", INT_64 + b"\x85", b"K\0\x85"),
    "an empty tensor of any size": tensor(b"K\x01", INT_64 + INT_64 + b"K\0\x87", b"K\0K\0K\0\x87"),
    "a negative size": tensor(b"K\x01", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "another persistent object": b"\x80\x02X\x06\0\0\0module" + FLOATS + b"\x86Q.",
    "keys with one hash": b"\x80\x02}(" + b"".join(big_key(number) for number in range(9)) + b"u.",
    "a key that takes long to hash": b"\x80\x02}" + b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Ns.",
    "a distant memo": b"\x80\x02Nr\xff\xff\xff\xff0.",
    "a value that is not there": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02\x85.",
    "a changed tensor": tensor(b"K\0", b")", b")")[:-1] + b"}b.",
    "no end": b"\x80\x02" + b"(" * 1000,
    "nothing but opening brackets": b"\x80\x02" + b"(" * 260_000 + b".",
    "a string longer than the file": b"\x80\x02X\xff\xff\xff\x7f.",
    "a large number in decimals": b"\x80\x02L" + b"9" * 5000 + b"L\n.",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False])
def test_attack_is_refused(tmp_path: Path, attack: str, zipped: bool) -> None:
    path = tmp_path / "evil.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", ATTACKS[attack])
            archive.writestr("a/data/0", b"\0" * 4)
    else:
        path.write_bytes(legacy(ATTACKS[attack], pickle.dumps(["0"], 2)) + struct.pack("<q", 1) + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        open_tensors(path)


def write_zip(path: Path, members: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)


STATE = tensor(b"K\x02", b"K\x02\x85", b"K\x01\x85")
VALUES = struct.pack("<2f", 1.0, 2.0)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("a/data.pkl", STATE)], "storage 0 is missing"),
        ([("a/data.pkl", STATE), ("a/data/0", VALUES + b"\0")], "another size"),
        ([("a/data.pkl", STATE), ("a/data/0", VALUES), ("a/byteorder", b"big")], "big-endian"),
        ([("a/data.pkl", STATE), ("a/data.pkl", STATE), ("a/data/0", VALUES)], "two members have one name"),
        ([("a/data/0", VALUES)], r"no data\.pkl"),
        ([(f"a/data/{number}", b"") for number in range(20)], "has a directory of"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_that_torch_does_not_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[tuple[str, bytes]], problem: str
) -> None:
    monkeypatch.setattr("deit.checkpoints.torch_files.MAX_DIRECTORY", 1000)
    write_zip(tmp_path / "a.pth", members)
    with pytest.raises(CheckpointError, match=problem):
        open_tensors(tmp_path / "a.pth")


def test_flipped_bit_of_a_tensor_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": torch.full((4,), 7.5), "y": torch.ones(2)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<f", 7.5), struct.pack("<f", 7.625), 1))
    file = open_tensors(path)
    with pytest.raises(CheckpointError, match=r"a\.pth is corrupt \(a tensor has another checksum\)"):
        file.read(["x"])
    assert torch.equal(file.read(["y"])["y"], torch.ones(2))


def test_file_without_checksums_is_read(tmp_path: Path) -> None:
    computed = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save({"x": torch.ones(2)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert torch.equal(open_tensors(tmp_path / "a.pth").read(["x"])["x"], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_file_that_shrinks_after_opening_is_reported(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"x": noise(1000)}, path, _use_new_zipfile_serialization=zipped)
    file = open_tensors(path)
    for content in (path.read_bytes()[:900], b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="can no longer be read"):
            file.read(["x"])


def test_old_forms_of_a_state_dict_are_read(tmp_path: Path) -> None:
    """Python 2 saved an OrderedDict as a list of pairs."""
    body = STATE[2 + 7 : -2]  # the tensor alone
    pairs = b"\x80\x02ccollections\nOrderedDict\n](](U\x01x" + body + b"eeR."
    write_zip(tmp_path / "a.pth", [("a/data.pkl", pairs.replace(b"eeR", b"ee\x85R")), ("a/data/0", VALUES)])
    assert open_tensors(tmp_path / "a.pth").read(["x"])["x"].tolist() == [1.0, 2.0]


def test_only_known_errors_are_corrupt_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(legacy(b"\x80\x02.", b""))
    with pytest.raises(CheckpointError) as caught:
        open_torch_file(tmp_path / "a")
    assert isinstance(caught.value.__cause__, CorruptError)
