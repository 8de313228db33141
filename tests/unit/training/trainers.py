"""Small trainers, for the tests of this package."""

from __future__ import annotations

from pathlib import Path

import torch

from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training.loop import Trainer
from deit.training.model_building import build_model
from deit.training.trainer_building import build_trainer
from tests.helpers import memory_splits


def tiny_trainer(directory: Path, recipe: Recipe | None = None, images: int = 48) -> Trainer:
    """A trainer of a tiny model without a teacher, on images in memory."""
    splits = memory_splits(images)
    built = build_model(recipe or get_recipe("small-data").tiny(), splits.classes)
    return build_trainer(directory, built, None, splits, splits.record, RunSettings("memory"), torch.device("cpu"), 0)
