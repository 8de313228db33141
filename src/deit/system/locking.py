"""Locks that keep two programs from writing to the same place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from deit.errors import UserError

LOCK_NAME = ".lock"
WAIT_SECONDS = 6.0  # for the worker processes of a program that was killed, which find out within 5 seconds


@contextmanager
def locked(directory: Path, remedy: str) -> Iterator[None]:
    """Locks a directory until the end of the context, and creates it if necessary.

    The lock ends with the process that holds it, even if it is killed. The lock file is removed, and so are directories that
    were created and stayed empty.

    Args:
        directory: such as a run directory.
        remedy: what to do if another program has locked it.

    Raises:
        UserError: another program has locked it.
    """
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked_file(directory / LOCK_NAME, f"Another program is writing to {directory}", remedy):
            yield
    finally:
        with suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


def is_unused(path: Path) -> bool:
    """Whether a path is a directory that holds nothing but the lock of a killed program, or nothing at all."""
    return path.is_dir() and all(file.name == LOCK_NAME for file in path.iterdir())


@contextmanager
def locked_file(path: Path, problem: str, remedy: str) -> Iterator[None]:
    """Locks a file until the end of the context. It is created, and removed at the end.

    Raises:
        UserError: another program has locked it.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise UserError(problem, remedy) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: filelock does not count on a file that was unlinked
        lock.release()
