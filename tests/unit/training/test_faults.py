"""Every write, sync and renaming fails in turn: the old or the new state is always left, complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.fault_injection import FAULTS, Fault
from benchmarks.faults import NEW, OLD, WORKS, Work, inject

SMALLEST = {"checkpoint": 12, "model directory": 8, "two files": 6}  # writes, syncs and renamings


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_nothing_saved_is_lost(tmp_path: Path, work: Work, fault: Fault) -> None:
    outcomes = inject(work, fault, tmp_path)
    assert set(outcomes) == {OLD, NEW}
    assert outcomes.total() >= SMALLEST[work.name.partition(",")[0]]
