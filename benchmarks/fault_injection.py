"""Faults at every write, sync and renaming of a piece of work: an error of the system, or the death of the process."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from deit.system import replacing

Fault = Literal["disk full", "I/O error", "killed"]
FAULTS: tuple[Fault, ...] = ("disk full", "I/O error", "killed")
_NUMBERS = {"disk full": errno.ENOSPC, "I/O error": errno.EIO}
_KILLED = 86  # exit code


def operations(work: Callable[[], object]) -> int:
    """Returns how many writes, syncs and renamings some work consists of."""
    with _fault_at(-1, "killed") as count:
        work()
    return count[0]


def fail_at(index: int, fault: Fault, work: Callable[[], object]) -> None:
    """Does some work, in which the operation of this index fails; a write fails half way. The work may raise OSError or deal
    with it. If the process is killed, it is a forked one.
    """
    if fault != "killed":
        with _fault_at(index, fault), suppress(OSError):
            work()
        return
    child = os.fork()
    if child == 0:
        try:
            with _fault_at(index, fault):
                work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == _KILLED


@contextmanager
def _fault_at(index: int, fault: Fault) -> Iterator[list[int]]:
    """Makes the operation of this index fail, and yields the count of operations so far."""
    count = [0]

    def fail(half: Callable[[], object]) -> None:
        count[0] += 1
        if count[0] - 1 != index:
            return
        half()
        if fault == "killed":
            os._exit(_KILLED)
        raise OSError(_NUMBERS[fault], os.strerror(_NUMBERS[fault]))

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            fail(lambda: None)
            return function(*arguments, **options)

        return call

    def writing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, content: Any, **options: Any) -> Any:
            fail(lambda: function(path, content[: len(content) // 2], **options))
            return function(path, content, **options)

        return call

    def opening(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = function(path, mode, *arguments, **options)
            return _FailingFile(file, fail) if mode in ("wb", "xb") else file

        return call

    with (
        patch.object(Path, "open", opening(Path.open)),
        patch.object(Path, "write_text", writing(Path.write_text)),
        patch.object(os, "fsync", wrapped(os.fsync)),
        patch.object(os, "rename", wrapped(os.rename)),
        patch.object(os, "replace", wrapped(os.replace)),
        patch.object(replacing, "exchange", wrapped(replacing.exchange)),
        patch.object(shutil, "rmtree", wrapped(shutil.rmtree)),
    ):
        yield count


class _FailingFile:
    """An open file of which a write fails half way."""

    def __init__(self, file: Any, fail: Callable[[Callable[[], object]], None]) -> None:
        self._file, self._fail = file, fail

    def __enter__(self) -> _FailingFile:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> Any:
        self._fail(lambda: self._file.write(content[: len(content) // 2]))
        return self._file.write(content)
