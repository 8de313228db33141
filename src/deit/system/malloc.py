"""Memory that is freed and soon wanted again.

glibc gives a large block back to the system as soon as it is freed, and the system fills it with zeros when it hands it out
again. Reading an image, or a step of a network, frees and takes the same sizes each time: half of the time of the one, a third
of the other. Without glibc nothing here does anything.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Parameters of glibc's mallopt (malloc.h), and what they are when nobody sets them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL_TRIM_THRESHOLD, _USUAL_MMAP_MAX = 128 * 1024, 65_536
_NEVER_TRIM = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that it takes on 64 bits

KEPT_BYTES = 256 * 2**20


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees in blocks of at most 32 MiB, up to 256 MiB at the end of each heap."""
    if not _is_glibc():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[None]:
    """Within, all of a CPU's memory that is freed is kept for the next tensor; at the end the system has it back.

    On another device this does nothing.
    """
    if device.type != "cpu" or not _is_glibc():
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
