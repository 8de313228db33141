"""``deit quickstart``: which directories it may remove, and when a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deit.cli import quickstart
from deit.training import run


def test_only_own_runs_are_removed(tmp_path: Path) -> None:
    for name in ("teacher", "student", "thesis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "teacher" / "run.json").touch()
    (tmp_path / "thesis" / "run.json").touch()
    quickstart.remove_runs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "thesis"]  # student has no run.json


def test_existing_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(run, "train", lambda *args, **options: calls.append((args, options)))
    quickstart._train_or_resume(tmp_path, "digits-convnet", None, "cpu", 0)
    (tmp_path / "run.json").touch()
    quickstart._train_or_resume(tmp_path, "digits-convnet", None, "cpu", 0)
    shared = {"device": "cpu", "workers": 0}
    assert calls == [
        (("digits", "digits-convnet"), {"out": tmp_path, "teacher": None, **shared}),
        ((), {"resume": tmp_path, **shared}),
    ]
