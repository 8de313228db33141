"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.layouts import image_files


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """A folder with a training, validation and test split of two classes."""
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for name in ("cat", "dog"):
            image_files(tmp_path / split / name, count)
    return tmp_path


@pytest.fixture(autouse=True)
def _empty_data_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_DATA", str(tmp_path_factory.mktemp("no data")))
