"""From a recipe and a data set to the samples of every training step."""

from __future__ import annotations

from collections.abc import Iterator

from deit.data.image_cache import ImageCache
from deit.data.loader import Batch, TeacherTargets, TrainSamples
from deit.data.sampler import BatchPlan, epoch_steps, micro_batches, rank_share
from deit.data.sources import ImageSource
from deit.data.transforms.augment import TrainTransform
from deit.recipes.schema import Recipe


def training_samples(
    recipe: Recipe,
    source: ImageSource,
    skip_unreadable: bool = False,
    teacher_targets: TeacherTargets | None = None,
    cache: ImageCache | None = None,
) -> TrainSamples:
    """Returns the training samples of a recipe.

    Args:
        recipe: augmentation, mixing, normalization and seed.
        source: the training images.
        skip_unreadable: leave unreadable images out of their batch, instead of raising an error.
        teacher_targets: cached teacher logits that batches carry; None without.
        cache: decoded images; None decodes every image anew.
    """
    transform = TrainTransform(recipe.augmentation, *recipe.image_hw, *recipe.processor().rgb_statistics)
    return TrainSamples(
        source, transform, recipe.mixing, recipe.seed, recipe.smoothing, skip_unreadable, teacher_targets, cache
    )


def view_steps(recipe: Recipe, count: int, view: int, rank: int = 0, ranks: int = 1) -> list[list[BatchPlan]]:
    """Returns the steps of a view, each as a list of micro-batches.

    The global batches do not depend on the number of ranks.

    Args:
        recipe: batch sizes, seed and repeated augmentation.
        count: number of training images.
        view: the view; :meth:`Recipe.view` maps an epoch to it.
        rank: whose share of each step is returned.
        ranks: number of processes that share a step.
    """
    steps = epoch_steps(count, recipe.images_per_batch, recipe.seed, view, recipe.augmentation.repeats)
    return [micro_batches(rank_share(step, rank, ranks), recipe.images_per_micro_batch) for step in steps]


def first_batches(recipe: Recipe, samples: TrainSamples, count: int) -> Iterator[Batch]:
    """Yields the first ``count`` samples of view 0, or as many as there are, in micro-batches."""
    for step in view_steps(recipe, len(samples.source.labels), 0):
        for plan in step:
            if count <= 0:
                return
            yield samples.batch(BatchPlan(plan.epoch, plan.step, plan.samples[:count]))
            count -= len(plan.samples)
