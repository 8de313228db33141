"""Reads files of ``torch.save`` without executing anything in them, in the zip format and in the legacy format of torch < 1.6.

A tensor is read only when it is needed. Each size that a file claims is compared with the size of the file.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from deit.checkpoints.key_maps import printable
from deit.checkpoints.pickles import MAX_PICKLE, CorruptError, PickleMachine, Storage, StoredTensor, UnsafeError
from deit.errors import CheckpointError, DeiTError

MAX_DIRECTORY = 4 * 2**20  # bytes of a zip directory; torch.save writes about 100 per tensor
MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format
ZIP_HEAD = b"PK\x03\x04"


@dataclass(frozen=True)
class TorchFile:
    """Opened file of ``torch.save``.

    Attributes:
        path: the file.
        content: the saved object: dictionaries, lists, tuples, numbers, strings and :class:`StoredTensor`. The content of an
            ``argparse.Namespace`` is left out.
        starts: key of a storage -> position of its first byte.
        checksums: key of a storage -> CRC-32 of its bytes, where the file has one.
    """

    path: Path
    content: Any
    starts: Mapping[str, int]
    checksums: Mapping[str, int] = field(default_factory=dict)

    def read(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Maps tensors into memory. Writing to them does not change the file.

        Raises:
            CheckpointError: the file changed since it was opened, or its values are not those that were saved.
        """
        try:
            memory = np.memmap(self.path, np.uint8, "c")
            storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
            values = {key: self._values(memory, storage) for key, storage in storages.items()}
            return {name: _view(values[tensor.storage.key], tensor) for name, tensor in tensors.items()}
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, DeiTError):
                raise
            raise CheckpointError(f"{self.path} can no longer be read ({error})", "load the model again") from error

    def _values(self, memory: np.ndarray, storage: Storage) -> np.ndarray:
        """Returns the bytes of a storage, aligned in memory."""
        start = self.starts[storage.key]
        values = memory[start : start + storage.nbytes]
        if len(values) != storage.nbytes:
            raise ValueError("it is shorter than before")
        checksum = self.checksums.get(storage.key)
        if checksum is not None and zlib.crc32(values.data) != checksum:
            raise CheckpointError(f"{self.path} is corrupt (a tensor has another checksum)", "copy or save it again")
        return values if values.ctypes.data % storage.dtype.itemsize == 0 else values.copy()


def open_torch_file(path: Path) -> TorchFile:
    """Opens a file of ``torch.save``.

    Raises:
        CheckpointError: the file is corrupt, or has objects that could only be loaded by executing code.
    """
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(len(ZIP_HEAD)) == ZIP_HEAD
            stream.seek(0)
            return _open_zip(path, stream) if is_zip else _open_legacy(path, stream)
    except DeiTError:
        raise
    except UnsafeError as error:
        kind = printable(str(error))
        raise CheckpointError(
            f"{path} has an object of type {kind}, which is not a tensor and may execute code when it is loaded",
            "if you trust it, load it where it was saved and save only the weights: torch.save({'model': state_dict}, path)",
        ) from error
    except Exception as error:  # whatever a damaged file leads to
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0][:200]
        raise CheckpointError(f"{path} is corrupt ({printable(reason)})", "copy or save it again") from error


def _open_zip(path: Path, stream: IO[bytes]) -> TorchFile:
    """Opens an archive with the pickle ``NAME/data.pkl`` and the storages ``NAME/data/KEY``."""
    size = path.stat().st_size
    _check_directory_size(path, stream, size)
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise CorruptError("two members have one name")
        if any(Path(name).name == "constants.pkl" for name in members):
            problem = f"{path} is a TorchScript program"
            raise CheckpointError(problem, "save only the weights: torch.save(model.state_dict(), path)")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            problem = f"{path} has compressed members, which torch.save never writes"
            raise CheckpointError(problem, "save it again with torch.save")
        if sum(member.file_size for member in members.values()) > size:
            raise CheckpointError(f"{path} claims more bytes than it has", "copy or save it again")
        folder = next(
            (name.removesuffix("data.pkl") for name in members if name.count("/") < 2 and name.endswith("data.pkl")), None
        )
        if folder is None:
            raise CorruptError("it has no data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and _read_member(archive, order) != b"little":
            raise CheckpointError(f"{path} was saved by a big-endian computer", "save it again as safetensors")
        machine = PickleMachine(path, size)
        content = machine.run(io.BytesIO(_read_member(archive, members[f"{folder}data.pkl"])))
    starts, checksums = {}, {}
    for key, storage in machine.storages.items():
        info = members.get(f"{folder}data/{key}")
        if info is None or info.file_size != storage.nbytes:
            raise CorruptError(f"the storage {key[:20]} is missing or has another size")
        starts[key] = _start(stream, info)
        if starts[key] + storage.nbytes > size:
            raise CorruptError("it ends too early")
        if info.CRC:  # torch.save can be told not to compute it
            checksums[key] = info.CRC
    return TorchFile(path, content, starts, checksums)


def _open_legacy(path: Path, stream: IO[bytes]) -> TorchFile:
    """Opens a file of five pickles (magic number, version, system, content, keys), followed by the storages."""
    size = path.stat().st_size
    head = io.BytesIO(stream.read(MAX_PICKLE + 1))
    machine = PickleMachine(path, size)
    magic, version, system = (machine.run(head) for _ in range(3))
    if magic != MAGIC_NUMBER or version != PROTOCOL_VERSION:
        raise CorruptError("it is not a file of torch.save")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was saved by a big-endian computer", "save it again as safetensors")
    content, keys = machine.run(head), machine.run(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != machine.storages.keys():
        raise CorruptError("its storages are not those of its tensors")
    starts, position = {}, head.tell()
    for key in keys:
        stream.seek(position)
        storage, numel = machine.storages[key], int.from_bytes(stream.read(8), "little")
        starts[key], position = position + 8, position + 8 + storage.nbytes
        if numel != storage.numel or position > size:
            raise CorruptError("it ends too early, or a storage has another size")
    return TorchFile(path, content, starts)


def _check_directory_size(path: Path, stream: IO[bytes], size: int) -> None:
    """Refuses an archive with a large directory before it is read: each entry becomes an object."""
    stream.seek(max(0, size - 2**16))
    tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    length = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    if length == 0xFFFFFFFF and (end := tail.rfind(b"PK\x06\x06")) >= 0:
        length = int.from_bytes(tail[end + 40 : end + 48], "little")
    if length > MAX_DIRECTORY:
        raise CheckpointError(f"{path} has a directory of {length:,} bytes", f"the limit is {MAX_DIRECTORY:,}")
    stream.seek(0)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Reads a member up to the limit. Its checksum is compared unless torch.save was told not to compute it."""
    with archive.open(member) as stream:
        if not member.CRC:
            stream._expected_crc = None  # type: ignore[attr-defined]
        return stream.read(MAX_PICKLE + 1)


def _start(stream: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Returns the position of the data of a member that is not compressed."""
    stream.seek(member.header_offset)
    header = stream.read(30)
    if header[:4] != ZIP_HEAD:
        raise CorruptError("a member has no header")
    return member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _view(values: np.ndarray, tensor: StoredTensor) -> Tensor:
    if not len(values):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.from_numpy(values).view(tensor.dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)
