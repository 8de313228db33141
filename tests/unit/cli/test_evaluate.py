"""``deit evaluate``: what is printed."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from deit.cli.main import app
from deit.data.image_hashes import SeenImages
from deit.evaluation.metrics import Evaluation, HeadMetrics, Scores
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


@pytest.mark.parametrize(
    ("seen", "lines"),
    [
        (SeenImages(30, 0, 0), ["The model was trained on 30 of 40 images; the other 10 were evaluated."]),
        (SeenImages(0, 4, 0), ["The model was trained on 4 of these 10 images: it may be less accurate on others."]),
        (SeenImages(0, 0, 5), ["5 of these images also selected the checkpoint: the accuracy is slightly optimistic."]),
        (SeenImages(0, 0, 0), []),
        (None, []),
    ],
)
def test_images_that_training_saw_are_reported(
    monkeypatch: pytest.MonkeyPatch, seen: SeenImages | None, lines: list[str]
) -> None:
    result = replace(evaluation([[4, 2], [0, 2]]), seen=seen)  # and two unreadable images
    text = output(result, monkeypatch)
    assert [line for line in text.splitlines() if "trained on" in line or "selected the" in line] == lines
    printed = json.loads(output(result, monkeypatch, "--json"))["seen"]
    assert printed == (None if seen is None else asdict(seen))


@pytest.mark.parametrize(("classes", "listed"), [(40, 40), (41, 20)])
def test_of_many_classes_the_worst_are_listed(monkeypatch: pytest.MonkeyPatch, classes: int, listed: int) -> None:
    correct = np.arange(classes)[::-1] % 2 == 0
    labels = np.arange(classes)
    scores = Scores(labels, np.where(correct, labels, 0), np.full(classes, 0.5), np.ones(classes), correct)
    names = tuple(f"class {index}" for index in range(classes))
    metrics = {"class": HeadMetrics(0.5, 0.5, 0.5, 0.5)}
    text = output(Evaluation(names, metrics, scores, labels, 0, 1.0), monkeypatch)
    assert ("The 20 worst of 41 classes" in text) == (classes == 41)
    assert len([line for line in text.splitlines() if line.startswith("class ") and "%" in line]) == listed + 1  # and the head


def test_classes_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    result = replace(evaluation([[3, 1, 0], [0, 4, 0], [0, 1, 1]]), classes=("crane", "heron", "crane"))
    rows = [line.split() for line in output(result, monkeypatch).splitlines()]
    assert ["crane", "[0]", "75.00%", "4"] in rows
    assert ["crane", "[2]", "50.00%", "2"] in rows
