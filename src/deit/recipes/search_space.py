"""What :func:`deit.tune` varies: a range or a list of choices for each of some recipe values."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deit.errors import RecipeError
from deit.recipes.schema import Recipe, Transformer
from deit.rng import RngStream, generator

LOGARITHMIC = 4  # ratio of the ends of a range from which on its logarithm is drawn uniformly
FACTOR = 4  # by which rates and weights are varied in both directions
FIXED = ("name", "images", "epochs", "minutes", "steps", "corrections", "views", "batch_size", "micro_batch_size")
CROP_SCALES = ("[0.08, 1.0]", "[0.25, 1.0]", "[0.5, 1.0]", "[0.75, 1.0]")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, uniformly distributed, or their logarithms if ``high`` is many times ``low``.

    Attributes:
        low: lower end.
        high: upper end.
        whole: draw whole numbers.
    """

    low: float
    high: float
    whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """The ends, as recipe values."""
        return self._text(self.low), self._text(self.high)

    def draw(self, rng: np.random.Generator) -> str:
        """Draws a number, as a recipe value: of three digits, so that it can be read and typed."""
        margin = 0.5 if self.whole else 0.0  # so that the ends are drawn as often as other whole numbers
        low, high = self.low - margin, self.high + margin
        if low > 0 and self.high / self.low >= LOGARITHMIC:
            number = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            number = rng.uniform(low, high)
        return self._text(min(max(float(f"{number:.3g}"), self.low), self.high))

    def _text(self, number: float) -> str:
        return str(round(number)) if self.whole else str(float(number))

    def __str__(self) -> str:
        return "..".join(self.ends)


@dataclass(frozen=True)
class Choices:
    """Some values, each as likely.

    Attributes:
        ends: all values, as recipe values.
    """

    ends: tuple[str, ...]

    def draw(self, rng: np.random.Generator) -> str:
        """Draws one of them."""
        return self.ends[int(rng.integers(len(self.ends)))]

    def __str__(self) -> str:
        return ",".join(self.ends)


SearchSpace = Mapping[str, Range | Choices]  # by the path of a recipe value


def draw_values(space: SearchSpace, seed: int, number: int) -> dict[str, str]:
    """Draws the values of a candidate, as :meth:`Recipe.with_settings` takes them.

    Args:
        space: what is varied.
        seed: of the search.
        number: of the candidate; each has draws of its own.
    """
    rng = generator(seed, RngStream.TUNE, index=number)
    return {name: values.draw(rng) for name, values in space.items()}


def default_space(recipe: Recipe, augmentation: bool = True) -> dict[str, Range | Choices]:
    """Returns a search space around a recipe: of the values that it uses.

    Args:
        recipe: a resolved recipe.
        augmentation: also vary the augmentation of the images; cached logits are for that of the recipe.
    """
    optimizer, distillation = recipe.optimizer, recipe.distillation
    space: dict[str, Range | Choices] = {"optimizer.lr": _around(optimizer.lr)}
    if optimizer.weight_decay:
        space["optimizer.weight_decay"] = _around(optimizer.weight_decay)
    if recipe.loss == "cross-entropy":
        space["smoothing"] = Range(0.0, 0.2)
    if isinstance(recipe.model, Transformer) and not recipe.model.eval_mode:
        space["model.drop_path"] = Range(0.0, 0.2)
    if distillation.mode != "none":
        space["distillation.weight"] = Range(0.1, 0.9)
    if distillation.features:
        space["distillation.features"] = _around(distillation.features)
    if not augmentation:
        return space
    if recipe.augmentation.crop == "resized":
        space["augmentation.scale"] = Choices(CROP_SCALES)
    if recipe.augmentation.randaugment.operations:
        space["augmentation.randaugment.magnitude"] = Range(2.0, 10.0)
    elif recipe.augmentation.color_jitter:
        space["augmentation.color_jitter"] = Range(0.0, 0.5)
    if recipe.mixing.mixup:
        space["mixing.mixup"] = Choices(("0.0", "0.2", "0.8"))
    if recipe.mixing.cutmix:
        space["mixing.cutmix"] = Choices(("0.0", "1.0"))
    return space


def parse_space(texts: Sequence[str], recipe: Recipe) -> dict[str, Range | Choices]:
    """Parses ``optimizer.lr=1e-4..1e-2`` to a range and ``mixing.mixup=0,0.2,0.8`` to choices.

    Args:
        texts: one per recipe value.
        recipe: a recipe that has these values.

    Raises:
        RecipeError: a text has neither form, or a value does not fit the recipe.
    """
    space: dict[str, Range | Choices] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise RecipeError(f"--vary {text!r} has no values", "write NAME=LOW..HIGH or NAME=A,B,C")
        if name in FIXED:
            raise RecipeError(f"{name} is the same for all candidates", "vary another value, or set it by --set")
        low, dots, high = values.partition("..")
        space[name] = _parse_range(low, high, text, recipe, name) if dots else Choices(_parse_choices(values))
        for end in space[name].ends:
            recipe.with_settings({name: end})
    return space


def _around(value: float) -> Range:
    return Range(value / FACTOR, value * FACTOR)


def _parse_range(low: str, high: str, text: str, recipe: Recipe, name: str) -> Range:
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = math.nan, math.nan
    if not (ends[0] < ends[1] and all(map(math.isfinite, ends))):
        raise RecipeError(f"--vary {text!r} is not a range", "write NAME=LOW..HIGH with LOW below HIGH, such as 1e-4..1e-2")
    return Range(*ends, whole=_is_whole(recipe, name))


def _is_whole(recipe: Recipe, name: str) -> bool:
    value: object = recipe.model_dump()
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return isinstance(value, int) and not isinstance(value, bool)


def _parse_choices(text: str) -> tuple[str, ...]:
    """Parses the elements of a TOML list; any other text is divided at its commas."""
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except (ValueError, RecursionError):
        return tuple(part.strip() for part in text.split(","))
    return tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
