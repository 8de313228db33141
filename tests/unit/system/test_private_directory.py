"""Private directories go with their program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deit.system import private_directory
from deit.system.private_directory import PrivateDirectory

PROGRAM = """
import sys, time
from pathlib import Path
from deit.system import private_directory
private_directory.SHARED_MEMORY = Path(sys.argv[1])
directory = private_directory.PrivateDirectory("test")
(directory.path / "content").write_text("content")
print(directory.path, flush=True)
if sys.argv[2] == "wait":
    time.sleep(600)
raise SystemExit("an error")
"""


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(private_directory, "SHARED_MEMORY", tmp_path)
    return tmp_path


def start(memory: Path, mode: str) -> tuple[subprocess.Popen[str], Path]:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(memory), mode], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    return program, Path(program.stdout.readline().strip())


def test_directory_is_private_and_removed_with_its_object(memory: Path) -> None:
    directory = PrivateDirectory("test")
    assert directory.path.parent == memory
    assert directory.path.stat().st_mode & 0o777 == 0o700
    path = directory.path
    del directory
    assert not path.exists()


def test_forked_process_does_not_remove_it() -> None:
    directory = PrivateDirectory("test")
    if (child := os.fork()) == 0:
        directory._remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert directory.path.is_dir()


def test_directory_is_removed_after_an_error(memory: Path) -> None:
    program, path = start(memory, "fail")
    program.communicate(timeout=120)
    assert program.returncode == 1
    assert not path.exists()


def test_directory_of_a_killed_program_is_removed_by_the_next_one_and_that_of_a_running_one_stays(memory: Path) -> None:
    killed, stale = start(memory, "wait")
    running, live = start(memory, "wait")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=120)
        assert stale.is_dir()
        PrivateDirectory("test")
        assert not stale.exists()
        assert (live / "content").is_file()
    finally:
        running.kill()
        running.communicate(timeout=120)


def test_temporary_files_serve_where_there_is_no_shared_memory(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_directory, "SHARED_MEMORY", memory / "missing")
    monkeypatch.setattr("tempfile.tempdir", str(memory))
    assert PrivateDirectory("test").path.parent == memory


def test_another_one_is_made_if_a_program_removes_it_before_it_is_locked(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, removed = private_directory._lock, list[Path]()

    def late(descriptor: int, wait: bool = False) -> bool:
        if wait and not removed:
            removed.extend(memory.iterdir())
            private_directory._remove_stale(memory, "test-")
        return lock(descriptor, wait)

    monkeypatch.setattr(private_directory, "_lock", late)
    directory = PrivateDirectory("test")
    assert removed
    assert list(memory.iterdir()) == [directory.path]
    private_directory._remove_stale(memory, "test-")
    assert directory.path.is_dir()
