"""Metrics computed by hand, and their ranges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.evaluation.metrics import (
    Evaluation,
    HeadMetrics,
    Scores,
    calibration_bins,
    calibration_error,
    head_metrics,
    wilson_interval,
)


def evaluation(confusion: list[list[int]]) -> Evaluation:
    matrix = np.array(confusion)
    labels = np.repeat(np.arange(len(matrix)), matrix.sum(axis=1))
    predictions = np.concatenate([np.repeat(np.arange(len(matrix)), row) for row in matrix])
    confidence = np.full(len(labels), 0.5, np.float32)
    scores = Scores(labels, predictions, confidence, confidence, np.ones(len(labels), bool))
    metrics = HeadMetrics(float(np.trace(matrix) / len(labels)), 1.0, 0.5, 0.1)
    names = tuple("abcdef"[: len(matrix)])
    return Evaluation(names, {"class": metrics}, scores, np.arange(len(labels)), 2, 4.0)


def test_per_class_and_most_confused() -> None:
    result = evaluation([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    assert (result.images, result.correct, result.images_per_second) == (8, 5, 2.0)
    assert result.per_class == {"a": 0.75, "b": 0.5}  # class c has no images
    assert result.most_confused(5) == [("b", "a", 2), ("a", "b", 1)]
    assert result.most_confused(1) == [("b", "a", 2)]


def test_to_dict_is_valid_json() -> None:
    result = evaluation([[8, 0], [2, 0]])
    content = json.loads(json.dumps(result.to_dict()))
    assert content["heads"] == {"class": {"top1": 0.8, "top5": 1.0, "loss": 0.5, "calibration_error": 0.1}}
    assert content["top1_interval"] == {"low": pytest.approx(0.490, abs=1e-3), "high": pytest.approx(0.943, abs=1e-3)}
    assert (content["images"], content["skipped"], content["num_classes_evaluated"]) == (10, 2, 2)
    assert content["confusion"] == {"true": [0, 1], "predicted": [0, 0], "images": [8, 2], "omitted": 0}


def test_head_metrics_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0], [5.0, 1.0, 2.0]]).log()  # softmaxes: the same over 8
    metrics = head_metrics(logits, torch.tensor([2, 1]))
    assert (metrics.top1, metrics.top5) == (0.5, 1.0)
    assert metrics.loss == pytest.approx((math.log(8 / 5) + math.log(8)) / 2)
    assert metrics.calibration_error == pytest.approx(5 / 8 - 1 / 2)


def test_calibration_by_hand() -> None:
    # Bins of 1/15: 0.95 and 0.97 fall into the last, 0.55 into the ninth. Gaps: |0.96 - 1/2| and |0.55 - 1|.
    probabilities = np.array([[0.95, 0.05], [0.03, 0.97], [0.55, 0.45]])
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == 0
    bins = calibration_bins(confidence, correct)
    assert bins.shape == (15, 3)
    assert bins[14].tolist() == pytest.approx([2, 0.96, 0.5])
    assert bins[8].tolist() == pytest.approx([1, 0.55, 1.0])
    assert bins[:, 0].sum() == 3
    assert calibration_error(confidence, correct) == pytest.approx((2 * 0.46 + 0.45) / 3)


def test_fully_confident_model_is_calibrated_if_it_is_always_correct() -> None:
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1


@given(st.integers(1, 40), st.integers(1, 6), st.floats(0, 50), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_calibration_error_is_in_range(count: int, classes: int, sharpness: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((count, classes))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = rng.integers(classes, size=count)
    confidence, correct = probabilities.max(axis=1).astype(np.float32), probabilities.argmax(axis=1) == labels
    bins = calibration_bins(confidence, correct)
    assert bins[:, 0].sum() == count
    assert 0 <= calibration_error(confidence, correct) <= 1


@pytest.mark.parametrize(
    ("correct", "images", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (2, 6, (0.0968, 0.7000)), (50, 100, (0.4038, 0.5962))],
)
def test_wilson_interval(correct: int, images: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(correct, images) == pytest.approx(expected, abs=1e-4)
