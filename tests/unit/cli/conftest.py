"""Replaces the functions that train, for the tests of the commands that call them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deit.distillation import build_cache
from deit.training import run, tuning
from deit.training.tuning import Trial, TuneResult
from tests.unit.evaluation.test_metrics import evaluation


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Replaces the training functions, and returns the arguments of their calls."""
    recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(result: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            recorded.append((arguments, options))
            return result

        return call

    metrics = evaluation([[8, 0], [2, 0]])
    finished = SimpleNamespace(directory=Path("runs/photos"), split="test", evaluation=metrics, teacher=None)
    cache = SimpleNamespace(images=16, views=2, bytes=64, bytes_per_sample=2, seconds=3.0, images_per_second=10.0)
    monkeypatch.setattr(run, "train", record(finished))
    monkeypatch.setattr(run, "pretrain", record(SimpleNamespace(directory=Path("runs/mim"), epoch=3, loss=0.25)))
    monkeypatch.setattr(build_cache, "build_cache", record(cache))
    trials = [Trial(1, {"optimizer.lr": "0.01"}, 20, 0.9, 0.5, True), Trial(0, {}, 2, None, None)]
    tuned = TuneResult(Path("runs/search"), Path("runs/search/tuned.toml"), trials, finished)  # type: ignore[arg-type]
    monkeypatch.setattr(tuning, "tune", record(tuned))
    return recorded
