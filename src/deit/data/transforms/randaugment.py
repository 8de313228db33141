"""RandAugment (Cubuk et al., arXiv 1909.13719) as implemented in timm. The defaults are ``rand-m9-mstd0.5-inc1``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BaseModel, ConfigDict, Field

MAX_LEVEL = 10.0
MAX_PILLOW_PIXELS = 96 * 96  # up to here Pillow's affine transform is faster than NumPy
OPERATION_PROBABILITY = 0.5  # of applying each drawn operation

Color = tuple[int, int, int]
# Takes the image, the level in 0..1, the sign (1 or -1) of operations that have one, and the fill color.
Operation = Callable[[Image.Image, float, int, Color], Image.Image]


class RandAugment(BaseModel):
    """Settings of RandAugment.

    Attributes:
        operations: number of operations per image.
        magnitude: magnitude of the operations, 0..10.
        magnitude_std: standard deviation of the magnitude.
        subset: ``all`` operations, or ``rotate-shear``, for images whose meaning depends on color and position.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operations: Annotated[int, Field(ge=0, le=16)] = 2
    magnitude: Annotated[float, Field(ge=0, le=MAX_LEVEL)] = 9.0
    magnitude_std: Annotated[float, Field(ge=0, le=MAX_LEVEL)] = 0.5
    subset: Literal["all", "rotate-shear"] = "all"


@dataclass(frozen=True)
class DrawnOperation:
    """A drawn operation with its level, 0..1, and sign, 1 or -1."""

    operation: Operation
    level: float
    sign: int


def draw_operations(settings: RandAugment, rng: np.random.Generator) -> list[DrawnOperation]:
    """Draws operations with replacement, and for each whether it is applied, its level and its sign."""
    choices = OPERATIONS if settings.subset == "all" else (_rotate, _shear_x, _shear_y)
    drawn = []
    for choice in rng.integers(len(choices), size=settings.operations):
        applied, positive = rng.random() < OPERATION_PROBABILITY, rng.random() < 0.5
        level = min(max(rng.normal(settings.magnitude, settings.magnitude_std), 0.0), MAX_LEVEL) / MAX_LEVEL
        if applied:
            drawn.append(DrawnOperation(choices[choice], level, 1 if positive else -1))
    return drawn


def apply_operations(image: Image.Image, operations: list[DrawnOperation], fill: Color) -> Image.Image:
    """Applies drawn operations to an image."""
    for drawn in operations:
        image = drawn.operation(image, drawn.level, drawn.sign, fill)
    return image


def _rotate(image: Image.Image, level: float, sign: int, fill: Color) -> Image.Image:
    return image.rotate(30 * level * sign, Image.Resampling.BICUBIC, fillcolor=fill)


def _shear_x(image: Image.Image, level: float, sign: int, fill: Color) -> Image.Image:
    return _shift_rows(image, 0.3 * level * sign, 0, fill)


def _shear_y(image: Image.Image, level: float, sign: int, fill: Color) -> Image.Image:
    return _shift_columns(image, 0.3 * level * sign, 0, fill)


def _translate_x(image: Image.Image, level: float, sign: int, fill: Color) -> Image.Image:
    return _shift_rows(image, 0, 0.45 * level * sign * image.width, fill)


def _translate_y(image: Image.Image, level: float, sign: int, fill: Color) -> Image.Image:
    return _shift_columns(image, 0, 0.45 * level * sign * image.height, fill)


def _shift_columns(image: Image.Image, slope: float, shift: float, fill: Color) -> Image.Image:
    transposed = image.transpose(Image.Transpose.TRANSPOSE)
    return _shift_rows(transposed, slope, shift, fill).transpose(Image.Transpose.TRANSPOSE)


def _shift_rows(image: Image.Image, slope: float, shift: float, fill: Color) -> Image.Image:
    """Shifts each row: the pixel at x, y comes from x + slope * y + shift.

    Equals Pillow's bicubic affine transform to the bit. Pillow weights 16 pixels each; where only one coordinate changes, four
    suffice.
    """
    width, height = image.size
    if width * height <= MAX_PILLOW_PIXELS:
        matrix = (1, slope, shift, 0, 1, 0)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    # In the order of Pillow's sum, since its rounding decides how values close to integers are truncated.
    x = (columns + 0.5) + slope * (rows + 0.5) + shift  # (H, W)
    outside = (x < 0) | (x >= width)
    x -= 0.5
    start = np.floor(x[:, :1]).astype(np.int64)  # the pixel to the left of the source of column 0
    x -= columns + start  # fractional position between neighboring pixels, 0..1
    sources = np.clip(np.arange(-1, width + 2) + start, 0, width - 1) + width * rows  # (H, W + 3)
    bands = []
    for band, fill_value in zip(image.split(), fill, strict=True):
        shifted = _cubic(np.asarray(band).ravel().take(sources).astype(np.int16), x)
        shifted[outside] = fill_value
        bands.append(Image.fromarray(np.clip(shifted, 0, 255, out=shifted).astype(np.uint8)))
    return Image.merge("RGB", bands)


def _cubic(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Pillow's cubic interpolation (a = -1), in its order of operations: (H, W + 3) int16, (H, W) -> (H, W) float64."""
    width = x.shape[1]
    before, at, after, beyond = (values[:, tap : tap + width] for tap in range(4))
    step = before - at
    bend = beyond - after - step
    shifted: np.ndarray = bend * x
    shifted += step - bend
    shifted *= x
    shifted += after - before
    shifted *= x
    shifted += at
    return shifted


def _posterize(image: Image.Image, level: float, _sign: int, _fill: Color) -> Image.Image:
    # The highest level leaves no bits, which Pillow 13 rejects: the result is a black image.
    bits = 4 - int(4 * level)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize(image: Image.Image, level: float, _sign: int, _fill: Color) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(256 * level)))


def _solarize_add(image: Image.Image, level: float, _sign: int, _fill: Color) -> Image.Image:
    added = min(128, int(110 * level))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(image: Image.Image, level: float, sign: int, _fill: Color) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + 0.9 * level * sign))

    return operation


def _without_level(function: Callable[[Image.Image], Image.Image]) -> Operation:
    def operation(image: Image.Image, _level: float, _sign: int, _fill: Color) -> Image.Image:
        return function(image)

    return operation


# timm's "increasing" set: a higher magnitude is a stronger change for each operation.
OPERATIONS: tuple[Operation, ...] = (
    _without_level(ImageOps.autocontrast),
    _without_level(ImageOps.equalize),
    _without_level(ImageOps.invert),
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
