"""The checkpoint that a recipe starts from, and what it decides: model shape, image size, normalization."""

from __future__ import annotations

from typing import Any

from deit.checkpoints.reading import Checkpoint, open_checkpoint
from deit.errors import RecipeError
from deit.hub import fetch
from deit.models.auto import load_processor, wrapper_class
from deit.models.channels import rgb_fields
from deit.models.timm_classifier import TimmClassifier
from deit.recipes.schema import SHAPE, ConvNet, Recipe, Transformer


def open_initial_checkpoint(name: str) -> Checkpoint:
    """Opens a transformer checkpoint to start training from.

    Args:
        name: a checkpoint of any format, a run, a hub name or a variant's name.

    Raises:
        CheckpointError: there is no such checkpoint.
        RecipeError: it is a convolutional network.
    """
    path = fetch(name)
    if wrapper_class(path) is TimmClassifier:
        raise RecipeError(f"{name} is a convolutional network", "use `deit teacher train` to continue training it")
    return open_checkpoint(path)


def config_changes(model: Transformer, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the configuration fields of the checkpoint that training changes: the recipe's image size, and RGB input."""
    size = {} if model.image_size is None else {"image_size": model.image_size}
    return {**size, **rgb_fields(checkpoint.config, checkpoint.path)}


def take_checkpoint_shape(recipe: Recipe, model: Transformer, checkpoint: Checkpoint) -> Recipe:
    """Returns the recipe with the model shape left to the checkpoint, and its image size and normalization filled in."""
    config = checkpoint.config.override(config_changes(model, checkpoint))
    mean, std = load_processor(checkpoint, config).rgb_statistics
    height, width = config.image_hw
    shape = dict.fromkeys(SHAPE) | {"variant": None, "image_size": height if height == width else (height, width)}
    return recipe.replace(model=shape, mean=mean, std=std)


def resolve_initial_checkpoint(recipe: Recipe, init: str | None) -> Recipe:
    """Returns the recipe with the image size and normalization of the checkpoint that training would start from.

    Raises:
        CheckpointError: there is no such checkpoint.
        RecipeError: the recipe starts from a checkpoint and none is given, or it is a convolutional network.
    """
    if isinstance(recipe.model, ConvNet):
        return recipe
    if init is None:
        recipe.model.config()  # raises if the recipe needs a checkpoint
        return recipe
    return take_checkpoint_shape(recipe, recipe.model, open_initial_checkpoint(init))
