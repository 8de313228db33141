"""Files that are written past the page cache, and through it where that is not possible."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.system.uncached_file import UncachedFile

PAGE = mmap.PAGESIZE


def content(count: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(count))


@given(sizes=st.lists(st.one_of(st.integers(0, 3 * PAGE), st.sampled_from([PAGE, 2 * PAGE, 4 * PAGE])), max_size=6))
def test_file_holds_all_parts(sizes: list[int]) -> None:
    parts = [content(size) for size in sizes]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "file"
        with UncachedFile(path, 2 * PAGE) as file:
            for part in parts:
                file.write(memoryview(part))
        assert path.read_bytes() == b"".join(parts)


def test_views_of_other_types_are_written_as_bytes(tmp_path: Path) -> None:
    with UncachedFile(tmp_path / "file") as file:
        file.write(memoryview(content(12)).cast("I"))
    assert (tmp_path / "file").read_bytes() == content(12)


def test_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        UncachedFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_system_without_direct_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with UncachedFile(tmp_path / "file", PAGE) as file:
        file.write(content(3 * PAGE + 1))
    assert (tmp_path / "file").read_bytes() == content(3 * PAGE + 1)


class RefusingFile:
    """Refuses writes with ``O_DIRECT`` as some file systems do, and writes only a part of others."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Any:
        return self._file.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def write(self, view: memoryview) -> int:
        if fcntl.fcntl(self.fileno(), fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        written: int = self._file.write(view[: max(len(view) // 2, 1)])
        return written


def test_file_system_that_refuses_direct_writes(tmp_path: Path) -> None:
    with UncachedFile(tmp_path / "file", PAGE) as file:
        file._file = RefusingFile(file._file)  # type: ignore[assignment]
        file.write(content(2 * PAGE + 5))
    assert (tmp_path / "file").read_bytes() == content(2 * PAGE + 5)


def test_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"), UncachedFile(tmp_path / "file", PAGE) as file:
        os.close(file._file.fileno())
        file.write(content(PAGE))
