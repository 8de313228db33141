"""Signals to the real program: a checkpoint, an exit code of its own, and no process that stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deit.training.state import newest_checkpoint
from tests.e2e.conftest import TINY

DEADLINE = 120.0  # seconds, after which a test fails that would else hang


def start(photos: Path, run: Path) -> subprocess.Popen[str]:
    """Starts a run with two workers that would take days, and waits for its first checkpoint."""
    program = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("deit"), "train", photos, "--recipe", "small-data", *TINY),
            *("--epochs", "20000", "--workers", "2", "--out", run),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "DEIT_CACHE": str(run.with_name("cache"))},
    )
    wait_until(lambda: any((run / "checkpoints").glob("epoch-*")))
    return program


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: int) -> list[int]:
    """Returns the processes that the threads of a process have started."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 3), (signal.SIGHUP, 1), (signal.SIGKILL, 1)]
)
def test_signal_leaves_a_checkpoint_and_no_process(photos: Path, tmp_path: Path, number: int, times: int) -> None:
    run = tmp_path / "a run"
    program = start(photos, run)
    workers = children(program.pid)
    assert len(workers) >= 2
    for _ in range(times):
        program.send_signal(number)
        time.sleep(0.05)
    _, errors = program.communicate(timeout=DEADLINE)
    is_repeated_interrupt = (number, times) == (signal.SIGINT, 2)
    codes = {-signal.SIGKILL} if number == signal.SIGKILL else {128 + number}
    assert program.returncode in (codes | {-signal.SIGINT} if is_repeated_interrupt else codes)
    if number != signal.SIGKILL and not is_repeated_interrupt:
        assert f'resume with: deit train --resume "{run}"' in errors
    assert "Traceback" not in errors
    wait_until(lambda: not any(map(is_running, workers)))
    newest, damaged = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert damaged == []
