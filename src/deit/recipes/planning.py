"""Chooses what a recipe leaves open: image size, batch size and model size, from the data and the available time.

There are two steps. What the data alone decides comes first, so that cached logits and the training that replays them agree.
What the time decides comes second; the caller measures how fast a candidate trains. The number of steps is planned last, when
all is ready to train (:mod:`deit.training.time_limit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deit.data.file_info import image_sizes
from deit.data.mirror import MirrorTest, mirror_test
from deit.data.sources import ImageSource, subset
from deit.data.splits import Splits
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.recipes.scaling import scaling_notes
from deit.recipes.schema import ConvNet, Recipe, Transformer

SIZE_SAMPLES = 1000  # images whose size is read
IMAGE_SIZES = (128, 96, 64, 48, 32, 28, 24, 16)  # pixels; a small model learns little from larger images in a short time
CONVNET_ENLARGEMENT = 1.5  # most convolutional networks downsample fourfold in their first layers: enlarge small images
SMALLEST_HALVED = 48  # pixels; half of smaller images teach a convolutional network little (docs/log.md)
VARIANT_PATCH_SIZE = 16  # of all published models
# (minimum number of training images, batch size). Many small steps suit a transformer better (docs/log.md).
BATCH_SIZES = {"transformer": ((200_000, 128), (100_000, 64), (0, 32)), "convnet": ((20_000, 128), (0, 32))}
DEFAULT_MINUTES = 10.0  # time that the model size is chosen for where none is given
# A larger transformer must leave time for MIN_SAMPLES * max(images / FEW_IMAGES, 1) ** GROWTH training samples: few images are
# repeated in MIN_SAMPLES / FEW_IMAGES epochs or more, and the more images there are, the fewer epochs are needed.
MIN_SAMPLES = 66_000
FEW_IMAGES = 2_750
GROWTH = 0.5
CONVNET_SHARE = 0.5  # share of these samples for a larger image size of a convolutional network, which learns faster
MIN_MICRO_BATCH = 16  # images; smaller ones take much more time per image
MAX_MICRO_BATCH = 128  # images, which limits the memory that a step takes

Speed = Callable[[Recipe], float]  # recipe -> seconds per training sample, with its share of the evaluation between epochs


@dataclass(frozen=True)
class DatasetStats:
    """Statistics of a training set that sizes are chosen from.

    Attributes:
        images: number of training images.
        side: median of the shorter sides, in pixels.
        mirror: whether horizontally flipped images look like their class; None if that was not tested.
    """

    images: int
    side: int
    mirror: MirrorTest | None = None


@dataclass(frozen=True)
class Shape:
    """A transformer size; ``grid`` is the preferred number of patches per side."""

    grid: int
    width: int
    depth: int
    heads: int


# By increasing cost. Eight heads cover nearly all neighbors of a patch (see training/local_init.py).
SHAPES = (
    Shape(8, 96, 4, 8),
    Shape(8, 128, 6, 8),
    Shape(8, 192, 6, 8),
    Shape(8, 256, 8, 8),
    Shape(14, 192, 12, 8),
    Shape(14, 384, 12, 8),
)


def has_open_sizes(recipe: Recipe) -> bool:
    """Whether a recipe leaves sizes to the data and the time."""
    model = recipe.model
    return model.image_size is None if isinstance(model, ConvNet) else model.sizes == "data"


def needs_planning(recipe: Recipe) -> bool:
    """Whether a recipe leaves any value to the data or the time."""
    return has_open_sizes(recipe) or recipe.batch_size is None or recipe.mirror_test or recipe.minutes is not None


def dataset_stats(source: ImageSource, test_mirror: bool) -> DatasetStats:
    """Reads image sizes of a training set and, if ``test_mirror``, tests horizontal flips on it."""
    count = len(source.labels)
    indices = np.unique(np.linspace(0, count - 1, min(SIZE_SAMPLES, count)).astype(int))
    sides = image_sizes(subset(source, indices)).min(axis=1)
    readable = sides[sides > 0]  # training reports damaged images
    side = round(float(np.median(readable))) if len(readable) else IMAGE_SIZES[0]
    return DatasetStats(count, side, mirror_test(source) if test_mirror else None)


def resolve_recipe(recipe: Recipe, splits: Splits, parallel: int = 1) -> tuple[Recipe, list[str]]:
    """Fills in what the data decides, limits the batch size to the size of the training set, and divides batches.

    Args:
        recipe: the recipe.
        splits: the data set.
        parallel: as for :func:`choose_micro_batch_size`.

    Returns:
        The recipe, and one sentence per choice.
    """
    images = len(splits.train.labels)
    notes: list[str] = []
    if needs_planning(recipe):
        recipe, notes = plan_from_data(recipe, dataset_stats(splits.train, recipe.mirror_test))
    if recipe.images_per_batch > images:
        notes.append(
            f"The {images} training images are fewer than the batch size of {recipe.images_per_batch:,}: one batch per epoch"
        )
        recipe = recipe.replace(batch_size=images)
    return choose_micro_batch_size(recipe, parallel), notes + scaling_notes(recipe, images)


def choose_micro_batch_size(recipe: Recipe, parallel: int) -> Recipe:
    """Divides batches evenly among micro-batches that are computed at the same time, unless the recipe fixes their size.

    Those of a convolutional network are as large as possible, for the statistics of its batch norms.

    Args:
        recipe: a recipe with its batch size.
        parallel: number of micro-batches that the device computes at the same time: the cores of a CPU; 1 elsewhere.
    """
    if recipe.micro_batch_size is not None:
        return recipe
    parts = 1 if isinstance(recipe.model, ConvNet) else parallel
    share = max(math.ceil(recipe.images_per_batch / parts), MIN_MICRO_BATCH)
    return recipe.replace(micro_batch_size=min(share + share % 2, MAX_MICRO_BATCH))


def plan_from_data(recipe: Recipe, stats: DatasetStats) -> tuple[Recipe, list[str]]:
    """Chooses image size, batch size and horizontal flips.

    Returns:
        The recipe, and one sentence per choice.
    """
    notes = []
    model = recipe.model
    timed_convnet = isinstance(model, ConvNet) and recipe.minutes is not None  # its image size depends on the time
    if model.image_size is None and not timed_convnet and (isinstance(model, ConvNet) or model.sizes == "data"):
        size, *_ = _image_sizes(model, stats)
        recipe = recipe.replace(model=_size_fields(model, size))
        notes.append(_image_size_note(size, stats))
    if recipe.batch_size is None:
        batch_size = next(batch_size for minimum, batch_size in BATCH_SIZES[model.kind] if stats.images >= minimum)
        recipe = recipe.replace(batch_size=batch_size)
    if stats.mirror is not None:
        flip = recipe.augmentation.flip if stats.mirror.flip_invariant else 0.0
        recipe = recipe.replace(augmentation={"flip": flip}, mirror_test=False)
        notes.append(f"{'Horizontal flips' if flip else 'No horizontal flips'}: {stats.mirror}")
    return recipe, notes


def plan_from_time(recipe: Recipe, stats: DatasetStats, speed: Speed, seconds: float) -> tuple[Recipe, list[str]]:
    """Chooses the transformer's size or the convolutional network's image size.

    Args:
        recipe: what :func:`plan_from_data` returned.
        stats: of the training set.
        speed: measures how fast a candidate trains.
        seconds: available for training.

    Returns:
        The recipe with all sizes, and one sentence per choice.
    """
    if isinstance(recipe.model, ConvNet) and recipe.model.image_size is None:
        recipe, note = _choose_image_size(recipe, recipe.model, stats, speed, seconds)
        return recipe, [note]
    if isinstance(recipe.model, Transformer) and recipe.model.sizes == "data":
        recipe, note = _choose_shape(recipe, recipe.model, stats, speed, seconds)
        return recipe, [note]
    return recipe, []


def lighten_augmentation(recipe: Recipe, epochs: float) -> tuple[Recipe, list[str]]:
    """Removes RandAugment, color jitter and label smoothing if the time allows few epochs only.

    Images that are hardly repeated need none of them (``docs/log.md``). Crops become those of the released code, which pads
    small images instead of enlarging a part of them.

    Args:
        recipe: the recipe, with its image size.
        epochs: that the time allows.

    Returns:
        The recipe, and a sentence if it changed.
    """
    if epochs >= recipe.light_augmentation_below or not recipe.augmentation.randaugment.operations:
        return recipe, []
    light = {"crop": "auto", "randaugment": {"operations": 0}, "color_jitter": 0.0}
    note = f"Light augmentation and no label smoothing, since the time allows {epochs:.1f} epochs only"
    return recipe.replace(augmentation=light, smoothing=0.0), [note]


def _image_sizes(model: Transformer | ConvNet, stats: DatasetStats) -> list[int]:
    """Image sizes that suit the data, largest first."""
    enlarge = isinstance(model, ConvNet) and model.architecture != PLAIN_CONVNET
    limit = round(stats.side * CONVNET_ENLARGEMENT) if enlarge else stats.side
    return [size for size in IMAGE_SIZES if size <= limit] or [min(IMAGE_SIZES)]


def _size_fields(model: Transformer | ConvNet, size: int) -> dict[str, Any]:
    """Returns the model fields of an image size."""
    fields: dict[str, Any] = {"image_size": size}
    if isinstance(model, ConvNet) and size < SMALLEST_HALVED:
        fields["half_size_until"] = 0.0
    if isinstance(model, Transformer) and model.patch_size is None and size % VARIANT_PATCH_SIZE:
        fields["patch_size"] = _patch_size(size, size, SHAPES[0].grid)
    return fields


def min_samples(images: int) -> int:
    """Returns the training samples, counting repeated epochs, that a larger transformer must leave time for.

    Example:
        >>> [round(min_samples(images) / images, 1) for images in (1_000, 2_750, 11_000, 44_000, 275_000)]  # in epochs
        [66.0, 24.0, 12.0, 6.0, 2.4]
    """
    return int(MIN_SAMPLES * max(images / FEW_IMAGES, 1) ** GROWTH)


def _choose_image_size(recipe: Recipe, model: ConvNet, stats: DatasetStats, speed: Speed, seconds: float) -> tuple[Recipe, str]:
    """Returns the recipe with the largest affordable image size, and the reason."""
    sizes = _image_sizes(model, stats)[::-1]
    candidates = [recipe.replace(model=_size_fields(model, size)) for size in sizes]
    index, cost = _largest_affordable(candidates, speed, seconds / (CONVNET_SHARE * min_samples(stats.images)))
    return candidates[index], f"{_image_size_note(sizes[index], stats)}; {_time_for(seconds / cost / stats.images, stats)}"


def _largest_affordable(candidates: Sequence[Recipe], speed: Speed, limit: float) -> tuple[int, float]:
    """Returns the index and the cost of the last candidate, by increasing cost, that costs at most ``limit`` per sample.

    Candidates are measured from the cheapest on, so that no time is spent on sizes that are far too large.
    """
    index, cost = 0, speed(candidates[0])
    while cost <= limit and index + 1 < len(candidates):
        next_cost = speed(candidates[index + 1])
        if next_cost > limit:
            break
        index, cost = index + 1, next_cost
    return index, cost


def _image_size_note(size: int, stats: DatasetStats) -> str:
    enlarged = ", enlarged" if size > stats.side else ""
    return f"Image size {size}: the images have {stats.side} pixels{enlarged}"


def _time_for(epochs: float, stats: DatasetStats) -> str:
    return f"time for {epochs:,.1f} epochs of {stats.images:,} images"


def _choose_shape(recipe: Recipe, model: Transformer, stats: DatasetStats, speed: Speed, seconds: float) -> tuple[Recipe, str]:
    """Returns the recipe with the largest affordable transformer, and the reason."""
    candidates = [recipe.replace(model={**_shape_fields(recipe, model, shape), "sizes": "variant"}) for shape in SHAPES]
    required = min_samples(stats.images)
    index, cost = _largest_affordable(candidates, speed, seconds / required)
    candidate = candidates[index]
    assert isinstance(candidate.model, Transformer)
    config = candidate.model.config()
    size = (
        f"{config.grid[0]} x {config.grid[1]} patches, width {config.hidden_size}, depth {config.num_hidden_layers}, "
        f"{config.num_attention_heads} heads"
    )
    affordable, needed = (samples / stats.images for samples in (seconds / cost, required))
    if index == len(SHAPES) - 1 and cost <= seconds / required:
        reason = f"the largest size, with {_time_for(affordable, stats)}"
    elif cost <= seconds / required:
        reason = f"the largest size that leaves {_time_for(needed, stats)}, here {affordable:,.1f}"
    else:
        reason = f"the smallest size, with {_time_for(affordable, stats)}; a larger one needs time for {needed:,.1f}"
    return candidate, f"{size}: {reason}"


def _shape_fields(recipe: Recipe, model: Transformer, shape: Shape) -> dict[str, Any]:
    """Returns the model fields of a shape, except for those that the recipe fixes."""
    fields = {
        "patch_size": _patch_size(*recipe.image_hw, shape.grid),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
    }
    return {name: value if getattr(model, name) is None else getattr(model, name) for name, value in fields.items()}


def _patch_size(height: int, width: int, grid: int) -> int:
    """Returns the patch size that divides an image into about ``grid`` patches per side; 1 if only that divides it."""
    divisor = math.gcd(height, width)
    sizes = [size for size in range(2, divisor + 1) if divisor % size == 0] or [1]
    return min(sizes, key=lambda size: abs(min(height, width) / size - grid))
