"""Settings of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.recipes.run_settings import absolute


def test_only_existing_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute("a run") == str(tmp_path / "a run")
    assert absolute("regnety_160") == "regnety_160"
