"""What size a model and its training should have, from the data and the time that there is.

Pure: how fast a candidate trains is measured by the caller and handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deit.data.mirror import MirrorTest, mirror_test
from deit.data.sources import ImageSource
from deit.training.recipe import ConvNet, Recipe, Transformer

LOOKED_AT = 32  # images whose size is asked
USUAL_MINUTES = 10.0  # that sizes are chosen for where no time is given
SHARE = 0.9  # of the time that is planned for: the rest is for starting, the last evaluation and the report
PASSES = 20  # over the data that a larger model must leave time for; likewise
IMAGES = 50_000  # in all
STEPS = 1500  # of the optimizer that a larger batch must leave
BATCHES = (32, 64, 128, 256)
LARGEST_PATCH = 16
PIXELS_A_PIXEL = 1.5  # a convolutional network sees small images enlarged: its first layers shrink them fourfold
CONVNET_SIDES = (224, 192, 160, 128, 96, 64, 48, 32)

Speed = Callable[[Recipe], float]  # seconds for each image that training shows, evaluation in between included


@dataclass(frozen=True)
class Look:
    """What sizes depend on.

    Attributes:
        images: in the training set.
        side: of the usual image, the shorter one, in pixels.
        mirror: whether mirrored images look like images of their class.
    """

    images: int
    side: int
    mirror: MirrorTest


@dataclass(frozen=True)
class Shape:
    """A transformer.

    Attributes:
        grid: patches a side.
    """

    grid: int
    width: int
    depth: int
    heads: int

    def __str__(self) -> str:
        return f"{self.grid} x {self.grid} patches, width {self.width}, {self.depth} blocks of {self.heads} heads"


# Largest first. Eight heads or nine can look into all directions (see first_weights.py).
SHAPES = (
    Shape(14, 384, 12, 6),
    Shape(14, 256, 10, 8),
    Shape(14, 192, 8, 6),
    Shape(8, 256, 8, 8),
    Shape(8, 192, 6, 8),
    Shape(8, 128, 6, 8),
    Shape(8, 96, 4, 6),
)


def look(source: ImageSource) -> Look:
    """Look at a training set: some images' sizes, and whether their mirror images would do."""
    count = len(source.labels)
    places = np.unique(np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int))
    side = float(np.median([min(source.load(int(place)).size) for place in places]))
    return Look(count, round(side), mirror_test(source))


def sized(recipe: Recipe, seen: Look, speed: Speed, keep_shape: bool = False) -> tuple[Recipe, list[str]]:
    """Choose what a recipe leaves open.

    Args:
        recipe: with ``minutes``, or with open sizes.
        seen: the training set.
        speed: how fast a candidate trains, measured where it will.
        keep_shape: the shape is a checkpoint's.

    Returns:
        The recipe with every size and number in it and ``minutes`` spent (None), and one sentence for each choice.
    """
    if recipe.minutes is None and not _open(recipe):
        return recipe, []
    notes = []
    if recipe.augmentation.flip == "auto":
        recipe = recipe.replace(augmentation={"flip": 0.5 if seen.mirror.alike else 0.0})
        notes.append(f"Flips {'on' if seen.mirror.alike else 'off'}: {seen.mirror}")
    minutes = recipe.minutes or USUAL_MINUTES
    seconds = 60 * minutes * SHARE
    cost: float | None = None
    if _open(recipe) and not keep_shape:
        recipe, cost, note = _with_sizes(recipe, seen, speed, seconds)
        notes.append(note)
    if recipe.minutes is None:
        return recipe, notes
    total = seconds / (speed(recipe) if cost is None else cost)
    batch = _batch(recipe, seen, total)
    if batch != recipe.batch_size:
        notes.append(f"Batch {batch}: {total:,.0f} images fit into {minutes:g} minutes, which makes {total / batch:,.0f} steps")
        recipe = recipe.replace(batch_size=batch)
    epochs = max(int(total / seen.images), 1)
    notes.append(
        f"{epochs} epochs in {minutes:g} minutes: {total / seconds:,.0f} images a second as measured just now, "
        f"{1 - SHARE:.0%} of the time kept back for starting and ending"
    )
    warmup = min(recipe.optimizer.warmup_epochs, epochs / 10)
    return recipe.replace(epochs=epochs, minutes=None, optimizer={"warmup_epochs": warmup}), notes


def _open(recipe: Recipe) -> bool:
    """Whether a size is left to be chosen."""
    model = recipe.model
    return model.image_size is None if isinstance(model, ConvNet) else model.sizes == "data"


def _with_sizes(recipe: Recipe, seen: Look, speed: Speed, seconds: float) -> tuple[Recipe, float, str]:
    """The largest candidate that the time suffices for, what an image costs it, and why it is that one."""
    candidates = _convnets(recipe, seen) if isinstance(recipe.model, ConvNet) else _transformers(recipe, recipe.model, seen)
    wanted = max(PASSES * seen.images, IMAGES)
    for candidate, words in candidates:
        cost = speed(candidate)
        if seconds / cost >= wanted:
            break
    passes = seconds / cost / seen.images
    reason = "the largest that leaves time for" if seconds / cost >= wanted else "the smallest there is, with time for"
    return candidate, cost, f"{words}: {reason} {passes:,.0f} passes over {seen.images:,} images"


def _convnets(recipe: Recipe, seen: Look) -> list[tuple[Recipe, str]]:
    most = PIXELS_A_PIXEL * seen.side
    sides = [side for side in CONVNET_SIDES if side <= most] or [CONVNET_SIDES[-1]]
    words = "Images of {0} pixels a side (the data has {1})"
    return [(recipe.replace(model={"image_size": side}), words.format(side, seen.side)) for side in sides]


def _transformers(recipe: Recipe, model: Transformer, seen: Look) -> list[tuple[Recipe, str]]:
    found = []
    for shape in SHAPES:
        patch = min(max(seen.side // shape.grid, 2), LARGEST_PATCH)
        fields = {
            "image_size": patch * shape.grid,
            "patch_size": patch,
            "hidden_size": shape.width,
            "num_hidden_layers": shape.depth,
            "num_attention_heads": shape.heads,
        }
        fields |= {name: getattr(model, name) for name in fields if getattr(model, name) is not None}
        candidate = recipe.replace(model={**fields, "sizes": "variant"})
        words = f"Images of {patch * shape.grid} pixels a side (the data has {seen.side}), patches of {patch}, {shape}"
        found.append((candidate, words))
    return found


def _batch(recipe: Recipe, seen: Look, total: float) -> int:
    """As large as leaves enough steps; the recipe's own where that is smaller still."""
    fitting = [batch for batch in BATCHES if total / batch >= STEPS and batch <= seen.images]
    return min(max(fitting, default=min(BATCHES)), recipe.batch_size * 2, 2 ** int(math.log2(max(seen.images, 2))))
