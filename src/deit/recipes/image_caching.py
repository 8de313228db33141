"""Decides for a run whether decoded images are kept."""

from __future__ import annotations

from dataclasses import replace

from deit.data.cache_choice import choose_cache
from deit.data.cache_request import CacheRequest
from deit.data.splits import Splits
from deit.data.transforms.augment import TrainTransform
from deit.errors import DeiTError
from deit.recipes.initial_checkpoint import resolve_initial_checkpoint
from deit.recipes.planning import IMAGE_SIZES
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import ConvNet, Recipe


def add_image_cache(splits: Splits, recipe: Recipe, settings: RunSettings) -> tuple[Splits, RunSettings, list[str]]:
    """Adds caches of decoded images to the splits of a run, if they are asked for or pay.

    Args:
        splits: the readable images.
        recipe: with what the data decides.
        settings: of the run; ``reduced_images`` if it is decided already.

    Returns:
        The splits, the settings with what was decided, and what the user should know.

    Raises:
        UserError: the settings of the cache are invalid.
    """
    request = CacheRequest(settings.cache, settings.cache_limit, settings.reduced_images)
    choice = choose_cache(splits, request, TrainTransform(recipe.augmentation, *_image_hw(recipe, settings.init)))
    return choice.splits, replace(settings, cache=choice.mode, reduced_images=choice.reduces), list(choice.notes)


def _image_hw(recipe: Recipe, init: str | None) -> tuple[int, int]:
    """Returns height and width of the model's input, or the largest that may be chosen for the time that is available."""
    largest = max(IMAGE_SIZES)
    if isinstance(recipe.model, ConvNet) and recipe.model.image_size is None:
        return largest, largest
    try:
        return resolve_initial_checkpoint(recipe, init).image_hw
    except DeiTError:  # building the model reports it; a resumed run does not need its initial checkpoint any more
        return largest, largest
