"""What training does to one image: crop, flip, RandAugment, 3-Augment or jitter, normalize, erase. Every draw is handed in.

The defaults are DeiT's (table 9), with the fine points of the released code: RandAugment replaces color jitter, fills with the
mean color and resamples bicubically; erasing comes after normalization. 3-Augment and the simple random crop are DeiT III's
(Touvron et al., arXiv 2204.07118).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator

from deit.data.transforms.crops import TRIES, Box, crop_box, crop_reduction, resized, shifted_crop, simple_crop
from deit.data.transforms.randaugment import Color, RandAugment, change, draw_changes
from deit.images.processor import IMAGENET_MEAN, IMAGENET_STD

SMALL_SIDE = 32  # inputs up to this size get a padded random crop, not a random resized one
ERASED_SHARE = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
BLUR_RADIUS = (0.1, 2.0)  # of 3-Augment: standard deviation in pixels

Probability = Annotated[float, Field(ge=0, le=1)]
Aspect = Annotated[float, Field(ge=0.001, le=1000)]


class Augmentation(BaseModel):
    """Settings of the training pipeline.

    Attributes:
        crop: ``resized`` for a random resized crop, ``padded`` for a shift by up to 4 pixels, ``simple`` for DeiT III's simple
            random crop; ``auto`` takes the padded one for inputs of up to 32 pixels and the resized one for others.
        scale: share of the image's area that a random resized crop covers, least and most.
        ratio: aspect of that crop, least and most.
        flip: probability of a horizontal flip.
        randaugment: its settings; with ``operations = 0`` color jitter takes its place.
        three_augment: DeiT III's 3-Augment, with color jitter after it, in the place of RandAugment.
        color_jitter: strength of brightness, contrast and saturation jitter.
        erasing: probability of erasing a rectangle with noise.
        repeats: of repeated augmentation.
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
    def _one_policy(self) -> Self:
        if self.three_augment and self.randaugment.operations:
            raise ValueError("three_augment takes the place of RandAugment; set augmentation.randaugment.operations=0")
        return self


class TrainTransform:
    """Image -> normalized array, by the draws of a generator.

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
        self._scale = 1 / (255 * np.asarray(std, np.float32))
        self._shift = -np.asarray(mean, np.float32) / np.asarray(std, np.float32)
        self.fill: Color = tuple(round(255 * value) for value in mean)  # type: ignore[assignment]
        small = "padded" if max(height, width) <= SMALL_SIDE else "resized"
        self.crop = small if settings.crop == "auto" else settings.crop

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """An RGB image of any size -> (3, height, width), float32."""
        values = np.empty((3, *self.size), np.float32)
        box = self.box(image.width, image.height, rng)
        self.write(np.asarray(image), box, rng, values)
        return values

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """What part of an image the crop is made of: the first draws of a sample."""
        if self.crop == "resized":
            return crop_box(width, height, self.settings.scale, self.settings.ratio, rng)
        return 0, 0, width, height

    def reduction(self, boxes: Iterable[Box]) -> int:
        """How many times smaller an image may be decoded of which these boxes are needed: 1, 2, 4 or 8."""
        return crop_reduction(boxes, *self.size)

    def write(self, pixels: np.ndarray, box: Box, rng: np.random.Generator, values: np.ndarray) -> None:
        """Make a sample of a decoded image.

        Args:
            pixels: (H, W, 3), uint8.
            box: what :meth:`box` drew with ``rng``.
            rng: of the sample.
            values: (3, height, width), float32, is written to.
        """
        planes = self._cropped(pixels, box, rng)
        if rng.random() < self.settings.flip:
            planes = planes[:, :, ::-1]
        planes = self._recolored(planes, rng)
        for plane, scale, shift, channel in zip(planes, self._scale, self._shift, values, strict=True):
            np.multiply(plane, scale, out=channel)
            channel += shift
        if rng.random() < self.settings.erasing:
            erase(values, rng)

    def _cropped(self, pixels: np.ndarray, box: Box, rng: np.random.Generator) -> np.ndarray:
        if self.crop == "resized":
            return resized(pixels, box, *self.size)
        crop = shifted_crop if self.crop == "padded" else simple_crop
        return crop(pixels, *self.size, rng)

    def _recolored(self, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(3, height, width) uint8 -> the same, after whichever of the three policies is on."""
        settings = self.settings
        if settings.three_augment:
            return _planes(color_jitter(three_augment(_image(planes), rng), settings.color_jitter, rng))
        if settings.randaugment.operations:
            changes = draw_changes(settings.randaugment, rng)
            return _planes(change(_image(planes), changes, self.fill)) if changes else planes
        return _planes(color_jitter(_image(planes), settings.color_jitter, rng)) if settings.color_jitter else planes


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, in a drawn order, each by a factor within 1 +- strength."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for place in rng.permutation(len(enhancers)):
        image = enhancers[place](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def three_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gray, solarised from 128 on, or blurred by a drawn radius, each as likely (DeiT III, section 3.2)."""
    which = rng.integers(3)
    if which == 0:
        return image.convert("L").convert("RGB")
    if which == 1:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS)))


def erase(values: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a rectangle of a normalized (3, height, width) array with normal noise, in place (arXiv 1708.04896)."""
    _, height, width = values.shape
    for _ in range(TRIES):
        area = height * width * rng.uniform(*ERASED_SHARE)
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            values[:, top : top + rows, left : left + columns] = rng.standard_normal((3, rows, columns), np.float32)
            return


def _image(planes: np.ndarray) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes])


def _planes(image: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(band) for band in image.split()])
