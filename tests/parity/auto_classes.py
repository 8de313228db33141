"""Classifies images with the auto classes of transformers, 4.x or 5.x; also a program, run in the environment of 4.x.

    python auto_classes.py MODELS IMAGES RESULTS

Writes what :func:`classify_all` returns to RESULTS, as JSON. Imports nothing of this package.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

WAYS: dict[str, dict[str, Any]] = {"default": {}, "slow": {"use_fast": False}, "fast": {"use_fast": True}}
Scores = list[list[float]]  # one row per image, one column per class


def classify_all(models: Path, images: Path) -> dict[str, dict[str, Any]]:
    """Returns for each model, by name of its directory, the scores of each way to load it, or the message of an error."""
    files = sorted(images.iterdir())
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {model.name: _classify(model, files) for model in sorted(models.iterdir())}


def _classify(directory: Path, files: list[Path]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for way, options in WAYS.items():
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(directory, **options)
            results[way] = _scores(directory, processor, files)
        except ValueError as error:
            results[way] = str(error)
    results["pipeline"] = _pipeline_scores(directory, files)
    if transformers.__version__.startswith("4."):
        try:
            extractor = transformers.AutoFeatureExtractor.from_pretrained(directory)
            results["feature extractor"] = _scores(directory, extractor, files)
        except ValueError as error:
            results["feature extractor"] = str(error)
    return results


@torch.no_grad()
def _scores(directory: Path, processor: Any, files: list[Path]) -> Scores:
    model, report = transformers.AutoModelForImageClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    batch = processor(images=[Image.open(file) for file in files], return_tensors="pt")
    scores: Scores = model.eval()(**batch).logits.softmax(-1).tolist()
    return scores


def _pipeline_scores(directory: Path, files: list[Path]) -> Scores:
    classifier = transformers.pipeline("image-classification", model=str(directory), device="cpu")
    labels = classifier.model.config.id2label
    rows = []
    for predictions in classifier([str(file) for file in files], top_k=len(labels)):
        by_label = {prediction["label"]: prediction["score"] for prediction in predictions}
        rows.append([by_label[labels[index]] for index in sorted(labels)])
    return rows


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(classify_all(Path(sys.argv[1]), Path(sys.argv[2]))))
