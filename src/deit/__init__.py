"""Data-efficient image transformers (DeiT): training, distillation, evaluation, inference and export.

The public API is ``__all__``. Each name is imported on first access, so that ``import deit`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit.config import DeiTConfig, ViTConfig
    from deit.distillation.teacher import Teacher
    from deit.evaluation.evaluate import evaluate
    from deit.evaluation.explanation import explain
    from deit.export.export import export_model
    from deit.export.web import export_web
    from deit.images.processor import (
        DeiTFeatureExtractor,
        DeiTImageProcessor,
        DeiTImageProcessorFast,
        ViTFeatureExtractor,
        ViTImageProcessor,
        ViTImageProcessorFast,
    )
    from deit.inference.predictor import Predictor
    from deit.models.modeling import (
        DeiTForImageClassification,
        DeiTForImageClassificationWithTeacher,
        DeiTForMaskedImageModeling,
        DeiTModel,
        DeiTPreTrainedModel,
        ViTForImageClassification,
        ViTForMaskedImageModeling,
        ViTModel,
        ViTPreTrainedModel,
        load_model,
    )
    from deit.recipes.schema import Recipe
    from deit.training.replay import replay
    from deit.training.run import pretrain, train
    from deit.training.tuning import tune

__version__ = "0.1.0"

_MODULES = {  # public name -> module that defines it
    "DeiTConfig": "deit.config",
    "DeiTFeatureExtractor": "deit.images.processor",
    "DeiTForImageClassification": "deit.models.modeling",
    "DeiTForImageClassificationWithTeacher": "deit.models.modeling",
    "DeiTForMaskedImageModeling": "deit.models.modeling",
    "DeiTImageProcessor": "deit.images.processor",
    "DeiTImageProcessorFast": "deit.images.processor",
    "DeiTModel": "deit.models.modeling",
    "DeiTPreTrainedModel": "deit.models.modeling",
    "Predictor": "deit.inference.predictor",
    "Recipe": "deit.recipes.schema",
    "Teacher": "deit.distillation.teacher",
    "ViTConfig": "deit.config",
    "ViTFeatureExtractor": "deit.images.processor",
    "ViTForImageClassification": "deit.models.modeling",
    "ViTForMaskedImageModeling": "deit.models.modeling",
    "ViTImageProcessor": "deit.images.processor",
    "ViTImageProcessorFast": "deit.images.processor",
    "ViTModel": "deit.models.modeling",
    "ViTPreTrainedModel": "deit.models.modeling",
    "evaluate": "deit.evaluation.evaluate",
    "explain": "deit.evaluation.explanation",
    "export_model": "deit.export.export",
    "export_web": "deit.export.web",
    "load_model": "deit.models.modeling",
    "pretrain": "deit.training.run",
    "replay": "deit.training.replay",
    "train": "deit.training.run",
    "tune": "deit.training.tuning",
}

__all__ = [
    "DeiTConfig",
    "DeiTFeatureExtractor",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "DeiTModel",
    "DeiTPreTrainedModel",
    "Predictor",
    "Recipe",
    "Teacher",
    "ViTConfig",
    "ViTFeatureExtractor",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTModel",
    "ViTPreTrainedModel",
    "evaluate",
    "explain",
    "export_model",
    "export_web",
    "load_model",
    "pretrain",
    "replay",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'deit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
