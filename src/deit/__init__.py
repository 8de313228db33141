"""DeiT: from a folder of images to a distilled vision transformer.

The public names are those in ``__all__``; each is imported when it is first used, so that ``import deit`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit.config import DeiTConfig, ViTConfig
    from deit.distillation.teacher import Teacher
    from deit.evaluation import evaluate
    from deit.image_processor import DeiTFeatureExtractor, DeiTImageProcessor
    from deit.inference.export import export
    from deit.inference.predictor import Predictor
    from deit.modeling import (
        DeiTForImageClassification,
        DeiTForImageClassificationWithTeacher,
        DeiTForMaskedImageModeling,
        DeiTModel,
        ViTForImageClassification,
        ViTModel,
        load_model,
    )
    from deit.training.recipe import Recipe
    from deit.training.run import pretrain, train

__version__ = "0.1.0"

_HOMES = {
    "DeiTConfig": "deit.config",
    "DeiTFeatureExtractor": "deit.image_processor",
    "DeiTForImageClassification": "deit.modeling",
    "DeiTForImageClassificationWithTeacher": "deit.modeling",
    "DeiTForMaskedImageModeling": "deit.modeling",
    "DeiTImageProcessor": "deit.image_processor",
    "DeiTModel": "deit.modeling",
    "Predictor": "deit.inference.predictor",
    "Recipe": "deit.training.recipe",
    "Teacher": "deit.distillation.teacher",
    "ViTConfig": "deit.config",
    "ViTForImageClassification": "deit.modeling",
    "ViTModel": "deit.modeling",
    "evaluate": "deit.evaluation",
    "export": "deit.inference.export",
    "load_model": "deit.modeling",
    "pretrain": "deit.training.run",
    "train": "deit.training.run",
}

__all__ = [
    "DeiTConfig",
    "DeiTFeatureExtractor",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "DeiTImageProcessor",
    "DeiTModel",
    "Predictor",
    "Recipe",
    "Teacher",
    "ViTConfig",
    "ViTForImageClassification",
    "ViTModel",
    "evaluate",
    "export",
    "load_model",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
