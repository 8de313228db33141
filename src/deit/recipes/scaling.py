"""What a recipe's values mean where it is run with another batch, length or data set than it was made for."""

from __future__ import annotations

from deit.data.sampler import steps_per_epoch
from deit.recipes.presets import RECIPES
from deit.recipes.schema import Recipe
from deit.system.progress import plural

OTHER_SIZE = 2.0  # a data set that differs by more than this factor is worth a word


def scaled(recipe: Recipe, images: int) -> list[str]:
    """One sentence for each thing in which a run differs from what its recipe was made for: what scales with it, what does not.

    Args:
        recipe: as it is run.
        images: in the training set.

    Example:
        >>> print(scaled(RECIPES["deit"]().replace(batch_size=256), 1_281_167)[0])
        Batch 256, made for 1,024: the learning rate is scaled with it to 0.00025, warm-up and weight decay are not
    """
    if recipe.name not in RECIPES:
        return []
    made = RECIPES[recipe.name]()
    notes = []
    if recipe.batch_size != made.batch_size:
        notes.append(
            f"Batch {recipe.batch_size:,}, made for {made.batch_size:,}: the learning rate is scaled with it to "
            f"{recipe.peak_lr:.3g}, warm-up and weight decay are not"
        )
    if recipe.epochs != made.epochs:
        decays = "the cosine ends with them" if recipe.optimizer.schedule == "cosine" else "the learning rate stays"
        notes.append(
            f"Epochs {recipe.epochs:,}, made for {made.epochs:,}: {decays}, the warm-up of "
            f"{recipe.optimizer.warmup_epochs:g} epochs is not changed"
            + (" and is all there is" if recipe.optimizer.warmup_epochs >= recipe.epochs else "")
        )
    steps = recipe.epochs * steps_per_epoch(images, recipe.batch_size)
    if not recipe.images / OTHER_SIZE <= images <= recipe.images * OTHER_SIZE:
        planned = made.epochs * steps_per_epoch(recipe.images, made.batch_size)
        notes.append(
            f"{images:,} training images, made for {recipe.images:,}: {plural(steps, 'step')} in place of {planned:,}, "
            "and no value is scaled for that"
        )
    memory = 1 / (1 - recipe.average.decay)
    if memory > steps / 2 and recipe.average.decay and not recipe.average.warmup:
        notes.append(
            f"The average of the weights remembers {memory:,.0f} steps and training takes {steps:,}, so that the average "
            f"holds much of the first weights; --set average.decay={max(1 - 10 / max(steps, 11), 0.5):.4g} is shorter"
        )
    return notes
