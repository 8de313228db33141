"""``deit teacher``: the arguments that it passes on, and its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deit.cli.common import STARTED
from tests.unit.cli.options import SHARED, output


def test_teacher_train(calls: list[Any]) -> None:
    assert 'Next: deit train "photos" --teacher "runs/photos"' in output("teacher", "train", "photos", "--arch", "resnet18")
    settings = {"model.architecture": "resnet18"}
    expected = {
        **SHARED,
        "out": None,
        "resume": None,
        "settings": settings,
        "checkpoint_minutes": 5.0,
        "track": False,
        "compiled": False,
        "started": STARTED,
    }
    assert calls == [(("photos", "convnet"), expected)]
    output("teacher", "train", "digits")
    assert calls[1][0] == ("digits", "digits-convnet")


def test_teacher_cache(calls: list[Any]) -> None:
    text = output("teacher", "cache", "photos", "--teacher", "t", "--out", "a cache", "--top-k", "2", "--seed", "1")
    assert 'deit train "photos" --teacher "a cache"' in text
    [(arguments, options)] = calls
    assert arguments == ("photos", "small-data-distilled")
    own = {
        "teacher": "t",
        "out": Path("a cache"),
        "views": None,
        "top_k": 2,
        "features": None,
        "teacher_weights": None,
        "teacher_classes": "name",
    }
    assert options == {**SHARED, **own, "settings": {"seed": "1"}}
    for flag, value in (("--features", True), ("--no-features", False)):
        output("teacher", "cache", "photos", "--teacher", "t", "--out", "a cache", flag)
        assert calls[-1][1]["features"] is value
