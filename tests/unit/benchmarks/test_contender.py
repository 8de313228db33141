"""A contender is a process of its own that replies to requests."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.contender import Contender

FAILING = """
from benchmarks.contender import Contender
from tests.unit.benchmarks.test_contender import serve

if __name__ == "__main__":
    contender = Contender(serve, "a job")
    raise SystemExit("the benchmark fails")
"""


def serve(connection: Connection, job: str) -> None:
    connection.send((job, os.getpid()))
    for number in iter(connection.recv, None):
        connection.send(number + 1)
    connection.send("done")


def test_a_contender_replies_to_requests_from_another_process() -> None:
    contender = Contender(serve, "a job")
    job, pid = contender.ready
    assert (job, pid != os.getpid()) == ("a job", True)
    assert [contender.request(1), contender.request(2)] == [2, 3]
    assert contender.stop() == "done"


def test_a_benchmark_that_fails_ends_its_contenders(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.run(
        [sys.executable, script], env=environment, timeout=120, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "the benchmark fails" in process.stderr
