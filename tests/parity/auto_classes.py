"""Classifies images with the auto classes of transformers, 4.x or 5.x; also a program, run in the environment of 4.x.

    python auto_classes.py FOLDER RESULTS

Writes what :func:`read_all` returns to RESULTS, as JSON. This package must be importable.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import deit

transformers: Any = importlib.import_module("transformers")  # of either version, so without its types
WAYS: dict[str, dict[str, Any]] = {"default": {}, "slow": {"use_fast": False}, "fast": {"use_fast": True}}
Scores = list[list[float]]  # one row per image, one column per class


def read_all(folder: Path) -> dict[str, Any]:
    """Reads the models in ``folder``.

    Args:
        folder: with directories ``models`` and ``images``, and the model ``masked``, of masked image modeling.

    Returns:
        For each model, by name of its directory, the scores of each way to load it, or the message of an error; for
        ``masked``, the sum of its absolute weights.
    """
    files = sorted((folder / "images").iterdir())
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = {model.name: _classify(model, files) for model in sorted((folder / "models").iterdir())}
        return {**scores, "masked": _sum_of_weights(folder / "masked")}


def _sum_of_weights(directory: Path) -> float:
    model, report = transformers.AutoModelForMaskedImageModeling.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    return float(sum(tensor.double().abs().sum().item() for tensor in model.state_dict().values()))


def _classify(directory: Path, files: list[Path]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for way, options in WAYS.items():
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(directory, **options)
            results[way] = _scores(directory, processor, files)
        except ValueError as error:
            results[way] = str(error)
    results["pipeline"] = _pipeline_scores(files, model=str(directory))
    ours = {"model": deit.load_model(directory), "image_processor": deit.DeiTImageProcessor.from_pretrained(directory)}
    results["pipeline of our objects"] = _pipeline_scores(files, **ours)
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


def _pipeline_scores(files: list[Path], **arguments: Any) -> Scores:
    classifier = transformers.pipeline("image-classification", device="cpu", **arguments)
    labels = classifier.model.config.id2label
    rows = []
    for predictions in classifier([str(file) for file in files], top_k=len(labels)):
        by_label = {prediction["label"]: prediction["score"] for prediction in predictions}
        rows.append([by_label[labels[index]] for index in sorted(labels)])
    return rows


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(read_all(Path(sys.argv[1]))))
