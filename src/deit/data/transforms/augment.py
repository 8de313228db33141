"""The training augmentation of one image: crop, flip, RandAugment, 3-Augment or color jitter, normalize, random erasing.

The defaults are DeiT's (table 9), with the details of the released code: RandAugment replaces color jitter, fills with the
mean color and resamples bicubically; random erasing comes after normalization. 3-Augment and the simple random crop are from
DeiT III (Touvron et al., arXiv 2204.07118). All random numbers come from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator

from deit.data.transforms.crops import (
    MAX_TRIES,
    Box,
    crop_and_resize,
    crop_reduction,
    padded_crop,
    random_resized_crop_box,
    simple_random_crop,
    smallest_crop,
)
from deit.data.transforms.randaugment import Color, RandAugment, apply_operations, draw_operations
from deit.images.crops import IMAGENET_MEAN, IMAGENET_STD

MAX_PADDED_CROP = 32  # inputs up to this size get a padded random crop, not a random resized crop
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
BLUR_SIGMA = (0.1, 2.0)  # of 3-Augment, in pixels

Probability = Annotated[float, Field(ge=0, le=1)]
Aspect = Annotated[float, Field(ge=0.001, le=1000)]


class Augmentation(BaseModel):
    """Settings of the training augmentation.

    Attributes:
        crop: ``resized``, a random resized crop; ``padded``, a random crop of the image padded by 4 pixels; ``simple``, the
            simple random crop of DeiT III; ``auto``, padded for inputs of up to 32 pixels and resized otherwise.
        scale: minimum and maximum area of the random resized crop, relative to the image.
        ratio: minimum and maximum aspect ratio of the random resized crop.
        flip: probability of a horizontal flip.
        randaugment: RandAugment; with ``operations = 0`` color jitter replaces it.
        three_augment: 3-Augment of DeiT III followed by color jitter, instead of RandAugment.
        color_jitter: strength of brightness, contrast and saturation jitter.
        erasing: probability of random erasing.
        repeats: samples per image in repeated augmentation; 1 disables it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: Literal["auto", "resized", "padded", "simple"] = "auto"
    scale: tuple[Probability, Probability] = (0.08, 1.0)
    ratio: tuple[Aspect, Aspect] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    randaugment: RandAugment = RandAugment()
    three_augment: bool = False
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.3
    erasing: Probability = 0.25
    repeats: Annotated[int, Field(ge=1, le=16)] = 3

    @model_validator(mode="after")
    def _check_policies(self) -> Self:
        if self.three_augment and self.randaugment.operations:
            raise ValueError("three_augment replaces RandAugment; set augmentation.randaugment.operations=0")
        return self


class TrainTransform:
    """Transforms an image to a normalized training sample.

    Args:
        settings: the augmentation.
        height: height of the output in pixels.
        width: width of the output in pixels.
        mean: per-channel mean, for values in 0..1.
        std: per-channel standard deviation, for values in 0..1.
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
        self._scale = 1 / (255 * np.asarray(std, np.float32))
        self._shift = -np.asarray(mean, np.float32) / np.asarray(std, np.float32)
        self.fill: Color = tuple(round(255 * value) for value in mean)  # type: ignore[assignment]
        small = "padded" if max(height, width) <= MAX_PADDED_CROP else "resized"
        self.crop = small if settings.crop == "auto" else settings.crop

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Transforms an RGB image of any size to (3, height, width) float32."""
        values = np.empty((3, *self.size), np.float32)
        box = self.box(image.width, image.height, rng)
        self.write(np.asarray(image), box, rng, values)
        return values

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draws the part of an image that is cropped, which are the first draws of a sample."""
        if self.crop == "resized":
            return random_resized_crop_box(width, height, self.settings.scale, self.settings.ratio, rng)
        return 0, 0, width, height

    def reduction(self, boxes: Iterable[Box]) -> int:
        """Returns how many times smaller an image may be decoded for these crops: 1, 2, 4 or 8."""
        return crop_reduction(boxes, *self.size)

    def smallest_scale(self, width: int, height: int) -> float:
        """Returns the pixels of an image per pixel of the output and side, for the smallest crop that :meth:`box` can draw."""
        smallest: tuple[float, float] = (width, height)
        if self.crop == "resized":
            smallest = smallest_crop(width, height, self.settings.scale, self.settings.ratio)
        return min(smallest[0] / self.size[1], smallest[1] / self.size[0])

    def write(
        self,
        pixels: np.ndarray,
        box: Box,
        rng: np.random.Generator,
        values: np.ndarray,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Makes a sample from a decoded image.

        Args:
            pixels: (H, W, 3) uint8.
            box: what :meth:`box` drew with ``rng``, in these pixels.
            rng: generator of the sample.
            values: output, (3, height, width) float32.
            size: (height, width) of the image at full size; by default, that of ``pixels``.
        """
        planes = self._crop(pixels, box, rng, size)
        if rng.random() < self.settings.flip:
            planes = planes[:, :, ::-1]
        planes = self._change_colors(planes, rng)
        for plane, scale, shift, channel in zip(planes, self._scale, self._shift, values, strict=True):
            np.multiply(plane, scale, out=channel)
            channel += shift
        if rng.random() < self.settings.erasing:
            erase(values, rng)

    def _crop(self, pixels: np.ndarray, box: Box, rng: np.random.Generator, size: tuple[int, int] | None) -> np.ndarray:
        if self.crop == "resized":
            return crop_and_resize(pixels, box, *self.size)
        return (
            padded_crop(pixels, *self.size, rng) if self.crop == "padded" else simple_random_crop(pixels, *self.size, rng, size)
        )

    def _change_colors(self, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Applies 3-Augment, RandAugment or color jitter to (3, height, width) uint8."""
        settings = self.settings
        if settings.three_augment:
            return _to_planes(color_jitter(three_augment(_to_image(planes), rng), settings.color_jitter, rng))
        if settings.randaugment.operations:
            operations = draw_operations(settings.randaugment, rng)
            return _to_planes(apply_operations(_to_image(planes), operations, self.fill)) if operations else planes
        return _to_planes(color_jitter(_to_image(planes), settings.color_jitter, rng)) if settings.color_jitter else planes


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Jitters brightness, contrast and saturation in random order, each by a factor in 1 - strength .. 1 + strength."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(len(enhancers)):
        image = enhancers[index](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def three_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Applies grayscale, solarization or Gaussian blur with equal probability (DeiT III, section 3.2)."""
    choice = rng.integers(3)
    if choice == 0:
        return image.convert("L").convert("RGB")
    if choice == 1:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))


def erase(values: np.ndarray, rng: np.random.Generator) -> None:
    """Random erasing (arXiv 1708.04896): fills a rectangle of (3, height, width) values with normal noise, in place."""
    _, height, width = values.shape
    for _ in range(MAX_TRIES):
        area = height * width * rng.uniform(*ERASED_AREA)
        aspect_ratio = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect_ratio)), round(math.sqrt(area / aspect_ratio))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            values[:, top : top + rows, left : left + columns] = rng.standard_normal((3, rows, columns), np.float32)
            return


def _to_image(planes: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _to_planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)
