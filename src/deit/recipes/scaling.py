"""Notes on a run whose batch size, length or data set differs from what its recipe was made for."""

from __future__ import annotations

from deit.data.sampler import steps_per_epoch
from deit.recipes.presets import RECIPES
from deit.recipes.schema import Recipe
from deit.system.progress import plural

DATASET_SIZE_TOLERANCE = 2.0  # a data set that is larger or smaller by more than this factor is noted


def scaling_notes(recipe: Recipe, images: int) -> list[str]:
    """Returns one sentence per difference from the recipe's reference: what is scaled with it, and what is not.

    Args:
        recipe: the recipe as it is run.
        images: size of the training set.

    Example:
        >>> print(scaling_notes(RECIPES["deit"]().replace(batch_size=256), 1_281_167)[0])
        Batch size 256, made for 1,024: the learning rate is scaled to 0.00025, warm-up and weight decay are not
    """
    if recipe.name not in RECIPES:
        return []
    reference = RECIPES[recipe.name]()
    notes = []
    if reference.batch_size not in (None, recipe.images_per_batch):
        notes.append(
            f"Batch size {recipe.images_per_batch:,}, made for {reference.batch_size:,}: the learning rate is scaled to "
            f"{recipe.peak_lr:.3g}, warm-up and weight decay are not"
        )
    if recipe.epochs != reference.epochs:
        cosine = recipe.optimizer.schedule == "cosine"
        schedule = "the cosine schedule ends with them" if cosine else "the learning rate is constant"
        only_warmup = " and covers the whole run" if recipe.optimizer.warmup_epochs >= recipe.epochs else ""
        notes.append(
            f"{plural(recipe.epochs, 'epoch')}, made for {reference.epochs:,}: {schedule}, the warm-up of "
            f"{recipe.optimizer.warmup_epochs:g} epochs is not scaled{only_warmup}"
        )
    steps = recipe.epochs * steps_per_epoch(images, recipe.images_per_batch)
    if not recipe.images / DATASET_SIZE_TOLERANCE <= images <= recipe.images * DATASET_SIZE_TOLERANCE:
        reference_steps = reference.epochs * steps_per_epoch(recipe.images, reference.batch_size or recipe.images_per_batch)
        notes.append(
            f"{images:,} training images, made for {recipe.images:,}: {plural(steps, 'step')} instead of {reference_steps:,}, "
            "and no value is scaled"
        )
    ema_memory = 1 / (1 - recipe.ema.decay)  # in steps
    if ema_memory > steps / 2 and recipe.ema.decay and not recipe.ema.warmup:
        notes.append(
            f"The EMA remembers {ema_memory:,.0f} steps and training takes {steps:,}, so that it still holds much of the "
            f"initial weights; --set ema.decay={max(1 - 10 / max(steps, 11), 0.5):.4g} makes it shorter"
        )
    return notes
