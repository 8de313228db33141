"""A function in a new process: its result, its error, and its death in one sentence."""

from __future__ import annotations

import operator
import os
import signal
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
