"""The benchmark of asked and used minutes: what an earlier result contributes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import minutes

HEADER = {"hardware": "a CPU", "software": "torch", "minutes": 10.0, "quick": False}


def test_rows_of_the_same_options_and_environment_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "RESULTS", tmp_path)
    assert minutes.previous_results(HEADER) == []
    rows = [{"date": "2026-11-30", "folder": "small", "model": "teacher"}]
    (tmp_path / "minutes.json").write_text(json.dumps({**HEADER, "results": rows}))
    assert minutes.previous_results(HEADER) == rows
    assert minutes.previous_results({**HEADER, "minutes": 3.0}) == []
    assert minutes.previous_results({**HEADER, "hardware": "another CPU"}) == []
