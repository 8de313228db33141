"""``deit evaluate``: what is printed."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from deit.cli.main import app
from deit.evaluation.metrics import Evaluation
from tests.unit.evaluation.test_metrics import evaluation


def output(result: Evaluation, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    module = importlib.import_module("deit.evaluation.evaluate")
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: result)
    monkeypatch.setenv("COLUMNS", "100")
    done = CliRunner().invoke(app, ["evaluate", "a model", "photos", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = output(evaluation([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), monkeypatch).splitlines()
    rows = [line.split() for line in lines]
    assert lines[0].startswith("photos, 8 images, 2 images/s")
    assert ["a", "75.00%", "4"] in rows and ["b", "50.00%", "4"] in rows  # class c has no images
    assert rows[-4:] == [["b", "a", "2"], ["a", "b", "1"], [], ["2", "unreadable", "images", "were", "left", "out."]]


def test_restricted_predictions_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    result = replace(evaluation([[4, 0, 0], [0, 4, 0], [0, 0, 0]]), num_classes_evaluated=2, skipped=0)
    text = output(result, monkeypatch)
    assert "Predictions were restricted to 2 of the model's 3 classes." in text
    assert "predicted as" not in text and "unreadable" not in text


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluation([[4, 0], [0, 4]])
    assert json.loads(output(result, monkeypatch, "--json")) == result.to_dict()
