"""Locks keep a second program out, end with their program, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deit.errors import UserError
from deit.system import locking
from deit.system.locking import is_unused, locked

HOLD = "import sys, time; from pathlib import Path; from deit.system.locking import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'wait'): print('locked', flush=True); time.sleep(100)"


def test_directory_is_created_and_removed_if_it_stays_empty(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "new", "wait"):
        assert (tmp_path / "runs" / "new").is_dir()
    assert not (tmp_path / "runs").exists()
    with pytest.raises(KeyError), locked(tmp_path / "runs" / "new", "wait"):
        (tmp_path / "runs" / "new" / "file").touch()
        raise KeyError
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["file"]


def test_directory_with_the_lock_of_a_killed_program_is_unused(tmp_path: Path) -> None:
    assert is_unused(tmp_path)
    (tmp_path / locking.LOCK_NAME).touch()
    assert is_unused(tmp_path)
    (tmp_path / "file").touch()
    assert not is_unused(tmp_path)
    assert not is_unused(tmp_path / "file")


def test_second_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.1)
    with locked(tmp_path, "wait"):
        with (
            pytest.raises(UserError, match=r"Another program is writing to .*: pass another --out\.") as error,
            locked(tmp_path, "pass another --out"),
        ):
            pytest.fail("not locked")
        assert error.value.exit_code == 2
    with locked(tmp_path, "wait"):
        pass


def test_lock_ends_with_a_killed_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        with monkeypatch.context() as patch:
            patch.setattr(locking, "WAIT_SECONDS", 0.1)
            with pytest.raises(UserError, match="Another program"), locked(tmp_path, "wait"):
                pytest.fail("not locked")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with locked(tmp_path, "wait"):
        assert (tmp_path / locking.LOCK_NAME).exists()
    assert not list(tmp_path.iterdir())
