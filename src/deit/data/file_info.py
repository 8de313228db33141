"""What the files of a data set are: size, bits and content hash of each image, or why it is unreadable.

Each file is read once: its content is hashed, and its header is checked. What is found of readable files is kept between runs
(:mod:`deit.data.file_info_cache`), by path, size, time of modification, time of change, and inode, so that unchanged files are
not opened again. Unreadable files are read in every run, so that messages name the path in use and the remedy that helps now.

As in git, what is found of a file that changed within the last two seconds is not kept: a second change could leave the same
time stamps.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from deit.data.file_info_cache import ENTRY, REFRESH_DAYS, cache_path, find_entries, read_entries, today, write_entries
from deit.data.sources import FileSource, ImageSource, WithRecordedInfo, encoded_file, unwrapped
from deit.errors import ImageError
from deit.images.conversion import is_deep
from deit.images.decoding import MAX_FILE_BYTES, ImageHeader, read_header
from deit.images.limits import max_pixels
from deit.system.hardware import cores
from deit.system.progress import Progress
from deit.system.threads import ordered_map, thread_map

UNREADABLE = 0  # the hash of an unreadable image
RECENT_NS = 2 * 10**9  # file systems keep time stamps to 2 s or better
MAX_BYTES_AT_ONCE = 2**25  # of a file that is read into memory; a larger one is read twice instead
FILES_PER_TASK = 16
FILES_PER_STEP = 4096  # of the progress
KEY_BYTES = 16


class Depth(IntEnum):
    """Values of an image: up to 8 bits, or integers or floats of more."""

    EIGHT_BITS = 0
    INTEGERS = 1
    FLOATS = 2


@dataclass(frozen=True)
class FileInfo:
    """What is known of image files.

    Attributes:
        hashes: the first 8 bytes of the SHA-256 of each file, (n,) uint64; 0 if the image is unreadable.
        sizes: width and height of each image once it is upright, in pixels, (n, 2) int64; 0 if it is unreadable.
        depths: :class:`Depth` of each image, (n,) uint8.
        errors: index -> error, for each unreadable image.
    """

    hashes: np.ndarray
    sizes: np.ndarray
    depths: np.ndarray
    errors: dict[int, ImageError]


def file_info(source: ImageSource, fresh: bool = False) -> FileInfo | None:
    """Returns what the files of a source are; None if its images are not files below a folder, nor packed.

    Args:
        source: the images.
        fresh: read all files, even if they are unchanged.
    """
    base, indices = unwrapped(source)
    if isinstance(base, WithRecordedInfo) and not fresh:
        return FileInfo(*base.recorded_info(indices), {})
    if not isinstance(base, FileSource):
        return None
    return inspect_files(base.root, [base.names[index] for index in indices.tolist()], fresh)


def image_sizes(source: ImageSource) -> np.ndarray:
    """Returns width and height of each image in pixels, (n, 2) int64; 0 if it is unreadable. Decodes no files."""
    if (info := file_info(source)) is not None:
        return info.sizes

    def size(index: int) -> tuple[int, int]:
        try:
            file = encoded_file(source, index)
            return source.load(index).size if file is None else read_header(file)[1:]
        except ImageError:
            return 0, 0

    return np.asarray(thread_map(size, range(len(source.labels))), np.int64).reshape(-1, 2)


def inspect_files(root: Path, names: Sequence[str], fresh: bool = False) -> FileInfo:
    """Reads image files, except for those that are unchanged since an earlier run.

    Args:
        root: folder of the files. What is found of them is kept together.
        names: paths of the files, absolute or relative to ``root``.
        fresh: read all files.
    """
    path = cache_path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links)
    keys, may_be_kept = _keys(root, names, time.time_ns())
    entries = read_entries(path)
    positions = np.where(may_be_kept, find_entries(entries, keys), -1)
    known = np.zeros(len(names), bool) if fresh else positions >= 0
    found = np.zeros(len(names), ENTRY)
    found[known] = entries[positions[known]]
    is_refreshed = bool((found["day"][known] < today() - REFRESH_DAYS).any())
    found["key"], found["day"] = keys, today()
    errors: dict[int, ImageError] = {}
    try:
        _read_files(root, names, np.flatnonzero(~known), found, errors)
    finally:  # what was read before an interrupt is kept, too
        is_kept = may_be_kept & (found["width"] > 0)
        if is_refreshed or (is_kept & ~known).any():
            write_entries(path, found[is_kept])
    sizes = np.stack((found["width"], found["height"]), axis=1).astype(np.int64)
    return FileInfo(found["hash"].astype(np.uint64), sizes, found["depth"].copy(), errors)


def _keys(root: Path, names: Sequence[str], now: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the key of each file, (n, 2) uint64, and whether what is found of it may be kept, (n,) bool."""
    folder = os.path.abspath(root)  # noqa: PTH100
    has_heif = importlib.util.find_spec("pillow_heif") is not None
    # Whatever else decides whether an image is accepted is part of the key.
    settings = f"{PIL.__version__} {has_heif} {max_pixels()} {Image.MAX_IMAGE_PIXELS}\0"
    start = hashlib.blake2b(settings.encode() + os.fsencode(folder) + b"\0", digest_size=KEY_BYTES)
    may_be_kept = np.zeros(len(names), bool)
    digests = bytearray(KEY_BYTES * len(names))
    with Progress("Comparing time stamps", len(names), unit="files") as progress:
        for index, name in enumerate(names):
            if index % FILES_PER_STEP == FILES_PER_STEP - 1:
                progress.advance(FILES_PER_STEP)
            try:
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118  (several times faster than Path)
            except (OSError, ValueError):
                continue
            is_old = max(status.st_mtime_ns, status.st_ctime_ns) < now - RECENT_NS
            may_be_kept[index] = is_old and stat.S_ISREG(status.st_mode)
            digest = start.copy()
            numbers = f"\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
            digest.update(os.fsencode(name) + numbers.encode())
            digests[KEY_BYTES * index : KEY_BYTES * (index + 1)] = digest.digest()
    return np.frombuffer(digests, "<u8").reshape(-1, 2), may_be_kept


def _read_files(
    root: Path, names: Sequence[str], indices: np.ndarray, found: np.ndarray, errors: dict[int, ImageError]
) -> None:
    """Reads files on one thread per core, and fills in the entries of ``found`` and the errors, in the order of the files.

    Processes instead of threads are no faster: half of the time is spent in calls that release the GIL, and starting a process
    takes as long as reading thousands of files.
    """

    def read_some(start: int) -> list[tuple[int, ImageHeader] | ImageError]:
        return [_read_file(root / names[index]) for index in indices[start : start + FILES_PER_TASK].tolist()]

    if not len(indices):
        return
    remaining = iter(indices.tolist())
    with Progress("Checking images", len(indices)) as progress:
        for block in ordered_map(read_some, range(0, len(indices), FILES_PER_TASK), cores()):
            for result in block:
                index = next(remaining)
                if isinstance(result, ImageError):
                    errors[index] = result
                else:
                    content_hash, (mode, width, height) = result
                    values = (content_hash, width, height, depth_of(mode))
                    for field, value in zip(("hash", "width", "height", "depth"), values, strict=True):
                        found[field][index] = value
            progress.advance(len(block))


def depth_of(mode: str) -> Depth:
    """Returns the depth of a mode of Pillow."""
    if not is_deep(mode):
        return Depth.EIGHT_BITS
    return Depth.FLOATS if mode == "F" else Depth.INTEGERS


def _read_file(path: Path) -> tuple[int, ImageHeader] | ImageError:
    """Returns the hash and the header of an image file, or what is wrong with it."""
    content = _read_content(path)
    try:
        header = read_header(path if content is None else content, str(path))
    except ImageError as error:
        return error
    return hash_file(path) if content is None else short_hash(hashlib.sha256(content).digest()), header


def _read_content(path: Path) -> bytes | None:
    """Returns the content of a file; None if it is large or cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES_AT_ONCE:  # reading a pipe may never return
            return None
        with path.open("rb") as file:
            return file.read(status.st_size + 1)  # a file may grow, but not without end
    except (OSError, ValueError):
        return None


def hash_file(path: Path) -> int:
    """Returns the first 8 bytes of the SHA-256 of a file; 0 if it cannot be read or is larger than any image may be."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return UNREADABLE
        with path.open("rb") as file:
            return short_hash(hashlib.file_digest(file, "sha256").digest())
    except (OSError, ValueError):
        return UNREADABLE


def short_hash(digest: bytes) -> int:
    """Returns the first 8 bytes of a digest as a number."""
    return int.from_bytes(digest[:8], "little")
