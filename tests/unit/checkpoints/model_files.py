"""Small model and run directories as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deit.checkpoints.run_log import write_log
from deit.recipes.presets import get_recipe
from deit.recipes.schema import Recipe
from deit.system.files import write_json
from tests.helpers import TINY

CLASSES = ("red", "green", "blue")
RECORD = {"fingerprint": "ab" * 32, "split_seed": 0, "validation_fraction": 0.2}
CONFIG: dict[str, Any] = {
    "model_type": "deit",
    "architectures": ["DeiTForImageClassificationWithTeacher"],
    **TINY,
}
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "image_processor_type": "DeiTImageProcessor",
}


def head(top1: float) -> dict[str, float]:
    return {"top1": top1, "top5": 1.0, "loss": 0.5, "calibration_error": 0.0625}


def evaluation() -> dict[str, Any]:
    return {
        "split": "test",
        "best_epoch": 1,
        "images": 40,
        "heads": {"class": head(0.7), "distillation": head(0.725), "both": head(0.75)},
        "top1_interval": {"low": 0.598, "high": 0.858},
        "per_class": {"red": 0.5, "green": 1.0, "blue": 0.75},
        "data": {"images": {"train": 120, "validation": 40, "test": 40}, "origin": "the folder's own splits: train, val, test"},
        "teacher": {"heads": {"class": head(0.8)}},
    }


def recipe() -> Recipe:
    return get_recipe("small-data-distilled").tiny()


def log() -> list[dict[str, Any]]:
    accuracies = ((1, 0.9), (2, 0.6))
    return [{"epoch": epoch, "validation": {"top1": top1, "loss": 0.25}} for epoch, top1 in accuracies]


def make_model(directory: Path, classes: tuple[str, ...] = CLASSES, **fields: Any) -> Path:
    """Writes a model directory whose weights are two tensors with 30 parameters."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", {**CONFIG, "id2label": dict(enumerate(classes)), **fields})
    write_json(directory / "preprocessor_config.json", PROCESSOR)
    write_json(directory / "training.json", RECORD)
    tensors = {"deit.layernorm.weight": np.zeros(24, np.float32), "cls_classifier.weight": np.zeros((2, 3), np.float32)}
    save_file(tensors, directory / "model.safetensors")
    return directory


def make_run(directory: Path, data: str = "/home/alice/holiday photos", classes: tuple[str, ...] = CLASSES) -> Path:
    """Writes a finished run of two epochs, of which the first is the best."""
    for name in ("best", "last"):
        make_model(directory / name, classes)
    teacher = "/home/alice/runs/a teacher"
    write_json(
        directory / "run.json", {"data": data, "teacher": teacher, "teacher_weights": "/home/alice/w.pt", "split_seed": 0}
    )
    recipe().save(directory / "recipe.toml")
    write_log(directory, log())
    write_json(directory / "evaluation.json", evaluation())
    return directory


def make_timm_model(directory: Path) -> Path:
    """Writes a model directory of timm."""
    directory.mkdir(parents=True)
    settings = {"input_size": [3, 32, 32], "label_names": list(CLASSES)}
    write_json(directory / "config.json", {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": settings})
    tensors = {"conv1.weight": np.zeros(7, np.float32), "bn1.running_mean": np.zeros(5, np.float32)}
    save_file(tensors, directory / "model.safetensors")
    return directory
