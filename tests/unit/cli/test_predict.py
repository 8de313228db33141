"""``deit predict``: what its arguments stand for."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deit.cli.predict import STANDARD_INPUT, read_inputs
from deit.errors import UserError


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_files_folders_and_standard_input_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"an image")
    folder = tmp_path / "photos"
    folder.mkdir()
    files = [folder / name for name in ("a.png", "b.jpg")]
    for file in (*files, folder / "notes.txt"):
        file.touch()
    items, names = read_inputs([str(files[1]), STANDARD_INPUT, str(folder)])
    assert items == [files[1], b"an image", *files]
    assert names == [str(files[1]), "standard input", *map(str, files)]


def test_empty_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"")
    with pytest.raises(UserError, match="Standard input is empty: pipe an image file into it"):
        read_inputs([STANDARD_INPUT])


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_inputs([str(tmp_path / "nowhere.jpg")])
