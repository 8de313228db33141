"""Reads MATLAB label files with scipy, which executes nothing in them. Their decompressed size is checked first."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from deit.errors import DataError

MAX_BYTES = 64 * 2**20  # decompressed; the largest file read here, ImageNet's, has a few megabytes
HEADER_BYTES = 128
COMPRESSED = 15  # element type miCOMPRESSED of version 5 files


def read_mat(path: Path, name: str) -> np.ndarray:
    """Reads a variable of a ``.mat`` file, with dimensions of size 1 removed.

    Raises:
        DataError: the file is missing, damaged or too large, or lacks the variable.
    """
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_BYTES or _decompressed_size(path.read_bytes()) > MAX_BYTES:
            raise DataError(f"{path} holds more than {MAX_BYTES >> 20} MiB", "it is not a label file")
        return np.asarray(loadmat(path, squeeze_me=True, variable_names=[name])[name])
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except DataError:
        raise
    except Exception as error:  # scipy raises all kinds of errors on damaged files
        raise DataError(f"{path} holds no readable variable {name!r}", "copy it again") from error


def _decompressed_size(content: bytes) -> int:
    """Returns the size of a file with its compressed elements decompressed, counted up to the limit."""
    size, offset = len(content), HEADER_BYTES
    order = "<" if content[126:128] == b"IM" else ">"
    while offset + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, offset)
        offset += 8
        if kind == COMPRESSED:
            size += len(zlib.decompressobj().decompress(content[offset : offset + length], MAX_BYTES))
            if size > MAX_BYTES:
                return size
        offset += length
    return size
