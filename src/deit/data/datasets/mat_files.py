"""MATLAB files of labels, by scipy. It runs nothing that stands in them; what they inflate to is bounded here beforehand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from deit.errors import DataError

MAX_BYTES = 64 * 2**20  # inflated; the largest that is read here, ImageNet's, has some megabytes
HEADER_BYTES = 128
COMPRESSED = 15  # the element type miCOMPRESSED of a version 5 file


def read_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a ``.mat`` file, without its superfluous dimensions.

    Raises:
        DataError: the file is missing, damaged or too large, or has no such variable.
    """
    from scipy.io import loadmat

    try:
        if path.stat().st_size > MAX_BYTES or _inflated(path.read_bytes()) > MAX_BYTES:
            raise DataError(f"{path} holds more than {MAX_BYTES >> 20} MiB", "it is no file of labels")
        return np.asarray(loadmat(path, squeeze_me=True, variable_names=[name])[name])
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except DataError:
        raise
    except Exception as error:  # scipy's reader lets through whatever a damaged file makes go wrong
        raise DataError(f"{path} holds no readable variable {name!r}", "copy it again") from error


def _inflated(content: bytes) -> int:
    """Bytes of a file's parts with the compressed ones inflated, counted up to the bound."""
    size, place = len(content), HEADER_BYTES
    order = "<" if content[126:128] == b"IM" else ">"
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        place += 8
        if kind == COMPRESSED:
            size += len(zlib.decompressobj().decompress(content[place : place + length], MAX_BYTES))
            if size > MAX_BYTES:
                return size
        place += length
    return size
