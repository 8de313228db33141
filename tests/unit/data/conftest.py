"""Fixtures of the data sets' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.layouts import image_files


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A folder with training, validation and test part of two classes."""
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        for name in ("cat", "dog"):
            image_files(tmp_path / part / name, count)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_data_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_DATA", str(tmp_path_factory.mktemp("no data")))
