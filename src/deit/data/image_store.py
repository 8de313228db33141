"""Decoded images in files, which several programs may read, write and remove at the same time.

Format, little-endian: the 8 bytes ``DEITPIX1``; width and height of the image, reduction of the finest level, number of levels,
and the least reduction that the file can be decoded at (uint32); the CRC-32 of the rest of the header (uint32); the CRC-32 of
each strip of 64 rows of each level (uint32); and the pixels of each level, (height, width, 3) uint8. Only the rows that a crop
needs are read and checked. A damaged file counts as missing, and is replaced.

A file is written under another name and renamed, so that no reader sees half of it, and whoever has opened a file can read it
after it was removed. Reading a file sets its time of modification, hourly at most; the least recently used files are removed
first.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
import zlib
from collections.abc import Set
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

import numpy as np

from deit.images.pyramid import MAX_REDUCTION, Pyramid, PyramidShape

MAGIC = b"DEITPIX1"
FIELDS = struct.Struct("<8s5II")
STRIP = 64  # rows that a checksum covers
MAX_SIDE = 65_535
MAX_LEVELS = 16
HIDDEN_PREFIX = "."  # of what is not an image: drafts, and the lock of a directory in memory
DRAFT_PREFIX = f"{HIDDEN_PREFIX}draft-"
DRAFT_SECONDS = 3600  # after which a file that is being written is taken to be of a program that was killed
TOUCH_SECONDS = 3600  # how exactly the last use of a file is known
MEASURED_SHARE = 0.01  # of the capacity: after so many bytes, a process measures anew how many are in use


class DamagedFileError(Exception):
    """A file of the store is damaged. Never reaches the user: the image is decoded instead."""


class StoredPyramid(AbstractContextManager["StoredPyramid"]):
    """An open file of the store.

    Args:
        file: the file, unbuffered; closed at the end of the context.

    Attributes:
        shape: the sizes of the pyramid.

    Raises:
        DamagedFileError: it is not such a file.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.shape, self._checksums, self._start = _read_header(file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def rows(self, reduction: int, top: int, bottom: int) -> tuple[np.ndarray, int]:
        """Reads rows of a level, at least those from ``top`` to ``bottom``; see :meth:`Pyramid.rows`.

        Raises:
            DamagedFileError: the rows are damaged.
        """
        offset, strip = self._start, 0
        for finer in self.shape.reductions[: self.shape.reductions.index(reduction)]:
            rows, columns = self.shape.size(finer)
            offset, strip = offset + 3 * rows * columns, strip + _strips(rows)
        height, width = self.shape.size(reduction)
        first = min(top, height - 1) // STRIP
        last = max(_strips(min(bottom, height)), first + 1)
        start, stop = first * STRIP, min(last * STRIP, height)
        pixels = np.empty((stop - start, width, 3), np.uint8)
        content = pixels.data.cast("B")
        _read_into(self._file, content, offset + 3 * width * start)
        size = 3 * width * STRIP
        for index in range(last - first):
            if zlib.crc32(content[index * size : (index + 1) * size]) != self._checksums[strip + first + index]:
                raise DamagedFileError
        return pixels, start


@dataclass(frozen=True)
class StoredFile:
    """Name, bytes and time of the last use of a file of the store."""

    name: str
    size: int
    used: float


class ImageStore:
    """A directory of decoded images.

    Args:
        directory: created when the first image is written.
        capacity: bytes that the directory may hold.
        owner: object with which the directory is removed; None if it stays.

    Attributes:
        directory: the directory.
        capacity: bytes that the directory may hold.
    """

    def __init__(self, directory: Path, capacity: int, owner: object = None) -> None:
        self.directory, self.capacity = directory, capacity
        self._owner = owner
        self._free: int | None = None  # bytes that may be written until the directory is measured again
        self._unmeasured = 0
        self._is_closed = False

    def __getstate__(self) -> dict[str, object]:
        """Leaves the owner in the main process, and the measured space to each process."""
        return {**self.__dict__, "_owner": None, "_free": None, "_unmeasured": 0}

    def close(self) -> None:
        """Makes this process write no more files, after an error."""
        self._is_closed = True

    def open(self, name: str) -> StoredPyramid | None:
        """Opens a file; returns None if there is none, or only a damaged one."""
        path = self.directory / name
        try:
            file = FileIO(path, opener=_open_regular)
        except OSError:
            return None
        try:
            if os.fstat(file.fileno()).st_mtime < time.time() - TOUCH_SECONDS:
                with suppress(OSError):
                    os.utime(path)
            return StoredPyramid(file)
        except (OSError, DamagedFileError):
            file.close()
            return None

    def write(self, name: str, pyramid: Pyramid) -> None:
        """Writes a file, unless the store is full.

        Raises:
            OSError: the directory cannot be written to, or the disk is full.
        """
        header = _header(pyramid)
        size = len(header) + pyramid.shape.nbytes
        if self._is_closed or not self._has_space(size):
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=self.directory, prefix=DRAFT_PREFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                for reduction in pyramid.shape.reductions:
                    file.write(np.ascontiguousarray(pyramid.levels[reduction]).data)
            os.replace(draft, self.directory / name)  # noqa: PTH105
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def files(self) -> list[StoredFile]:
        """Returns the files, also those that are being written, and removes what a killed program has left unfinished."""
        found = []
        with suppress(OSError), os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(OSError):  # another program may remove it at the same time
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(DRAFT_PREFIX) and status.st_mtime < time.time() - DRAFT_SECONDS:
                        Path(entry.path).unlink()
                    else:
                        found.append(StoredFile(entry.name, status.st_size, status.st_mtime))
        return found

    def make_room(self, size: int, kept: Set[str]) -> None:
        """Removes the least recently used files, so that ``size`` more bytes fit if possible.

        Args:
            size: bytes.
            kept: names of files that stay.
        """
        files = self.files()
        total = sum(file.size for file in files)
        for file in sorted(files, key=lambda file: file.used):
            if total + size <= self.capacity:
                return
            if file.name not in kept and not file.name.startswith(HIDDEN_PREFIX):
                with suppress(OSError):
                    (self.directory / file.name).unlink()
                total -= file.size

    def _has_space(self, size: int) -> bool:
        """Whether a file may be written. Other processes write, too, so the directory is measured now and then."""
        if self._free is None or (self._free >= size and self._unmeasured > MEASURED_SHARE * self.capacity):
            self._free, self._unmeasured = self.capacity - sum(file.size for file in self.files()), 0
        if self._free < size:
            return False
        self._free, self._unmeasured = self._free - size, self._unmeasured + size
        return True


def _strips(rows: int) -> int:
    return -(-rows // STRIP)


def _header(pyramid: Pyramid) -> bytes:
    shape = pyramid.shape
    strips = [
        zlib.crc32(np.ascontiguousarray(pyramid.levels[reduction][start : start + STRIP]).data)
        for reduction in shape.reductions
        for start in range(0, shape.size(reduction)[0], STRIP)
    ]
    fields = FIELDS.pack(MAGIC, shape.width, shape.height, shape.base, shape.count, shape.least, 0)[:-4]
    checksums = np.asarray(strips, "<u4").tobytes()
    return fields + struct.pack("<I", zlib.crc32(fields + checksums)) + checksums


def _open_regular(path: str, flags: int) -> int:
    """Opens a file that is not a link; a pipe does not block."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _read_header(file: FileIO) -> tuple[PyramidShape, list[int], int]:
    """Returns the shape, the checksums of all strips, and the offset of the pixels.

    Raises:
        DamagedFileError: the file is damaged.
    """
    fields = bytearray(FIELDS.size)
    _read_into(file, memoryview(fields), 0)
    magic, width, height, base, count, least, checksum = FIELDS.unpack(fields)
    is_plausible = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and 0 < count <= MAX_LEVELS
    if magic != MAGIC or not is_plausible or not 0 < least <= base <= MAX_REDUCTION or base & (base - 1):
        raise DamagedFileError
    shape = PyramidShape(width, height, base, count, least)
    checksums = bytearray(4 * sum(_strips(shape.size(reduction)[0]) for reduction in shape.reductions))
    start = FIELDS.size + len(checksums)
    if os.fstat(file.fileno()).st_size != start + shape.nbytes:
        raise DamagedFileError
    _read_into(file, memoryview(checksums), FIELDS.size)
    if zlib.crc32(fields[:-4] + checksums) != checksum:
        raise DamagedFileError
    return shape, np.frombuffer(checksums, "<u4").tolist(), start


def _read_into(file: FileIO, content: memoryview, offset: int) -> None:
    """Fills ``content`` from a file.

    Raises:
        DamagedFileError: the file is shorter, or cannot be read.
    """
    try:
        file.seek(offset)
        while content:
            count = file.readinto(content)
            if not count:
                raise DamagedFileError
            content = content[count:]
    except OSError as error:
        raise DamagedFileError from error
