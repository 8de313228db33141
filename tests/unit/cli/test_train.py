"""The training commands: what they pass on, and which options exclude each other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from deit.cli.main import app
from deit.distillation import build_cache
from deit.errors import UserError
from deit.training import run
from tests.unit.evaluation.test_metrics import evaluation

SHARED = {"init": None, "device": "auto", "workers": None, "skip_unreadable": False}


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
    return recorded


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train(calls: list[Any]) -> None:
    text = output("train", "photos", "--teacher", "t", "--model", "m", "--epochs", "3", "--workers", "2", "--out", "here")
    assert text.splitlines()[-2:] == ["Model:  runs/photos/best", "Report: runs/photos/report.html"]
    [(arguments, options)] = calls
    assert arguments == ("photos", "small-data-distilled")
    settings = {"model.variant": "m", "epochs": "3"}
    assert options == {
        **SHARED,
        "workers": 2,
        "out": Path("here"),
        "resume": None,
        "teacher": "t",
        "teacher_weights": None,
        "settings": settings,
    }


def test_resume_needs_no_data(calls: list[Any]) -> None:
    output("train", "--resume", "runs/photos")
    assert calls[0][0] == (None, "small-data")
    assert calls[0][1]["resume"] == Path("runs/photos")
    for command in (["train"], ["pretrain"], ["teacher", "train"]):
        with pytest.raises(UserError, match="pass --resume without other settings"):
            output(*command, "--resume", "runs/photos", "--epochs", "3")


def test_teacher_train(calls: list[Any]) -> None:
    assert 'Next: deit train "photos" --teacher "runs/photos"' in output("teacher", "train", "photos", "--arch", "resnet18")
    assert calls == [
        (("photos", "convnet"), {**SHARED, "out": None, "resume": None, "settings": {"model.architecture": "resnet18"}})
    ]
    output("teacher", "train", "digits")
    assert calls[1][0] == ("digits", "digits-convnet")


def test_teacher_cache(calls: list[Any]) -> None:
    text = output("teacher", "cache", "photos", "--teacher", "t", "--out", "a cache", "--top-k", "2", "--seed", "1")
    assert 'deit train "photos" --teacher "a cache"' in text
    [(arguments, options)] = calls
    assert arguments == ("photos", "small-data-distilled")
    own = {"teacher": "t", "out": Path("a cache"), "views": None, "top_k": 2, "teacher_weights": None}
    assert options == {**SHARED, **own, "settings": {"seed": "1"}}


def test_pretrain(calls: list[Any]) -> None:
    text = output("pretrain", "photos", "--init", "a model")
    assert "Best epoch: 3, validation loss 0.2500" in text
    assert 'Next: deit train DATA --init "runs/mim"' in text
    assert calls == [(("photos", "pretrain-mim"), {**SHARED, "init": "a model", "out": None, "resume": None, "settings": {}})]


@pytest.mark.parametrize(
    "command", [["train", "--model", "m"], ["pretrain", "--model", "m"], ["teacher", "train", "--arch", "a"]]
)
def test_init_and_a_shape_exclude_each_other(calls: list[Any], command: list[str]) -> None:
    with pytest.raises(UserError, match="both set the shape of the model"):
        output(*command, "--init", "a model")
    assert not calls
