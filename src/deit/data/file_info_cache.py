"""Keeps what is known of image files between runs, so that unchanged files are not read again.

There is one file per folder of images in ``image-files`` of :func:`deit.system.home.cache_directory`. An entry is found by its
key, a hash of all that must be the same for the entry to hold, see :mod:`deit.data.file_info`. A changed file has another key.
What is kept under the old one is dropped after some months. No path is stored.

Format, little-endian: the 8 bytes ``DEITINF1``, the CRC-32 of the rest and the number of entries (uint32), and the entries of
32 bytes in the order of their keys. Files are replaced atomically. If two programs write at once, the entries of one are lost,
and its files are read again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from deit.system.files import write_bytes
from deit.system.home import cache_directory

FOLDER = "image-files"
MAGIC = b"DEITINF1"
HEADER_BYTES = len(MAGIC) + 8
ENTRY = np.dtype(
    [
        ("key", "<u8", 2),
        ("hash", "<u8"),  # first 8 bytes of the SHA-256 of the file's content
        ("width", "<u2"),
        ("height", "<u2"),
        ("depth", "u1"),  # a Depth
        ("unused", "u1"),
        ("day", "<u2"),  # on which the entry was last used, from 1970-01-01
    ]
)
MAX_ENTRIES = 2**22  # of a folder
MAX_FILE_BYTES = HEADER_BYTES + MAX_ENTRIES * ENTRY.itemsize  # 128 MiB
MAX_BYTES = 2**28  # of all folders
MAX_DAYS = 90  # without use
REFRESH_DAYS = 7  # how exactly the last use is known
SECONDS_PER_DAY = 86_400


def cache_path(root: str) -> Path:
    """Returns the file of a folder of images, given its absolute path."""
    name = hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()
    return cache_directory() / FOLDER / f"{name}.bin"


def read_entries(path: Path) -> np.ndarray:
    """Returns the entries of a file, in the order of their keys; none if it is missing, damaged or cannot be read."""
    empty = np.empty(0, ENTRY)
    try:
        status = path.stat()
        if (
            not stat.S_ISREG(status.st_mode)
            or not HEADER_BYTES <= status.st_size <= HEADER_BYTES + MAX_ENTRIES * ENTRY.itemsize
        ):
            return empty
        content = path.read_bytes()
    except OSError:
        return empty
    if len(content) < HEADER_BYTES or content[: len(MAGIC)] != MAGIC:
        return empty
    checksum, count = np.frombuffer(content, "<u4", 2, len(MAGIC)).tolist()
    rest = memoryview(content)[len(MAGIC) + 4 :]
    if len(content) != HEADER_BYTES + count * ENTRY.itemsize or zlib.crc32(rest) != checksum:
        return empty
    entries = np.frombuffer(content, ENTRY, count, HEADER_BYTES)
    return entries if _is_plausible(entries) else empty


def find_entries(entries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns the position of each key among entries in the order of their keys, (n,) int64; -1 for keys without an entry."""
    if not len(entries):
        return np.full(len(keys), -1)
    positions = np.searchsorted(entries["key"][:, 0], keys[:, 0]).clip(max=len(entries) - 1)
    return np.where((entries["key"][positions] == keys).all(axis=1), positions, -1)


def write_entries(path: Path, entries: np.ndarray) -> None:
    """Adds entries to a file, and removes what has not been used for long. Does nothing if the file cannot be written."""
    kept = read_entries(path)
    kept = kept[(kept["day"] >= today() - MAX_DAYS) & (find_entries(_sorted(entries), kept["key"]) < 0)]
    joined = np.concatenate((entries, kept))
    latest = np.argsort(-joined["day"].astype(int), kind="stable")[:MAX_ENTRIES]
    content = _sorted(joined[latest])
    rest = np.uint32(len(content)).astype("<u4").tobytes() + content.tobytes()
    with suppress(OSError):
        write_bytes(path, MAGIC + np.uint32(zlib.crc32(rest)).astype("<u4").tobytes() + rest)
        _remove_unused(path)


def today() -> int:
    """Returns the number of days since 1970-01-01, within 16 bits."""
    return min(max(int(time.time() // SECONDS_PER_DAY), 0), 2**16 - 1)


def _sorted(entries: np.ndarray) -> np.ndarray:
    return entries[np.argsort(entries["key"][:, 0], kind="stable")]


def _is_plausible(entries: np.ndarray) -> bool:
    """Whether entries are in order, and none contradicts itself."""
    first = entries["key"][:, 0]
    in_order = bool((first[1:] >= first[:-1]).all())
    return in_order and bool((entries["width"] > 0).all() and (entries["height"] > 0).all() and (entries["depth"] <= 2).all())


def _remove_unused(path: Path) -> None:
    """Removes the files of folders that were not used for long, and the longest unused ones above the limit of bytes."""
    found = []
    for file in path.parent.iterdir():
        with suppress(OSError):  # another program may remove it at the same time
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and file != path:
                found.append((status.st_mtime, status.st_size, file))
    total = path.stat().st_size
    for modified, size, file in sorted(found, reverse=True):
        total += size
        if total > MAX_BYTES or modified < time.time() - MAX_DAYS * SECONDS_PER_DAY:
            file.unlink(missing_ok=True)
