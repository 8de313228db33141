"""Writes large files past the page cache of the system.

Copying into the page cache takes a core longer than all else that is done to the bytes of a checkpoint
(``docs/log.md``), and evicts the images that training reads.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

BLOCK_BYTES = 8 * 2**20  # of a write; a multiple of the block size of all disks


class UncachedFile(AbstractContextManager["UncachedFile"]):
    """A new file that is written past the page cache (``O_DIRECT``), where system and file system allow it; else through it.

    Args:
        path: the file, which does not exist yet.
        block_bytes: bytes of a write, a multiple of the memory page.
    """

    def __init__(self, path: Path, block_bytes: int = BLOCK_BYTES) -> None:
        self._file = path.open("xb", buffering=0)
        self._block = mmap.mmap(-1, block_bytes)  # its address is that of a page, as the system requires
        self._filled = 0
        with suppress(OSError):
            self._set_direct(True)

    def write(self, content: bytes | memoryview) -> None:
        """Writes bytes. They are on the disk when the file was closed and synced.

        Raises:
            OSError: they cannot be written, such as to a full disk.
        """
        view = memoryview(content).cast("B")
        while view:
            count = min(len(view), len(self._block) - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            self._filled, view = self._filled + count, view[count:]
            if self._filled == len(self._block):
                self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            if error is None and self._filled:
                self._set_direct(False)  # the rest is not a whole block
                self._flush()

    def _flush(self) -> None:
        view = memoryview(self._block)[: self._filled]
        while view:
            try:
                written = self._file.write(view)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._set_direct(False):
                    raise
                continue  # the file system accepts the flag, but not the write
            view = view[written:]
        self._filled = 0

    def _set_direct(self, wanted: bool) -> bool:
        """Switches direct writing on or off. Returns whether that changed anything."""
        if sys.platform != "linux":
            return False
        import fcntl

        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        new = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        fcntl.fcntl(self._file, fcntl.F_SETFL, new)
        return new != flags
