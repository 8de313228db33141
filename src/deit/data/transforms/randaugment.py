"""RandAugment (Cubuk et al., arXiv 1909.13719) as timm writes it: ``rand-m9-mstd0.5-inc1`` is the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field

MAX_LEVEL = 10.0
FEW_PIXELS = 96 * 96  # up to which Pillow moves rows faster than NumPy
OPERATION_PROBABILITY = 0.5  # of each of the drawn operations

Color = tuple[int, int, int]
# An operation takes the image, the level in 0..1, the way (1 or -1) where it has two, and the color that fills gaps.
Operation = Callable[[Image.Image, float, int, Color], Image.Image]


class RandAugment(BaseModel):
    """Settings of RandAugment.

    Attributes:
        operations: how many are drawn for an image.
        magnitude: 0..10.
        magnitude_std: of the normal distribution around it.
        subset: ``rotate-shear`` leaves colors and places alone, for images in which these carry the meaning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operations: Annotated[int, Field(ge=0, le=16)] = 2
    magnitude: Annotated[float, Field(ge=0, le=MAX_LEVEL)] = 9.0
    magnitude_std: Annotated[float, Field(ge=0, le=MAX_LEVEL)] = 0.5
    subset: Literal["all", "rotate-shear"] = "all"


@dataclass(frozen=True)
class Change:
    """One drawn operation: which, how strongly (0..1), and which way (1 or -1)."""

    operation: Operation
    level: float
    way: int


def draw_changes(settings: RandAugment, rng: np.random.Generator) -> list[Change]:
    """Draw operations with replacement, and for each whether it happens, how strongly, and which way."""
    choices = OPERATIONS if settings.subset == "all" else (_rotate, _shear_x, _shear_y)
    changes = []
    for choice in rng.integers(len(choices), size=settings.operations):
        happens, forwards = rng.random() < OPERATION_PROBABILITY, rng.random() < 0.5
        level = min(max(rng.normal(settings.magnitude, settings.magnitude_std), 0.0), MAX_LEVEL) / MAX_LEVEL
        if happens:
            changes.append(Change(choices[choice], level, 1 if forwards else -1))
    return changes


def change(image: Image.Image, changes: list[Change], fill: Color) -> Image.Image:
    """The image after the drawn operations."""
    for each in changes:
        image = each.operation(image, each.level, each.way, fill)
    return image


def _rotate(image: Image.Image, level: float, way: int, fill: Color) -> Image.Image:
    return image.rotate(30 * level * way, Image.Resampling.BICUBIC, fillcolor=fill)


def _shear_x(image: Image.Image, level: float, way: int, fill: Color) -> Image.Image:
    return _along_rows(image, 0.3 * level * way, 0, fill)


def _shear_y(image: Image.Image, level: float, way: int, fill: Color) -> Image.Image:
    return _along_columns(image, 0.3 * level * way, 0, fill)


def _translate_x(image: Image.Image, level: float, way: int, fill: Color) -> Image.Image:
    return _along_rows(image, 0, 0.45 * level * way * image.width, fill)


def _translate_y(image: Image.Image, level: float, way: int, fill: Color) -> Image.Image:
    return _along_columns(image, 0, 0.45 * level * way * image.height, fill)


def _along_columns(image: Image.Image, slant: float, shift: float, fill: Color) -> Image.Image:
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    return _along_rows(turned, slant, shift, fill).transpose(Image.Transpose.TRANSPOSE)


def _along_rows(image: Image.Image, slant: float, shift: float, fill: Color) -> Image.Image:
    """Move each row along itself: the pixel at x, y comes from x + slant * y + shift.

    Pillow's bicubic affine transformation to the bit. That weighs 16 pixels for each; where only one coordinate moves, four
    of them say everything.
    """
    width, height = image.size
    if width * height <= FEW_PIXELS:
        matrix = (1, slant, shift, 0, 1, 0)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    # In the order of Pillow's own sum, since its rounding decides how values that are nearly whole are cut off.
    place = (columns + 0.5) + slant * (rows + 0.5) + shift  # (H, W)
    outside = (place < 0) | (place >= width)
    place -= 0.5
    start = np.floor(place[:, :1]).astype(np.int64)  # the pixel to the left of where column 0 comes from
    place -= columns + start  # the way from that pixel's successor to the next, 0..1
    sources = np.clip(np.arange(-1, width + 2) + start, 0, width - 1) + width * rows  # (H, W + 3)
    bands = []
    for band, gap in zip(image.split(), fill, strict=True):
        moved = _cubic(np.asarray(band).ravel().take(sources).astype(np.int16), place)
        moved[outside] = gap
        bands.append(Image.fromarray(np.clip(moved, 0, 255, out=moved).astype(np.uint8)))
    return Image.merge("RGB", bands)


def _cubic(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Pillow's cubic through four neighbors (a = -1), in its order: (H, W + 3) int16, (H, W) -> (H, W) float64."""
    width = place.shape[1]
    before, at, after, beyond = (values[:, tap : tap + width] for tap in range(4))
    step = before - at
    bend = beyond - after - step
    moved: np.ndarray = bend * place
    moved += step - bend
    moved *= place
    moved += after - before
    moved *= place
    moved += at
    return moved


def _posterize(image: Image.Image, level: float, _way: int, _fill: Color) -> Image.Image:
    # The strongest level leaves no bit; Pillow 13 refuses that, and the result is a black image.
    bits = 4 - int(4 * level)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize(image: Image.Image, level: float, _way: int, _fill: Color) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(256 * level)))


def _solarize_add(image: Image.Image, level: float, _way: int, _fill: Color) -> Image.Image:
    added = min(128, int(110 * level))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(image: Image.Image, level: float, way: int, _fill: Color) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + 0.9 * level * way))

    return operation


def _plain(function: Callable[[Image.Image], Image.Image]) -> Operation:
    def operation(image: Image.Image, _level: float, _way: int, _fill: Color) -> Image.Image:
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
