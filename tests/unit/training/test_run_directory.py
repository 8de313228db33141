"""Creating and reopening run directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.errors import CheckpointError, RecipeError, UserError
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.run_directory import new_run_directory, read_run, write_run


def test_new_directories_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = new_run_directory(None, "/data/my photos", "small-data")
    assert first == Path("runs/my photos-small-data")
    first.mkdir(parents=True)
    assert new_run_directory(None, "/data/my photos", "small-data").name == "my photos-small-data-2"


def test_directory_in_use_is_rejected(tmp_path: Path) -> None:
    assert new_run_directory(tmp_path, "digits", "digits") == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="exists already"):
        new_run_directory(tmp_path, "digits", "digits")


def test_directory_below_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        new_run_directory(tmp_path / "file/run", "digits", "digits")


def test_recipe_and_settings_round_trip(tmp_path: Path) -> None:
    recipe, settings = get_recipe("deit-distilled"), RunSettings("digits", teacher="regnety_160", skip_unreadable=True)
    write_run(tmp_path / "a run", recipe, settings)
    assert read_run(tmp_path / "a run") == (recipe, settings)
    _, moved = read_run(tmp_path / "a run", tmp_path)
    assert moved.data == str(tmp_path)


def test_other_and_corrupt_directories_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run directory"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"data": "digits", "unknown": 1}')
    with pytest.raises(CheckpointError, match=r"run\.json is corrupt"):
        read_run(tmp_path)
