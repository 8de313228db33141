"""A function in a new process: its result, its error, and its death in one sentence."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deit.errors import CheckpointError, WorkError
from deit.system.files import read_toml
from deit.system.processes import run_in_new_process


def test_result_and_error_of_a_new_process() -> None:
    assert run_in_new_process("Adding", operator.add, 2, 3) == 5
    with pytest.raises(ZeroDivisionError):
        run_in_new_process("Dividing", operator.truediv, 1, 0)
    with pytest.raises(CheckpointError, match=r"Cannot read missing\.toml: No such file or directory\."):
        run_in_new_process("Reading", read_toml, Path("missing.toml"))


@pytest.mark.parametrize(
    ("function", "argument", "said"),
    [
        (signal.raise_signal, signal.SIGKILL, "Measuring was killed, most likely because memory ran out"),
        (signal.raise_signal, signal.SIGSEGV, "Measuring was ended by SIGSEGV"),
        (os._exit, 3, "Measuring exited with code 3"),
    ],
)
def test_death_of_a_new_process_is_one_sentence(function: object, argument: int, said: str) -> None:
    with pytest.raises(WorkError, match=said) as failure:
        run_in_new_process("Measuring", function, argument)  # type: ignore[arg-type]
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_new_process_leaves_stop_signals_to_its_parent(number: int) -> None:
    assert run_in_new_process("Waiting", signal.raise_signal, number) is None


WORKER = """
import multiprocessing, os, sys, time
from deit.system.processes import end_with_parent

def work():
    end_with_parent()
    os.write(1, b"%d\\n" % os.getpid())  # at once: print may write the number and the end of the line one after the other
    time.sleep(100)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(100)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_end_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    parent = subprocess.Popen([sys.executable, str(script), method], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(is_running, workers))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, workers))
    parent.stdout.close()


HANDOVER = """
import multiprocessing, sys
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from deit.system.processes import hide_closed_connections

def work(connection):
    hide_closed_connections()
    connection.send([resource_sharer.DupFd(1)._id for _ in range(2)])
    connection.recv()

if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.Process(target=work, args=(theirs,))
    worker.start()
    (address, key), _ = ours.recv()
    key_of_process = multiprocessing.current_process().authkey
    if sys.argv[1] == "challenged":
        Client(address).close()
    elif sys.argv[1] == "connected":
        Client(address, authkey=key_of_process).close()
    else:
        with Client(address, authkey=key_of_process) as client:
            client.send((key + 1000, worker.pid))
    with Client(address, authkey=key_of_process) as client:  # they are served one after the other
        client.send((key, worker.pid))
        multiprocessing.reduction.recv_handle(client)
    ours.send(None)
    worker.join()
"""


@pytest.mark.parametrize(("when", "printed"), [("challenged", ""), ("connected", ""), ("unknown", "KeyError")])
def test_worker_prints_no_traceback_of_a_closed_connection(tmp_path: Path, when: str, printed: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(HANDOVER)
    program = subprocess.run([sys.executable, str(script), when], stderr=subprocess.PIPE, text=True, check=True, timeout=60)
    assert ("Traceback" in program.stderr) == bool(printed)
    assert printed in program.stderr


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
