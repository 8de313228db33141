"""Opens safetensors and torch.save files safely. The format is detected from the content, and no code in a file is executed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from torch import Tensor

from deit.checkpoints.key_maps import printable
from deit.checkpoints.pickles import StoredTensor
from deit.checkpoints.state_dicts import MODEL_ANCHORS, StateDict, find_state_dict, names_average, no_average
from deit.checkpoints.torch_files import ZIP_HEAD, TorchFile, open_torch_file
from deit.errors import CheckpointError
from deit.hub import shard_names
from deit.system.files import read_json

MAX_HEADER = 4 * 2**20  # bytes of a safetensors header; a model with 300 tensors has 30,000
MAX_TENSORS = 20_000
MAX_DIMENSION = 2**63 - 1  # the limit of torch; the header of an empty tensor could claim more

DTYPES = {  # name in a safetensors header -> dtype
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


class Entry(NamedTuple):
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorFile:
    """File of dense floating-point, integer or boolean tensors.

    Attributes:
        path: the file.
        entries: name in the file -> shape and dtype.
        torch_file: the file, if ``torch.save`` wrote it; None for a safetensors file.
        stored: name in the torch file -> its tensor.
        averaged: whether the tensors are known to be a moving average of the weights.
        notes: what else the file has that could have been read.
    """

    path: Path
    entries: Mapping[str, Entry]
    torch_file: TorchFile | None = field(default=None, repr=False)
    stored: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)
    averaged: bool = False
    notes: tuple[str, ...] = ()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Reads the tensors of these names, on the CPU.

        Raises:
            CheckpointError: the file changed since it was opened, or its tensors do not have their checksums.
        """
        if self.torch_file is not None:
            return self.torch_file.read({name: self.stored[name] for name in names})
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in names}
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} can no longer be read ({error})", "load the model again") from error
        if any((tuple(tensor.shape), tensor.dtype) != self.entries[name] for name, tensor in tensors.items()):
            raise CheckpointError(f"{self.path} changed while it was read", "load the model again")
        return tensors


def open_tensors(path: Path, ema: bool = False, anchors: Sequence[str] = MODEL_ANCHORS) -> TensorFile:
    """Opens a file of safetensors or of ``torch.save``, in its current or legacy format. The file extension is irrelevant.

    Args:
        path: the file.
        ema: of a training checkpoint, read the exponential moving average of the weights.
        anchors: names of tensors by which a state dict is found, see :mod:`deit.checkpoints.state_dicts`.

    Raises:
        CheckpointError: the file is missing, of another format, corrupt, or inconsistent with its size; it has no moving
            average; or it has objects that could only be loaded by executing code.
    """
    head, size = _head(path), path.stat().st_size
    if head[8:9] == b"{":
        file = open_safetensors(path)
        if ema and not names_average(file.entries):
            raise no_average(path)
        _check_count(path, file.entries)
        return file
    if head.startswith(ZIP_HEAD) or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        return _open_torch(path, size, ema, anchors)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer instead of the file", "run: git lfs pull")
    raise CheckpointError(
        f"{path} is neither a safetensors nor a torch.save file", "check that it was copied or downloaded completely"
    )


def open_safetensors(path: Path) -> TensorFile:
    """Opens a safetensors file. It may be empty, as for an optimizer before its first step.

    Raises:
        CheckpointError: the file is missing, or is not a valid safetensors file.
    """
    head = _head(path)
    header_size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{":
        raise CheckpointError(f"{path} is not a valid safetensors file (it has no header)", "copy or save it again")
    if header_size > MAX_HEADER:
        raise CheckpointError(f"{path} has a header of {header_size} bytes", f"the limit is {MAX_HEADER}; no model needs more")
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            header = {name: (tuple(tensor.get_shape()), tensor.get_dtype()) for name, tensor in slices.items()}
    except (safetensors.SafetensorError, OSError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file ({error})", "copy or save it again") from error
    if any(dimension > MAX_DIMENSION for shape, _ in header.values() for dimension in shape):
        raise CheckpointError(f"{path} is not a valid safetensors file (a tensor is too large)", "copy or save it again")
    return TensorFile(
        path, {name: Entry(shape, _dtype(path, name, DTYPES.get(dtype, dtype))) for name, (shape, dtype) in header.items()}
    )


def open_index(path: Path, open_file: Callable[[Path], TensorFile] = open_tensors) -> list[TensorFile]:
    """Opens the shards of an index such as ``model.safetensors.index.json``.

    Args:
        path: the index.
        open_file: function that opens a shard.

    Raises:
        CheckpointError: a shard cannot be opened, the index names a file outside its directory, or the tensors in the shards
            are not those of the index.
    """
    shards, weight_map = shard_names(path), read_json(path)["weight_map"]
    _check_count(path, weight_map)
    files = []
    for shard in shards:
        if not (path.parent / shard).is_file():
            raise CheckpointError(f"{path.name} names {shard}, which is missing in {path.parent}", "copy or download it too")
        file = open_file(path.parent / shard)
        expected = {name for name, file_name in weight_map.items() if file_name == shard}
        if differences := expected ^ file.entries.keys():
            name = min(differences)
            problem = (
                f"lacks {printable(name)}" if name in expected else f"has {printable(name)}, which its index does not name"
            )
            raise CheckpointError(f"{file.path} {problem}", "index and shards belong to different models")
        files.append(file)
    return files


def _head(path: Path) -> bytes:
    """Reads the first bytes of a file, which identify its format."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "check the path")
    try:
        with path.open("rb") as stream:
            return stream.read(64)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}", error.strerror or "check the path") from error


def _open_torch(path: Path, size: int, ema: bool, anchors: Sequence[str]) -> TensorFile:
    file = open_torch_file(path)
    state, averaged, notes = _find_state(path, file.content, ema, anchors)
    _check_count(path, state)
    stored = {str(name): _stored_tensor(path, name, value) for name, value in state.items()}
    if sum(tensor.nbytes for tensor in stored.values()) > size:  # with a stride of 0, one value could stand for any number
        raise CheckpointError(f"{path} claims more values than it has bytes", "save it again with torch.save")
    entries = {name: Entry(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    return TensorFile(path, entries, file, stored, averaged, notes)


def _find_state(path: Path, content: object, ema: bool, anchors: Sequence[str]) -> StateDict:
    """Returns the state dict in the content of a file."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} has a {_type_name(content)}", "save a state dict, or a dict with one under 'model'")
    found = find_state_dict(content, anchors, ema, str(path))
    if found is None:
        keys = ", ".join(printable(str(key)) for key in list(content)[:8])
        raise CheckpointError(
            f"{path} has no weights, only: {keys or 'nothing'}", "save a state dict, or a dict with one under 'model'"
        )
    if ema and not found.averaged and not names_average([name for name in found.values if isinstance(name, str)]):
        raise no_average(path)
    return found


def _stored_tensor(path: Path, name: object, value: object) -> StoredTensor:
    if not isinstance(name, str) or not isinstance(value, StoredTensor):
        raise CheckpointError(
            f"{path} has an object of type {_type_name(value)} as {printable(str(name))}", "a state dict has only tensors"
        )
    return value


def _type_name(value: object) -> str:
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__


def _dtype(path: Path, name: str, dtype: object) -> torch.dtype:
    if dtype not in DTYPES.values():
        raise CheckpointError(f"{printable(name)} in {path} has dtype {dtype}", f"use one of {', '.join(DTYPES)}")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _check_count(path: Path, names: Collection[object]) -> None:
    if not 0 < len(names) <= MAX_TENSORS:
        raise CheckpointError(f"{path} has {len(names)} tensors", f"the limits are 1 and {MAX_TENSORS}")
