"""What training does to one image: crop, flip, RandAugment or colour jitter, normalise, erase. Every draw is handed in.

The defaults are the paper's (table 9), with the fine points of the released code: RandAugment replaces colour jitter, fills
with the mean colour and resamples bicubically; erasing comes after normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from deit.image_processor import IMAGENET_MEAN, IMAGENET_STD

SMALL_SIDE = 32  # inputs up to this size get a padded random crop, not a random resized one
PADDING = 4  # pixels on each side of a padded crop
TRIES = 10  # to find a rectangle that fits
ERASED_SHARE = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
MAX_LEVEL = 10.0
OPERATION_PROBABILITY = 0.5  # of each of RandAugment's operations

Probability = Annotated[float, Field(ge=0, le=1)]
Aspect = Annotated[float, Field(ge=0.001, le=1000)]
Colour = tuple[int, int, int]


class RandAugment(BaseModel):
    """RandAugment (Cubuk et al., arXiv 1909.13719) as timm writes it: ``rand-m9-mstd0.5-inc1`` is the default.

    Attributes:
        operations: how many are drawn for an image.
        magnitude: 0..10.
        magnitude_std: of the normal distribution around it.
        subset: ``rotate-shear`` leaves colours and places alone, for images in which these carry the meaning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operations: Annotated[int, Field(ge=0, le=16)] = 2
    magnitude: Annotated[float, Field(ge=0, le=MAX_LEVEL)] = 9.0
    magnitude_std: Annotated[float, Field(ge=0, le=MAX_LEVEL)] = 0.5
    subset: Literal["all", "rotate-shear"] = "all"


class Augmentation(BaseModel):
    """Settings of the training pipeline.

    Attributes:
        crop: ``resized`` for a random resized crop, ``padded`` for a shift by up to 4 pixels; ``auto`` takes the padded one
            for inputs of up to 32 pixels.
        scale: share of the image's area that a random resized crop covers, least and most.
        ratio: aspect of that crop, least and most.
        flip: probability of a horizontal flip.
        randaugment: its settings; with ``operations = 0`` colour jitter takes its place.
        color_jitter: strength of brightness, contrast and saturation jitter.
        erasing: probability of erasing a rectangle with noise.
        repeats: of repeated augmentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: Literal["auto", "resized", "padded"] = "auto"
    scale: tuple[Probability, Probability] = (0.08, 1.0)
    ratio: tuple[Aspect, Aspect] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    randaugment: RandAugment = RandAugment()
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.3
    erasing: Probability = 0.25
    repeats: Annotated[int, Field(ge=1, le=16)] = 3


class TrainTransform:
    """Image -> normalised array, by the draws of a generator.

    Args:
        settings: what is done.
        height: of the result, in pixels; likewise ``width``.
        mean: of each channel, for images in 0..1; likewise ``std``.
    """

    def __init__(
        self,
        settings: Augmentation,
        height: int,
        width: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self.settings, self.size = settings, (height, width)
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self.fill: Colour = tuple(round(255 * value) for value in mean)  # type: ignore[assignment]
        small = max(height, width) <= SMALL_SIDE
        self.padded = settings.crop == "padded" or (settings.crop == "auto" and small)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """An RGB image of any size -> (3, height, width), float32."""
        settings = self.settings
        crop = self._padded_crop if self.padded else self._resized_crop
        image = crop(image, rng)
        if rng.random() < settings.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if settings.randaugment.operations:
            image = rand_augment(image, settings.randaugment, rng, self.fill)
        elif settings.color_jitter:
            image = color_jitter(image, settings.color_jitter, rng)
        values = (np.asarray(image, np.float32) / np.float32(255) - self.mean) / self.std
        values = np.ascontiguousarray(values.transpose(2, 0, 1))  # (3, height, width)
        if rng.random() < settings.erasing:
            erase(values, rng)
        return values

    def _resized_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        box = crop_box(image.width, image.height, self.settings.scale, self.settings.ratio, rng)
        return image.crop(box).resize(self.size[::-1], Image.Resampling.BICUBIC)

    def _padded_crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        image = image.resize(self.size[::-1], Image.Resampling.BICUBIC)
        left, top = (int(shift) - PADDING for shift in rng.integers(0, 2 * PADDING + 1, 2))
        return _affine(image, (1, 0, left, 0, 1, top), (0, 0, 0), Image.Resampling.NEAREST)


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random resized crop; after ten misses the largest middle crop of an allowed aspect."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    crop_width, crop_height = max(crop_width, 1), max(crop_height, 1)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, in a drawn order, each by a factor within 1 +- strength."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for place in rng.permutation(len(enhancers)):
        image = enhancers[place](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def erase(values: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a rectangle of a normalised (3, height, width) array with normal noise, in place (arXiv 1708.04896)."""
    _, height, width = values.shape
    for _ in range(TRIES):
        area = height * width * rng.uniform(*ERASED_SHARE)
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            values[:, top : top + rows, left : left + columns] = rng.standard_normal((3, rows, columns), np.float32)
            return


def rand_augment(image: Image.Image, settings: RandAugment, rng: np.random.Generator, fill: Colour) -> Image.Image:
    """Draw operations with replacement, and for each whether it happens, how strongly, and which way."""
    choices = OPERATIONS if settings.subset == "all" else (_rotate, _shear_x, _shear_y)
    for choice in rng.integers(len(choices), size=settings.operations):
        happens, forwards = rng.random() < OPERATION_PROBABILITY, rng.random() < 0.5
        level = min(max(rng.normal(settings.magnitude, settings.magnitude_std), 0.0), MAX_LEVEL) / MAX_LEVEL
        if happens:
            image = choices[choice](image, level, 1 if forwards else -1, fill)
    return image


# An operation takes the image, the level in 0..1, the way (1 or -1) where it has two, and the colour that fills gaps.
Operation = Callable[[Image.Image, float, int, Colour], Image.Image]


def _affine(
    image: Image.Image,
    matrix: tuple[float, float, float, float, float, float],
    fill: Colour,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def _rotate(image: Image.Image, level: float, way: int, fill: Colour) -> Image.Image:
    return image.rotate(30 * level * way, Image.Resampling.BICUBIC, fillcolor=fill)


def _shear_x(image: Image.Image, level: float, way: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0.3 * level * way, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, level: float, way: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * level * way, 1, 0), fill)


def _translate_x(image: Image.Image, level: float, way: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0, 0.45 * level * way * image.width, 0, 1, 0), fill)


def _translate_y(image: Image.Image, level: float, way: int, fill: Colour) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * level * way * image.height), fill)


def _posterize(image: Image.Image, level: float, _way: int, _fill: Colour) -> Image.Image:
    # The strongest level leaves no bit; Pillow 13 refuses that, and the result is a black image.
    bits = 4 - int(4 * level)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize(image: Image.Image, level: float, _way: int, _fill: Colour) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(256 * level)))


def _solarize_add(image: Image.Image, level: float, _way: int, _fill: Colour) -> Image.Image:
    added = min(128, int(110 * level))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(image: Image.Image, level: float, way: int, _fill: Colour) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + 0.9 * level * way))

    return operation


def _plain(function: Callable[[Image.Image], Image.Image]) -> Operation:
    def operation(image: Image.Image, _level: float, _way: int, _fill: Colour) -> Image.Image:
        return function(image)

    return operation


# The "increasing" set: a higher magnitude is a stronger change for each of them.
OPERATIONS: tuple[Operation, ...] = (
    _plain(ImageOps.autocontrast),
    _plain(ImageOps.equalize),
    _plain(ImageOps.invert),
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
