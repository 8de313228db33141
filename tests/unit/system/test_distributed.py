"""Collective operations, and how the failure of one process ends all."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from deit.errors import DataError, InterruptedWorkError, PeerError
from deit.system import torchrun
from deit.system.distributed import (
    from_main,
    gathered,
    group_rank,
    group_size,
    is_distributed,
    process_group,
    together,
    totals,
)
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def exchange() -> tuple[Any, ...]:
    with process_group(CPU):
        rank = group_rank()
        return rank, group_size(), totals([rank, 10]), from_main({"rank": rank}), gathered(f"rank {rank}")


def test_three_processes_exchange_values() -> None:
    results = run_ranks(exchange, 3)
    assert results == [(rank, 3, [3, 30], {"rank": 0}, ["rank 0", "rank 1", "rank 2"]) for rank in range(3)]


def test_one_process_exchanges_with_itself() -> None:
    with process_group(CPU):
        assert not is_distributed()
        assert (group_rank(), group_size()) == (0, 1)
        assert totals([1, 2]) == [1, 2]
        assert from_main("value") == "value"
        assert gathered(5) == [5]
        with together():
            pass
        with pytest.raises(DataError), together():
            raise DataError("No images")


def fail_together(failing: int) -> str:
    with process_group(CPU):
        with together():
            pass
        with together():
            if group_rank() == failing:
                raise InterruptedWorkError("Stopped", "resume", 143)
    return "not reached"


@pytest.mark.parametrize("failing", [0, 2])
def test_error_of_one_process_is_raised_by_the_first_and_ends_all(failing: int) -> None:
    first, *others = run_ranks(fail_together, 3, failing)
    assert isinstance(first, InterruptedWorkError)
    assert (first.problem, first.remedy, first.exit_code) == ("Stopped", "resume", 143)
    assert [(type(error), error.exit_code) for error in others] == [(PeerError, 143)] * 2


def lose(killed: int) -> str:
    with process_group(CPU):
        totals([0])
        if group_rank() == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        totals([0])
    return "not reached"


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_process_ends_the_others(killed: int) -> None:
    results = run_ranks(lose, 3, killed)
    assert results[killed] is None
    assert all(isinstance(error, PeerError) for rank, error in enumerate(results) if rank != killed)


def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "7")
    place = (torchrun.rank, torchrun.world_size, torchrun.local_rank, torchrun.local_world_size, torchrun.restarts)
    assert [function() for function in place] == [0, 1, 0, 1, 0]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert [function() for function in place] == [7] * 5
    assert not torchrun.is_main()
