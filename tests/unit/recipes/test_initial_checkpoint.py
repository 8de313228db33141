"""What the checkpoint that a recipe starts from decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.errors import RecipeError
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import ViTForImageClassification
from deit.recipes.initial_checkpoint import resolve_initial_checkpoint
from deit.recipes.presets import get_recipe
from deit.training.model_building import build_model
from tests.helpers import tiny_vit


def test_image_size_and_normalization_are_those_of_the_model_to_be_built(tmp_path: Path) -> None:
    ViTForImageClassification(tiny_vit(image_size=48)).save_pretrained(tmp_path)
    DeiTImageProcessor.for_size(48, 48, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).save_pretrained(tmp_path)
    recipe = get_recipe("finetune-small-data")
    resolved = resolve_initial_checkpoint(recipe, str(tmp_path))
    assert (resolved.image_hw, resolved.mean, resolved.std) == ((48, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert resolved == build_model(recipe, ("a", "b"), str(tmp_path)).recipe
    larger = recipe.replace(model={"image_size": (64, 32)})
    assert resolve_initial_checkpoint(larger, str(tmp_path)).image_hw == (64, 32)


def test_recipes_without_a_checkpoint_are_unchanged() -> None:
    for name in ("deit", "convnet"):
        assert resolve_initial_checkpoint(get_recipe(name), None) == get_recipe(name)
    with pytest.raises(RecipeError, match="pass --init MODEL"):
        resolve_initial_checkpoint(get_recipe("finetune"), None)
