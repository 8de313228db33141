"""Files of tensors, told apart by their content and read without running anything that they hold."""

from __future__ import annotations

import argparse
import pickletools
import re
import threading
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from deit.checkpoints.key_maps import shown
from deit.errors import CheckpointError
from deit.hub import shard_names
from deit.system.files import read_json

MAX_HEADER = 16 * 2**20  # bytes; that of a model with 300 tensors is 30 thousand
MAX_PICKLE = 8 * 2**20  # bytes of a torch file that are no tensor's
MAX_OPCODES = 1_000_000  # of a pickle; each may make an object. A model with its optimizer has 20 thousand
MAX_WEIGHT = 10_000_000  # parts of a value in a pickle, shared ones counted each time
MAX_TENSORS = 20_000
MAX_SIDE = 2**63 - 1  # of a tensor: torch counts no further, and an empty one may claim more

# What a pickle may name. numpy's scalars are not among it: their constructor takes any pickled object with the type "O".
ALLOWED: list[Any] = [argparse.Namespace]
_NUMBERS = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
_STORAGES = ("Half", "BFloat16", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")
_NAMED = {
    "argparse Namespace",
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.storage UntypedStorage",
    *(f"torch {name}" for name in _NUMBERS),
    *(f"torch {name}Storage" for name in _STORAGES),
}
_LOADING = threading.Lock()
MODEL_KEYS = ("model", "state_dict")
AVERAGE_KEYS = ("model_ema", "state_dict_ema")
_DTYPES = {
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
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorFile:
    """One file of dense tensors of floats, whole numbers or truths, on the CPU.

    Attributes:
        entries: name in the file -> shape and type.
        loaded: the tensors themselves where opening the file gave them: those of a torch file, mapped from disk.
    """

    path: Path
    entries: Mapping[str, Entry]
    loaded: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names.

        Raises:
            CheckpointError: the file changed since it was opened.
        """
        if self.loaded is not None:
            return {name: self.loaded[name] for name in names}
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in names}
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read any more ({error})", "load the model again") from error
        if any((tuple(tensor.shape), tensor.dtype) != self.entries[name] for name, tensor in tensors.items()):
            raise CheckpointError(f"{self.path} changed while it was read", "load the model again")
        return tensors


def open_tensors(path: Path, average: bool = False) -> TensorFile:
    """Open a file, whatever its name ends in: safetensors, or what ``torch.save`` wrote, new or old.

    Args:
        path: the file.
        average: of a training checkpoint, take the moving average of the weights.

    Raises:
        CheckpointError: missing, neither of these, damaged, too large for what it says, no average in it, or it holds objects
            that only running code could bring back.
    """
    head, size = _head(path), path.stat().st_size
    if head[8:9] == b"{":
        if average:
            raise CheckpointError(f"{path} holds one set of weights and no average", "load it without ema")
        found = open_safetensors(path)
        _check_count(path, found.entries)
        return found
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        return _open_torch(path, size, average, mapped=True)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        with path.open("rb") as stream:
            for _ in range(5):  # marks, contents, and which values follow
                _check_pickle(path, stream)
        return _open_torch(path, size, average, mapped=False)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of git-lfs and not the file itself", "run: git lfs pull")
    raise CheckpointError(
        f"{path} is neither a safetensors file nor one of torch.save", "check that it was copied or downloaded whole"
    )


def open_safetensors(path: Path) -> TensorFile:
    """As :func:`open_tensors`, where nothing else will do. There may be no tensors, as before an optimizer's first step.

    Raises:
        CheckpointError: missing, or no valid safetensors file.
    """
    head = _head(path)
    header = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{":
        raise CheckpointError(f"{path} is no valid safetensors file (it has no header)", "copy or save it again")
    if header > MAX_HEADER:
        raise CheckpointError(
            f"{path} has a header of {header} bytes", f"at most {MAX_HEADER} are read; no model needs as many"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (safetensors.SafetensorError, OSError, OverflowError) as error:
        raise CheckpointError(f"{path} is no valid safetensors file ({error})", "copy or save it again") from error
    if any(side > MAX_SIDE for shape, _ in found.values() for side in shape):
        raise CheckpointError(f"{path} is no valid safetensors file (no tensor is as large)", "copy or save it again")
    return TensorFile(
        path, {name: Entry(shape, _dtype(path, name, _DTYPES.get(dtype, dtype))) for name, (shape, dtype) in found.items()}
    )


def open_index(path: Path, open_file: Callable[[Path], TensorFile] = open_tensors) -> list[TensorFile]:
    """The shards of an index such as ``model.safetensors.index.json``.

    Args:
        path: the index.
        open_file: by which each shard is opened.

    Raises:
        CheckpointError: as from ``open_file``; or the index names a file outside its directory, or shards and index do
            not name the same tensors.
    """
    shards, places = shard_names(path), read_json(path)["weight_map"]
    _check_count(path, places)
    files = []
    for shard in shards:
        if not (path.parent / shard).is_file():
            raise CheckpointError(f"{path.name} names {shard}, which is missing in {path.parent}", "copy or download it too")
        files.append(open_file(path.parent / shard))
        wanted = {name for name, place in places.items() if place == shard}
        if odd := wanted ^ files[-1].entries.keys():
            state = "lacks" if min(odd) in wanted else "holds, and its index does not name,"
            raise CheckpointError(f"{files[-1].path} {state} {shown(min(odd))}", "index and shards belong to different models")
    return files


def _head(path: Path) -> bytes:
    """The first bytes of a file, which tell what it is."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "check the path")
    try:
        with path.open("rb") as stream:
            return stream.read(64)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}", error.strerror or "check the path") from error


def _check_zip(path: Path, size: int) -> None:
    """Refuse an archive that would grow on reading. torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members, size)
            for member in members:
                if member.filename.endswith(".pkl"):
                    with archive.open(member) as stream:
                        _check_pickle(path, stream)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is a damaged zip archive ({error})", "copy or save it again") from error


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo], size: int) -> None:
    if any(Path(member.filename).name == "constants.pkl" for member in members):
        raise CheckpointError(
            f"{path} is a TorchScript program", "save the weights alone: torch.save(model.state_dict(), path)"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            f"{path} holds compressed members, which torch.save never writes", "save it again with torch.save"
        )
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} claims to hold more bytes than it has", "copy or save it again")


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Walk over one pickle without loading it. Refused is what is large, or names anything but tensors and plain containers.

    torch's own list of what may be unpickled is longer: with it a few bytes can ask for any amount of memory. And a few tuples
    within each other, each twice, can ask for any amount of time, once as a key they are hashed: so each value is weighed.
    """
    scales = _Scales()
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(file)):
            if count > MAX_OPCODES or (place or 0) > MAX_PICKLE:
                raise CheckpointError(f"{path} holds more besides tensors than a checkpoint does", "save the weights alone")
            if opcode.name == "GLOBAL" and argument not in _NAMED:
                raise _foreign(path, str(argument).replace(" ", "."))
            if opcode.name == "STACK_GLOBAL":
                raise CheckpointError(
                    f"{path} is in a newer pickle protocol than torch.save's", "save it with torch.save alone"
                )
            if scales.weigh(opcode, argument) > MAX_WEIGHT:
                raise CheckpointError(f"{path} holds values nested beyond measure", "save the weights alone")
    except CheckpointError:
        raise
    except Exception as error:
        raise _damaged(path, str(error)) from error


class _Scales:
    """The stack and the memo of a pickle, with each value's number of parts in place of the value."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}

    def weigh(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Follow one opcode -> the parts of what it made, with those that are shared counted each time."""
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif opcode.name == "MARK":
            self.marks.append(len(self.stack))
        else:
            taken = len(opcode.stack_before)
            if pickletools.markobject in opcode.stack_before:
                taken = len(self.stack) - self.marks.pop() + opcode.stack_before.index(pickletools.markobject)
            parts = self.stack[len(self.stack) - taken :]
            del self.stack[len(self.stack) - taken :]
            self.stack += [1 + sum(parts)] * len(opcode.stack_after)
        return self.stack[-1] if self.stack else 0


def _open_torch(path: Path, size: int, average: bool, mapped: bool) -> TensorFile:
    try:
        content = _load(path, mapped)
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise (_foreign(path, refused[1]) if refused else _damaged(path, str(error))) from error
    state = _find_state(path, content, average)
    _check_count(path, state)
    loaded, total = {}, 0
    for name, value in state.items():
        tensor = _plain_tensor(path, name, value)
        total += tensor.nbytes
        loaded[str(name)] = tensor
    if total > size:  # a stride of 0 lets a few bytes pose as any number of values
        raise CheckpointError(f"{path} claims to hold more values than it has bytes", "save it again with torch.save")
    return TensorFile(path, {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in loaded.items()}, loaded)


def _load(path: Path, mapped: bool) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    with _LOADING:  # torch's list of what may be unpickled is one for the whole process
        missing = [kind for kind in ALLOWED if kind not in torch.serialization.get_safe_globals()]
        with torch.serialization.safe_globals(missing):
            if path.name.endswith(".safetensors"):  # given this name, torch looks at nothing else
                with path.open("rb") as file:
                    return torch.load(file, **options)
            return torch.load(path, mmap=mapped, **options)


def _foreign(path: Path, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds an object of type {shown(kind)}, which is no tensor and may run code when it is loaded",
        "where you trust it, load it where it was made and keep the weights alone: torch.save({'model': state_dict}, path)",
    )


def _damaged(path: Path, reason: str) -> CheckpointError:
    first = reason.strip().splitlines()[0][:200] if reason.strip() else "it ends too early"
    return CheckpointError(f"{path} is damaged ({first})", "copy or save it again")


def _find_state(path: Path, content: object, average: bool) -> Mapping[Any, Any]:
    """The state dict in what a file holds: that of a training checkpoint, or the whole."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}", "a state dict, or one under 'model', is read")
    for key in AVERAGE_KEYS if average else MODEL_KEYS:
        if isinstance(content.get(key), dict) and content[key]:
            return content[key]  # type: ignore[no-any-return]
    if average:
        raise CheckpointError(f"{path} holds no average of the weights (no 'model_ema')", "load it without ema")
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    keys = ", ".join(shown(str(key)) for key in list(content)[:8])
    raise CheckpointError(f"{path} holds no weights, only: {keys or 'nothing'}", "a state dict, or one under 'model', is read")


def _plain_tensor(path: Path, name: object, value: object) -> Tensor:
    if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(
            f"{path} holds an object of type {type(value).__name__} as {shown(str(name))}", "a state dict holds tensors alone"
        )
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointError(f"{shown(name)} in {path} is no dense tensor with values", "save it as one")
    _dtype(path, name, value.dtype)
    return value.detach()


def _dtype(path: Path, name: str, dtype: object) -> torch.dtype:
    if dtype not in _DTYPES.values():
        raise CheckpointError(f"{shown(name)} in {path} is of type {dtype}", f"known are {', '.join(_DTYPES)}")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _check_count(path: Path, names: Collection[object]) -> None:
    if not 0 < len(names) <= MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(names)} tensors", f"1 to {MAX_TENSORS} are read")
