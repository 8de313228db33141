"""Bundles as classifiers: the same interface and logits as the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deit.errors import UserError
from deit.export.export import ExportResult, export_model
from deit.images.processor import DeiTImageProcessor
from deit.inference.bundle_classifier import load_bundle_classifier
from deit.models.auto import load_classifier
from deit.models.modeling import DeiTForImageClassification
from tests.helpers import pattern, randomized, tiny_deit
from tests.unit.inference.conftest import CLASSES, HEADS, SIDE


def heads_of(classifier: Any, count: int) -> dict[str, torch.Tensor]:
    """Returns the logits for images that the classifier's own processor prepared."""
    images = [pattern(60, 50, seed=seed) for seed in range(count)]
    with torch.inference_mode():
        return dict(classifier.model(classifier.processor(images).pixel_values).heads)


def test_logits_of_all_heads_match_the_model(model: Path, onnx_bundle: ExportResult) -> None:
    classifier = load_bundle_classifier(onnx_bundle.bundle.path, "cpu")
    assert classifier.classes == CLASSES and classifier.path == onnx_bundle.bundle.path
    logits, expected = heads_of(classifier, 3), heads_of(load_classifier(model), 3)
    assert tuple(logits) == HEADS
    for head, values in expected.items():
        torch.testing.assert_close(logits[head], values, rtol=1e-4, atol=1e-4)


def test_one_head(photos: Path, tmp_path: Path) -> None:
    network = randomized(DeiTForImageClassification(tiny_deit()), std=0.1)
    network.save_pretrained(tmp_path / "a model")
    DeiTImageProcessor.for_size(SIDE, SIDE).save_pretrained(tmp_path / "a model")
    export_model(tmp_path / "a model", tmp_path / "a bundle", "onnx", calibrate=photos)
    assert tuple(heads_of(load_bundle_classifier(tmp_path / "a bundle"), 2)) == ("class",)


def test_empty_batch(onnx_bundle: ExportResult) -> None:
    classifier = load_bundle_classifier(onnx_bundle.bundle.path)
    heads = classifier.model(torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)).heads
    assert {name: tuple(logits.shape) for name, logits in heads.items()} == dict.fromkeys(HEADS, (0, len(CLASSES)))


def test_bundle_that_normalizes_gets_uint8_pixels(onnx_bundle: ExportResult) -> None:
    processor = load_bundle_classifier(onnx_bundle.bundle.path).processor
    assert not processor.do_rescale and not processor.do_normalize
    squashed = load_bundle_classifier(onnx_bundle.bundle.path, crop="squash").processor
    assert squashed.input_hw == (SIDE, SIDE)
    with pytest.raises(UserError, match="export the model with --crop pad"):
        load_bundle_classifier(onnx_bundle.bundle.path, crop="pad")
