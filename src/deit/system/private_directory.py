"""Temporary directories in memory that are removed with the program, even one that was killed: by the next program."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from deit.system.processes import SHARED_MEMORY

LOCK_NAME = ".lock"


class PrivateDirectory:
    """A directory in shared memory, or among the temporary files where there is none.

    It is removed with this object, or at the exit of the program. A killed program leaves its directory, which the next one
    removes: the lock of a running program, which ends with it, tells them apart.

    Args:
        prefix: of its name; directories of the same user and prefix belong together.

    Attributes:
        path: the directory.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, prefix: str) -> None:
        user = os.getuid() if hasattr(os, "getuid") else 0
        prefix = f"{prefix}-{user}-"
        parent = memory_folder()
        _remove_stale(parent, prefix)
        self.path, descriptor = _new_locked_directory(parent, prefix)
        self._remove = weakref.finalize(self, _remove, self.path, descriptor, os.getpid())


def memory_folder() -> Path:
    """Returns the folder of shared memory, or that of temporary files where it is missing or cannot be written to."""
    is_usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    return SHARED_MEMORY if is_usable else Path(tempfile.gettempdir())


def _new_locked_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """Creates a directory, and locks it before another program takes it for that of a killed one; or else creates another."""
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        descriptor = os.open(path / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o600)
        _lock(descriptor, wait=True)  # until a program that is removing it has finished
        if (path / LOCK_NAME).exists():
            return path, descriptor
        os.close(descriptor)


def _remove(path: Path, descriptor: int, process: int) -> None:
    if os.getpid() == process:  # not in a forked worker
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            os.close(descriptor)


def _remove_stale(parent: Path, prefix: str) -> None:
    for path in parent.glob(f"{prefix}*"):
        try:
            descriptor = os.open(path / LOCK_NAME, os.O_RDWR)
        except OSError:  # of another user, or being created or removed at this moment
            continue
        if _lock(descriptor):
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool:
    """Locks a file until it is closed, by forked processes, too; returns False if another program has locked it.

    Args:
        descriptor: of the file.
        wait: for the other program.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
