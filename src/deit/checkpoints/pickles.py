"""Interprets the pickles of ``torch.save`` without executing anything.

A pickle is a program that can call any function. Here, only the opcodes that ``torch.save`` writes are interpreted, nothing is
called, and a tensor becomes a :class:`StoredTensor`, which says where its values are. The size of the pickle bounds time and
memory, whatever it claims.
"""

from __future__ import annotations

import argparse
import io
import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deit.errors import CheckpointError

MAX_PICKLE = 8 * 2**20  # bytes of pickled objects, without the data of tensors
MAX_OPCODES = 250_000  # of a file; each may create an object. A model with its optimizer has 20,000
MAX_KEY = 2**31  # integers that are dictionary keys; larger ones can be chosen to have one hash
MAX_INT = 2**63

_STORAGES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
}
_STORAGE_DTYPES = {f"torch {name}Storage": dtype for name, dtype in _STORAGES.items()}
_TENSOR_FUNCTIONS = {"torch._utils _rebuild_tensor": 4, "torch._utils _rebuild_tensor_v2": 6}  # name -> number of arguments
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT, _SIZE, _DEVICE, _NAMESPACE = "collections OrderedDict", "torch Size", "torch device", "argparse Namespace"
_DTYPES = {str(dtype).replace(".", " ") for dtype in _STORAGES.values()}
_GLOBALS = {_ORDERED_DICT, _SIZE, _DEVICE, _NAMESPACE, _PARAMETER, *_TENSOR_FUNCTIONS, *_STORAGE_DTYPES, *_DTYPES}
_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_SET": frozenset(),
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING"}


class CorruptError(Exception):
    """Content that ``torch.save`` does not write."""


class UnsafeError(Exception):
    """Reference to a function or class other than tensors and plain containers, by its name."""


@dataclass(frozen=True)
class Storage:
    """Values of one dtype that are stored together."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """View of a storage: element ``i, j, ...`` is the value at ``offset + i * stride[0] + j * stride[1] + ...``."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor in memory, if it is contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Global:
    """Name of a function, a class or a dtype."""

    name: str


class PickleMachine:
    """Interprets the opcodes that ``torch.save`` writes.

    Args:
        path: the file, for messages.
        size: size of the file.

    Attributes:
        storages: key -> storage, of all that the pickles refer to.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._count = 0

    def run(self, stream: io.BytesIO) -> Any:
        """Returns the value of the next pickle of the stream.

        Raises:
            CorruptError: it is not a pickle of ``torch.save``.
            UnsafeError: it refers to another function or class.
            CheckpointError: it is too long.
        """
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument in self._opcodes(stream):
            self._count += 1
            if self._count > MAX_OPCODES:
                raise self._too_much_content()
            if opcode.proto > 2 or (opcode.name == "PROTO" and argument > 2):
                problem = f"{self.path} uses a newer pickle protocol than torch.save"
                raise CheckpointError(problem, "save it with torch.save only")
            self._execute(opcode.name, argument)
        if len(self._stack) != 1 or self._marks:
            raise CorruptError("a pickle has no single value")
        return self._stack[0]

    def _opcodes(self, stream: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
        try:
            for opcode, argument, position in pickletools.genops(stream):
                if (position or 0) >= MAX_PICKLE:
                    raise self._too_much_content()
                yield opcode, argument
        except ValueError as error:
            if (
                not isinstance(error, CheckpointError) and stream.getbuffer().nbytes > MAX_PICKLE
            ):  # only so much of the file was read
                raise self._too_much_content() from error
            raise

    def _too_much_content(self) -> CheckpointError:
        return CheckpointError(f"{self.path} has more content besides tensors than a checkpoint", "save only the weights")

    def _execute(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_mark() if name == "APPENDS" else self._pop(1)
            _of_type(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_mark() if name == "SETITEMS" else self._pop(2)
            _set_items(_of_type(stack[-1], dict), items)
        elif name == "GLOBAL":
            if argument not in _GLOBALS:
                raise UnsafeError(argument.replace(" ", "."))
            stack.append(_Global(argument))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            stack.append(_call(_of_type(function, _Global).name, _of_type(arguments, tuple), name == "NEWOBJ"))
        elif name == "BUILD":
            stack.pop()  # attributes, such as the versions of modules
            if not isinstance(stack[-1], dict | argparse.Namespace):
                raise CorruptError("a pickle changes an object")
        elif name not in ("PROTO", "STOP"):
            raise CorruptError(f"a pickle has the opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise CorruptError("a pickle lacks a value")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _storage(self, identifier: Any) -> Storage:
        """Returns the storage of an identifier ``("storage", type, key, location, numel)``, with a final None if legacy."""
        kind, storage_type, key, location, numel, *rest = _of_type(identifier, tuple)
        dtype = _STORAGE_DTYPES.get(_of_type(storage_type, _Global).name)
        if kind != "storage" or dtype is None or not isinstance(location, str) or rest not in ([], [None]):
            raise CorruptError("a storage is of another kind")
        storage = Storage(_of_type(key, str), dtype, _of_type(numel, int))
        if not 0 <= storage.nbytes <= self.size:
            raise CheckpointError(f"{self.path} claims more values than it has bytes", "save it again with torch.save")
        if self.storages.setdefault(key, storage) != storage:
            raise CorruptError("a storage has two sizes or types")
        return storage


def _call(name: str, arguments: tuple[Any, ...], new: bool) -> Any:
    """Returns what a function of torch, or a container, returns for these arguments."""
    if name == _NAMESPACE and new and not arguments:
        return argparse.Namespace()
    if name in _TENSOR_FUNCTIONS and len(arguments) == _TENSOR_FUNCTIONS[name]:
        return _tensor(*arguments[:4])
    if name == _PARAMETER and len(arguments) == 3:
        return _of_type(arguments[0], StoredTensor)
    if name == _SIZE and len(arguments) == 1:
        return _integers(arguments[0])
    if name == _DEVICE and arguments:
        return str(arguments[0])[:20] if isinstance(arguments[0], str) else ""
    if name == _ORDERED_DICT and len(arguments) <= 1:
        content: dict[Any, Any] = {}
        for pair in _of_type(arguments[0], list) if arguments else ():
            _set_items(content, _of_type(pair, list))
        return content
    raise CorruptError(f"a pickle calls {name.replace(' ', '.')} with other arguments")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    _integers((offset,))
    tensor = StoredTensor(_of_type(storage, Storage), offset, _integers(shape), _integers(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise CorruptError("a tensor has another number of strides than dimensions")
    if 0 not in tensor.shape:
        last = tensor.offset + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride, strict=True))
        if last >= tensor.storage.numel:
            raise CorruptError("a tensor exceeds its storage")
    elif math.prod(side or 1 for side in tensor.shape) >= MAX_INT:
        raise CorruptError("a tensor is too large")
    return tensor


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(number) is int and 0 <= number < MAX_INT for number in value):
        raise CorruptError("a tensor has no valid size")
    return value


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Sets alternating keys and values. Keys are strings and numbers, whose hashes take no time and cannot be made equal."""
    if len(items) % 2:
        raise CorruptError("a pickle lacks a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | None) and not (isinstance(key, int) and abs(key) < MAX_KEY):
            raise CorruptError(f"a dictionary has a key of type {type(key).__name__}")
        target[key] = value


def _of_type(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise CorruptError(f"a pickle has a {type(value).__name__} in place of a {kind.__name__.strip('_').lower()}")
    return value
