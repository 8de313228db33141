"""From a recipe and a data set to the samples of every step: what training learns from, and a stored teacher answers."""

from __future__ import annotations

from deit.data.loader import TeacherTargets, TrainSamples
from deit.data.sampler import BatchPlan, epoch_steps, micro_batches
from deit.data.sources import ImageSource
from deit.data.transforms.augment import TrainTransform
from deit.recipes.schema import Recipe


def training_samples(
    recipe: Recipe, source: ImageSource, skip_unreadable: bool = False, teacher_targets: TeacherTargets | None = None
) -> TrainSamples:
    """What makes a recipe's batches, which carry the answers of a stored teacher where there is one."""
    transform = TrainTransform(recipe.augmentation, *recipe.image_hw, *recipe.processor().rgb_statistics)
    return TrainSamples(source, transform, recipe.mixing, recipe.seed, recipe.smoothing, skip_unreadable, teacher_targets)


def view_steps(recipe: Recipe, count: int, view: int) -> list[list[BatchPlan]]:
    """The steps of a view, each in its micro-batches.

    Args:
        count: training images.
        view: whose draws are taken: of an epoch, :meth:`Recipe.view`.
    """
    steps = epoch_steps(count, recipe.batch_size, recipe.seed, view, recipe.augmentation.repeats)
    return [micro_batches(step, recipe.micro_batch_size) for step in steps]
