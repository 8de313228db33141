"""Processes that are killed at random moments and resumed end in the same bits as one that was never stopped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from benchmarks import kills

KILLS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed runs")
    kills.make_images(folder / "images")
    kills.make_teachers(folder)
    return folder


@pytest.mark.parametrize("setup", kills.setups(), ids=lambda setup: setup.name)
def test_killed_runs_end_in_the_same_bits(folder: Path, setup: kills.Setup) -> None:
    ended, different = kills.kill_and_resume(folder, setup, KILLS // len(kills.setups()), random.Random(0))
    assert ended >= 1
    assert different == 0
