"""Opens safetensors and torch.save files safely. The format is detected from the content, and no code in a file is executed."""

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

from deit.checkpoints.key_maps import printable
from deit.errors import CheckpointError
from deit.hub import shard_names
from deit.system.files import read_json

MAX_HEADER = 16 * 2**20  # bytes of a safetensors header; a model with 300 tensors has 30,000
MAX_PICKLE = 8 * 2**20  # bytes of pickled objects in a torch file, without the data of tensors
MAX_OPCODES = 1_000_000  # of a pickle; each may create an object. A model with its optimizer has 20,000
MAX_VALUE_SIZE = 10_000_000  # nested values in a pickled value; shared ones count each time
MAX_TENSORS = 20_000
MAX_DIMENSION = 2**63 - 1  # the limit of torch; the header of an empty tensor could claim more

# Globals that a pickle may reference. NumPy scalars are excluded: with dtype "O", their constructor unpickles any object.
SAFE_GLOBALS: list[Any] = [argparse.Namespace]
_DTYPE_NAMES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
_STORAGE_NAMES = ("Half", "BFloat16", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")
_ALLOWED_GLOBALS = {
    "argparse Namespace",
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.storage UntypedStorage",
    *(f"torch {name}" for name in _DTYPE_NAMES),
    *(f"torch {name}Storage" for name in _STORAGE_NAMES),
}
_LOAD_LOCK = threading.Lock()
MODEL_KEYS = ("model", "state_dict")
EMA_KEYS = ("model_ema", "state_dict_ema")
_DTYPES = {  # name in a safetensors header -> dtype
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
        loaded: tensors of a torch file, which are memory-mapped when it is opened; None for a safetensors file.
    """

    path: Path
    entries: Mapping[str, Entry]
    loaded: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Reads the tensors of these names, on the CPU.

        Raises:
            CheckpointError: the file changed since it was opened.
        """
        if self.loaded is not None:
            return {name: self.loaded[name] for name in names}
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in names}
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} can no longer be read ({error})", "load the model again") from error
        if any((tuple(tensor.shape), tensor.dtype) != self.entries[name] for name, tensor in tensors.items()):
            raise CheckpointError(f"{self.path} changed while it was read", "load the model again")
        return tensors


def open_tensors(path: Path, ema: bool = False) -> TensorFile:
    """Opens a file of safetensors or of ``torch.save``, in its current or legacy format. The file extension is irrelevant.

    Args:
        path: the file.
        ema: of a training checkpoint, read the exponential moving average of the weights.

    Raises:
        CheckpointError: the file is missing, of another format, corrupt, or inconsistent with its size; it has no moving
            average; or it has objects that could only be loaded by executing code.
    """
    head, size = _head(path), path.stat().st_size
    if head[8:9] == b"{":
        if ema:
            raise CheckpointError(f"{path} has no moving average of the weights", "load it without ema")
        file = open_safetensors(path)
        _check_count(path, file.entries)
        return file
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        return _open_torch(path, size, ema, mmap=True)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        with path.open("rb") as stream:
            for _ in range(5):  # magic number, protocol, system, content, and keys of the storages
                _check_pickle(path, stream)
        return _open_torch(path, size, ema, mmap=False)
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
        path, {name: Entry(shape, _dtype(path, name, _DTYPES.get(dtype, dtype))) for name, (shape, dtype) in header.items()}
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


def _check_zip(path: Path, size: int) -> None:
    """Refuses an archive that is larger when read. torch.save does not compress."""
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
        raise CheckpointError(f"{path} is a corrupt zip archive ({error})", "copy or save it again") from error


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo], size: int) -> None:
    if any(Path(member.filename).name == "constants.pkl" for member in members):
        raise CheckpointError(f"{path} is a TorchScript program", "save only the weights: torch.save(model.state_dict(), path)")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path} has compressed members, which torch.save never writes", "save it again with torch.save")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} claims more bytes than it has", "copy or save it again")


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Scans a pickle without loading it. Refuses large content and globals other than tensors and plain containers.

    The safe globals of torch include more, with which a few bytes can allocate any amount of memory. Nested tuples that each
    contain another one twice can take any amount of time, because they are hashed as keys. The size of each value is therefore
    limited.
    """
    sizes = _ValueSizes()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
            if count > MAX_OPCODES or (position or 0) > MAX_PICKLE:
                raise CheckpointError(f"{path} has more content besides tensors than a checkpoint", "save only the weights")
            if opcode.name == "GLOBAL" and argument not in _ALLOWED_GLOBALS:
                raise _unsafe(path, str(argument).replace(" ", "."))
            if opcode.name == "STACK_GLOBAL":
                raise CheckpointError(f"{path} uses a newer pickle protocol than torch.save", "save it with torch.save only")
            if sizes.update(opcode, argument) > MAX_VALUE_SIZE:
                raise CheckpointError(f"{path} has values that are nested too deeply", "save only the weights")
    except CheckpointError:
        raise
    except Exception as error:
        raise _corrupt(path, str(error)) from error


class _ValueSizes:
    """Simulates the stack and the memo of a pickle machine with the size of each value in its place.

    The size of a value is the number of values nested in it. Shared values count each time.
    """

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}

    def update(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Executes an opcode and returns the size of the value on top of the stack."""
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif opcode.name == "MARK":
            self.marks.append(len(self.stack))
        else:
            popped = len(opcode.stack_before)
            if pickletools.markobject in opcode.stack_before:
                popped = len(self.stack) - self.marks.pop() + opcode.stack_before.index(pickletools.markobject)
            operands = self.stack[len(self.stack) - popped :]
            del self.stack[len(self.stack) - popped :]
            self.stack += [1 + sum(operands)] * len(opcode.stack_after)
        return self.stack[-1] if self.stack else 0


def _open_torch(path: Path, size: int, ema: bool, mmap: bool) -> TensorFile:
    try:
        content = _load(path, mmap)
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise (_unsafe(path, refused[1]) if refused else _corrupt(path, str(error))) from error
    state = _find_state(path, content, ema)
    _check_count(path, state)
    loaded, total = {}, 0
    for name, value in state.items():
        tensor = _dense_tensor(path, name, value)
        total += tensor.nbytes
        loaded[str(name)] = tensor
    if total > size:  # with a stride of 0, a few bytes could stand for any number of values
        raise CheckpointError(f"{path} claims more values than it has bytes", "save it again with torch.save")
    return TensorFile(path, {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in loaded.items()}, loaded)


def _load(path: Path, mmap: bool) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    with _LOAD_LOCK:  # the safe globals of torch are shared by the whole process
        missing = [kind for kind in SAFE_GLOBALS if kind not in torch.serialization.get_safe_globals()]
        with torch.serialization.safe_globals(missing):
            if path.name.endswith(".safetensors"):  # torch goes by this extension, whatever the content
                with path.open("rb") as file:
                    return torch.load(file, **options)
            return torch.load(path, mmap=mmap, **options)


def _unsafe(path: Path, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has an object of type {printable(kind)}, which is not a tensor and may execute code when it is loaded",
        "if you trust it, load it where it was saved and save only the weights: torch.save({'model': state_dict}, path)",
    )


def _corrupt(path: Path, reason: str) -> CheckpointError:
    first_line = reason.strip().splitlines()[0][:200] if reason.strip() else "it ends too early"
    return CheckpointError(f"{path} is corrupt ({first_line})", "copy or save it again")


def _find_state(path: Path, content: object, ema: bool) -> Mapping[Any, Any]:
    """Returns the state dict in the content of a file: the one of a training checkpoint, or the whole content."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} has a {type(content).__name__}", "save a state dict, or a dict with one under 'model'")
    for key in EMA_KEYS if ema else MODEL_KEYS:
        if isinstance(content.get(key), dict) and content[key]:
            return content[key]  # type: ignore[no-any-return]
    if ema:
        raise CheckpointError(f"{path} has no moving average of the weights ('model_ema')", "load it without ema")
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    keys = ", ".join(printable(str(key)) for key in list(content)[:8])
    raise CheckpointError(
        f"{path} has no weights, only: {keys or 'nothing'}", "save a state dict, or a dict with one under 'model'"
    )


def _dense_tensor(path: Path, name: object, value: object) -> Tensor:
    if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(
            f"{path} has an object of type {type(value).__name__} as {printable(str(name))}", "a state dict has only tensors"
        )
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointError(f"{printable(name)} in {path} is not a dense tensor on the CPU", "save it as one")
    _dtype(path, name, value.dtype)
    return value.detach()


def _dtype(path: Path, name: str, dtype: object) -> torch.dtype:
    if dtype not in _DTYPES.values():
        raise CheckpointError(f"{printable(name)} in {path} has dtype {dtype}", f"use one of {', '.join(_DTYPES)}")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _check_count(path: Path, names: Collection[object]) -> None:
    if not 0 < len(names) <= MAX_TENSORS:
        raise CheckpointError(f"{path} has {len(names)} tensors", f"the limits are 1 and {MAX_TENSORS}")
