"""Reads the arrays of MATLAB label files, version 5: numbers, text, cells and structures.

scipy also reads them, but it trusts the types and sizes in a file: a damaged one can crash Python.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from deit.errors import DataError

MAX_BYTES = 64 * 2**20  # decompressed; the largest file read here, ImageNet's, has a few megabytes
MAX_ELEMENTS = 500_000
MAX_DEPTH = 16
HEADER_BYTES = 128
VERSION = 0x0100  # version 5
# Types of elements: numbers by NumPy's name, and text by its encoding.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
CELL, STRUCT, CHARS, NUMERIC = 1, 2, 4, range(6, 16)  # classes of arrays
COMPLEX = 0x0800  # flag of an array


def read_mat(path: Path, name: str) -> np.ndarray:
    """Reads a variable of a ``.mat`` file, with dimensions of size 1 removed.

    Returns:
        Numbers; strings; an object array of the cells; or a structured array with one object field per field.

    Raises:
        DataError: the file is missing, damaged or too large, or lacks the variable.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(path)
        return np.asarray(_File(path).read(name))
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise DataError(f"{path} holds no readable variable {name!r}", "copy it again") from error


class _File:
    """The content of a file, of which one variable is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, path.read_bytes()
        self.order = {b"IM": "<", b"MI": ">"}[self.content[126:128]]
        if struct.unpack_from(f"{self.order}H", self.content, 124)[0] != VERSION:
            raise ValueError("it is of another version of MATLAB")
        self.size, self.count = len(self.content), 0

    def read(self, name: str) -> Any:
        """Returns the value of a variable.

        Raises:
            LookupError: there is none.
            ValueError: the file is damaged.
        """
        offset = HEADER_BYTES
        while offset < len(self.content):
            kind, length = struct.unpack_from(f"{self.order}II", self.content, offset)
            element, offset = self.content[offset : offset + 8 + length], offset + 8 + length
            if offset > len(self.content):
                raise ValueError("it ends too early")
            for inner, data in self._elements(self._decompressed(element[8:]) if kind == COMPRESSED else element):
                if inner != MATRIX:
                    raise ValueError("it has values outside of arrays")
                found, value = self._array(data, 0)
                if found == name.encode():
                    return value
        raise LookupError(name)

    def _decompressed(self, data: bytes) -> bytes:
        """Decompresses an element and compares its checksum."""
        decompressor = zlib.decompressobj()
        content = decompressor.decompress(data, MAX_BYTES)
        self.size += len(content)
        if self.size > MAX_BYTES:
            raise _too_large(self.path)
        if not decompressor.eof:
            raise ValueError("an element ends too early")
        return content

    def _elements(self, content: bytes) -> list[tuple[int, bytes]]:
        """Returns type and data of each element. One of up to four bytes has its size and type in one word."""
        found, offset = [], 0
        while offset < len(content):
            kind, length = struct.unpack_from(f"{self.order}II", content, offset)
            small = kind >> 16
            start, length = (offset + 4, small) if small else (offset + 8, length)
            found.append((kind & 0xFFFF, content[start : start + length]))
            self.count += 1
            if small > 4 or start + length > len(content) or self.count > MAX_ELEMENTS:
                raise ValueError("an element is too large")
            offset = offset + 8 if small else start + length + -length % 8
        return found

    def _array(self, content: bytes, depth: int) -> tuple[bytes, Any]:
        """Returns name and value of an array."""
        if not content:  # an empty cell
            return b"", np.zeros(0)
        (flags_type, flags), (sides_type, sides), (name_type, name), *rest = self._elements(content)
        if (flags_type, len(flags), sides_type, name_type) != (UINT32, 8, INT32, INT8) or depth > MAX_DEPTH:
            raise ValueError("an array has no valid header")
        flag, _ = struct.unpack(f"{self.order}II", flags)
        shape = tuple(np.frombuffer(sides, f"{self.order}i4").tolist())
        if flag & COMPLEX or min(shape) < 0 or math.prod(shape) > MAX_BYTES:
            raise ValueError("an array has an invalid type or size")
        if (kind := flag & 0xFF) in NUMERIC:
            return name, self._numbers(rest, shape)
        return name, {CHARS: self._text, CELL: self._cells, STRUCT: self._structure}[kind](rest, shape, depth + 1)

    def _numbers(self, rest: list[tuple[int, bytes]], shape: tuple[int, ...]) -> Any:
        ((kind, data),) = rest
        return np.frombuffer(data, f"{self.order}{NUMBERS[kind]}").reshape(shape, order="F").squeeze()

    def _text(self, rest: list[tuple[int, bytes]], shape: tuple[int, ...], _depth: int) -> Any:
        ((kind, data),) = rest
        encoding = TEXT[kind] + ({"<": "-le", ">": "-be"}[self.order] if TEXT[kind] in ("utf-16", "utf-32") else "")
        letters = np.asarray(list(data.decode(encoding)), "U1").reshape(shape, order="F")
        rows = ["".join(row) for row in letters.reshape(shape[0], -1)]
        return np.asarray(rows[0] if len(rows) == 1 else rows, np.str_)

    def _cells(self, rest: list[tuple[int, bytes]], shape: tuple[int, ...], depth: int) -> Any:
        cells = np.empty(len(rest), object)
        for index, (kind, data) in enumerate(rest):
            cells[index] = self._nested(kind, data, depth)
        return cells.reshape(shape, order="F").squeeze()

    def _structure(self, rest: list[tuple[int, bytes]], shape: tuple[int, ...], depth: int) -> Any:
        (width_type, width), (names_type, text), *values = rest
        (step,) = struct.unpack(f"{self.order}i", width)
        if width_type != INT32 or names_type != INT8 or step <= 0:
            raise ValueError("a structure has no valid names")
        names = [text[start : start + step].split(b"\0")[0].decode("ascii") for start in range(0, len(text), step)]
        records = np.empty(len(values) // len(names), [(name, object) for name in names])
        for index, (kind, data) in enumerate(values):
            records[index // len(names)][names[index % len(names)]] = self._nested(kind, data, depth)
        return records.reshape(shape, order="F").squeeze()

    def _nested(self, kind: int, data: bytes, depth: int) -> Any:
        """Returns the value of a cell or a field; a single number or string as such."""
        if kind != MATRIX:
            raise ValueError("a cell has no array")
        value = self._array(data, depth)[1]
        return value.item() if value.ndim == 0 and value.dtype.names is None else value


def _too_large(path: Path) -> DataError:
    return DataError(f"{path} holds more than {MAX_BYTES >> 20} MiB", "it is not a label file")
