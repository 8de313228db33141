"""What size a model and its training should have, from the data and the time that there is.

Two steps, both pure: what the data alone decides (so that a stored teacher and the training that replays it agree), and what
the time decides, for which the caller measures how fast a candidate trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from deit.data.mirror import MirrorTest, mirror_test
from deit.data.sources import ImageSource
from deit.errors import ImageError
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.recipes.schema import ConvNet, Recipe, Transformer

LOOKED_AT = 32  # images whose size is asked
SIDES = (128, 96, 64, 48, 32)  # of images, in pixels; more is not learned from by a small model in short time
ENLARGED = 1.5  # most convolutional networks see small images enlarged: their first layers shrink them fourfold
BATCHES = ((100_000, 128), (20_000, 64), (0, 32))  # training images from which on a batch is taken
USUAL_MINUTES = 10.0  # that a shape is chosen for where no time is given
SHARE = 0.9  # of the time that is planned for: the rest is for starting, the last evaluation and the report
PASSES = 24  # over the data that a larger transformer must leave time for; likewise
IMAGES = 66_000  # in all
CONVOLUTIONAL_SHARE = 0.5  # of both, for larger images of a convolutional network, which learns faster
WARMUP = 0.1  # of the epochs, at most

Speed = Callable[[Recipe], float]  # seconds for each image that training shows, evaluation in between included


@dataclass(frozen=True)
class Look:
    """What sizes depend on.

    Attributes:
        images: in the training set.
        side: of the usual image, the shorter one, in pixels.
        mirror: whether mirrored images look like images of their class; None where nobody asked.
    """

    images: int
    side: int
    mirror: MirrorTest | None = None


@dataclass(frozen=True)
class Shape:
    """A transformer; ``grid`` is the patches a side that it comes nearest to."""

    grid: int
    width: int
    depth: int
    heads: int


# Cheapest first. With eight heads nearly every neighbor has one (see first_weights.py).
SHAPES = (
    Shape(8, 96, 4, 8),
    Shape(8, 128, 6, 8),
    Shape(8, 192, 6, 8),
    Shape(8, 256, 8, 8),
    Shape(14, 192, 12, 8),
    Shape(14, 384, 12, 8),
)


def is_open(recipe: Recipe) -> bool:
    """Whether a recipe leaves anything to the data or the time."""
    model = recipe.model
    sizes = model.image_size is None if isinstance(model, ConvNet) else model.sizes == "data"
    return sizes or recipe.mirror_test or recipe.minutes is not None


def look(source: ImageSource, mirrored: bool) -> Look:
    """Look at a training set: some images' sizes, and where asked whether their mirror images would do."""
    count = len(source.labels)
    places = np.unique(np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int))
    sides = []
    for place in places:
        with suppress(ImageError):  # a damaged image is met again, and dealt with, in training
            sides.append(min(source.load(int(place)).size))
    return Look(count, round(float(np.median(sides or [SIDES[0]]))), mirror_test(source) if mirrored else None)


def from_data(recipe: Recipe, seen: Look) -> tuple[Recipe, list[str]]:
    """Choose the image size, the batch and whether to flip.

    Returns:
        The recipe with them, and one sentence for each choice.
    """
    notes = []
    model = recipe.model
    timed = isinstance(model, ConvNet) and recipe.minutes is not None  # its size costs more than it may have
    if model.image_size is None and not timed and (isinstance(model, ConvNet) or model.sizes == "data"):
        side, *_ = _sides(model, seen)
        recipe = recipe.replace(model={"image_size": side})
        notes.append(_image_note(side, seen))
    if recipe.minutes is not None:
        batch = next(batch for least, batch in BATCHES if seen.images >= least)
        if batch != recipe.batch_size:
            notes.append(f"Batch {batch}: an epoch of {seen.images:,} images has {math.ceil(seen.images / batch)} steps")
        recipe = recipe.replace(batch_size=batch)
    if seen.mirror is not None:
        flips = recipe.augmentation.flip if seen.mirror.alike else 0.0
        recipe = recipe.replace(augmentation={"flip": flips}, mirror_test=False)
        notes.append(f"{'Flips' if flips else 'No flips'}: {seen.mirror}")
    return recipe, notes


def from_time(recipe: Recipe, seen: Look, speed: Speed) -> tuple[Recipe, list[str]]:
    """Choose the transformer's shape or the convolutional network's image size, and the number of epochs.

    Args:
        recipe: what :func:`from_data` made of it.
        seen: the training set.
        speed: how fast a candidate trains.

    Returns:
        The recipe with every size in it and ``minutes`` spent (None), and one sentence for each choice.
    """
    notes = []
    minutes = recipe.minutes or USUAL_MINUTES
    seconds = 60 * minutes * SHARE
    cost: float | None = None
    if isinstance(recipe.model, ConvNet) and recipe.model.image_size is None:
        recipe, cost, reason = _sized(recipe, recipe.model, seen, speed, seconds)
        notes.append(reason)
    if isinstance(recipe.model, Transformer) and recipe.model.sizes == "data":
        recipe, cost, reason = _shaped(recipe, recipe.model, seen, speed, seconds)
        notes.append(reason)
    if recipe.minutes is None:
        return recipe, notes
    total = seconds / (speed(recipe) if cost is None else cost)
    epochs = max(int(total / seen.images), 1)
    notes.append(
        f"{epochs} epochs in {minutes:g} min, at {total / seconds:,.0f} images a second as measured just now; "
        f"{1 - SHARE:.0%} of the time is for starting and ending"
    )
    warmup = min(recipe.optimizer.warmup_epochs, WARMUP * epochs)
    return recipe.replace(epochs=epochs, minutes=None, optimizer={"warmup_epochs": warmup}), notes


def _sides(model: Transformer | ConvNet, seen: Look) -> list[int]:
    """Image sizes that fit the data, the largest first."""
    shrinks = isinstance(model, ConvNet) and model.architecture != PLAIN_CONVNET
    usual = round(seen.side * ENLARGED) if shrinks else seen.side
    return [side for side in SIDES if side <= usual] or [min(SIDES)]


def _enough(seen: Look) -> int:
    """Images, the same ones counted as often as they are shown, that a larger model must leave time for."""
    return max(PASSES * seen.images, IMAGES)


def _sized(recipe: Recipe, model: ConvNet, seen: Look, speed: Speed, seconds: float) -> tuple[Recipe, float, str]:
    """The largest image size that the time suffices for, what an image costs then, and why it is that one."""
    sides = _sides(model, seen)[::-1]
    candidates = [recipe.replace(model={"image_size": side}) for side in sides]
    place, cost = _largest(candidates, speed, seconds / (CONVOLUTIONAL_SHARE * _enough(seen)))
    passes = f"time for {seconds / cost / seen.images:,.0f} passes over {seen.images:,} images"
    return candidates[place], cost, f"{_image_note(sides[place], seen)}; they leave {passes}"


def _largest(candidates: Sequence[Recipe], speed: Speed, affordable: float) -> tuple[int, float]:
    """Which of some recipes, the cheapest first, is the last with affordable seconds an image, and its cost.

    They are tried from the cheap end, so that nobody waits for the speed of what is far too large.
    """
    place, cost = 0, speed(candidates[0])
    while cost <= affordable and place + 1 < len(candidates):
        next_cost = speed(candidates[place + 1])
        if next_cost > affordable:
            break
        place, cost = place + 1, next_cost
    return place, cost


def _image_note(side: int, seen: Look) -> str:
    return f"Images of {side} pixels a side: the data has {seen.side}{', enlarged' if side > seen.side else ''}"


def _shaped(recipe: Recipe, model: Transformer, seen: Look, speed: Speed, seconds: float) -> tuple[Recipe, float, str]:
    """The largest shape that the time suffices for, what an image costs it, and why it is that one."""
    candidates = [recipe.replace(model={**_fields(recipe, model, shape), "sizes": "variant"}) for shape in SHAPES]
    affordable = seconds / _enough(seen)
    place, cost = _largest(candidates, speed, affordable)
    candidate = candidates[place]
    assert isinstance(candidate.model, Transformer)
    config = candidate.model.config()
    words = (
        f"{config.grid[0]} x {config.grid[1]} patches, width {config.hidden_size}, {config.num_hidden_layers} blocks of "
        f"{config.num_attention_heads} heads"
    )
    reason = "the largest shape that leaves time for" if cost <= affordable else "the smallest shape, with time for"
    return candidate, cost, f"{words}: {reason} {seconds / cost / seen.images:,.0f} passes over {seen.images:,} images"


def _fields(recipe: Recipe, model: Transformer, shape: Shape) -> dict[str, Any]:
    """A shape's fields, but for those that the recipe fixes."""
    side = math.gcd(*recipe.image_hw)
    patches = [patch for patch in range(2, side + 1) if side % patch == 0]
    patch = min(patches, key=lambda patch: abs(min(recipe.image_hw) / patch - shape.grid))
    fields = {
        "patch_size": patch,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
    }
    return {name: value if getattr(model, name) is None else getattr(model, name) for name, value in fields.items()}
