"""Converts decoded images of any mode to RGB of 8 bits per channel, strip by strip, so that copies stay small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from deit.errors import ImageError

STRIP_PIXELS = 2**19  # converted at a time
INTEGER_RANGES = (255, 1023, 4095, 16_383, 65_535)  # of 8, 10, 12, 14 and 16 bits
MIN_16_BIT_MAXIMUM = 16_384  # an image with such a value needs at least 15 bits

Bounds = tuple[float, float]


@dataclass(frozen=True)
class ValueRange:
    """The values that become black and white when images of more than 8 bits are converted.

    It belongs to a data set: every image of it is converted in the same way, in training, evaluation and prediction.

    Attributes:
        integers: black and white of 16-bit and 32-bit integers; None if unknown.
        floats: black and white of floating-point images; None if unknown.
    """

    integers: Bounds | None = None
    floats: Bounds | None = None

    def bounds(self, mode: str) -> Bounds | None:
        """Returns black and white for a Pillow mode; None if unknown."""
        return self.floats if mode == "F" else self.integers

    def to_dict(self) -> dict[str, list[float]]:
        """Returns the range as JSON values."""
        known = {"integers": self.integers, "floats": self.floats}
        return {name: list(bounds) for name, bounds in known.items() if bounds is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ValueRange:
        """Reads the range from JSON values.

        Raises:
            ValueError: a value is missing or invalid.
        """
        if not isinstance(content, Mapping) or set(content) - {"integers", "floats"}:
            raise ValueError("takes 'integers' and 'floats', each with the values of black and white")
        return cls(**{name: _parse_bounds(bounds) for name, bounds in content.items()})

    def __str__(self) -> str:
        known = {"integers": self.integers, "floating-point values": self.floats}
        texts = [f"{name} {low:g} to {high:g}" for name, bounds in known.items() if bounds for low, high in [bounds]]
        return " and ".join(texts)


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode has more than 8 bits per channel."""
    return mode in ("I", "F") or mode.startswith("I;16")


def to_rgb(
    image: Image.Image, value_range: ValueRange | None = None, stored_bits: int = 0, name: str = "the image"
) -> Image.Image:
    """Converts any Pillow image to mode RGB, with transparency composited onto white.

    Args:
        image: an image of any mode; not changed.
        value_range: black and white of images with more than 8 bits. Without it, integers of 16 bits are divided by 257, and
            floats in 0..1 multiplied by 255.
        stored_bits: bits per value in the file, if it tells more than the mode; 0 otherwise.
        name: name of the image in error messages.

    Raises:
        ImageError: the image has more than 8 bits, its range is not given, and its values leave it open.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    convert: Callable[[Image.Image], Image.Image] = _plain_to_rgb
    if is_deep(image.mode):
        convert = functools.partial(_deep_to_rgb, bounds=_bounds(image, value_range, stored_bits, name))
    elif image.has_transparency_data:
        convert = _onto_white
    rows = max(1, STRIP_PIXELS // max(image.width, 1))
    if rows >= image.height:
        return convert(image)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        result.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return result


def finite_extrema(image: Image.Image) -> Bounds:
    """Returns the lowest and the highest finite value of an image with more than 8 bits; (0, 0) without one."""
    low, high = math.inf, -math.inf
    rows = max(1, STRIP_PIXELS // max(image.width, 1))
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def standard_bounds(mode: str, low: float, high: float) -> Bounds | None:
    """Returns the narrowest usual range of a mode that contains ``low`` to ``high``; None if there is none.

    Usual are 0 to 1 for floats, and the ranges of 8, 10, 12, 14 and 16 bits.
    """
    if low < 0:
        return None
    tops = (1, *INTEGER_RANGES) if mode == "F" else INTEGER_RANGES
    return next(((0.0, float(top)) for top in tops if high <= top), None)


def _bounds(image: Image.Image, value_range: ValueRange | None, stored_bits: int, name: str) -> Bounds:
    """Returns the values of black and white, from the data set or, where that leaves no doubt, from the image."""
    bounds = None if value_range is None else value_range.bounds(image.mode)
    if bounds is not None:
        return bounds
    if 8 < stored_bits <= 16:
        return 0.0, float(2**stored_bits - 1)
    low, high = finite_extrema(image)
    if image.mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if image.mode != "F" and low >= 0 and (high == 0 or MIN_16_BIT_MAXIMUM <= high <= 65_535):
        return 0.0, 65_535.0
    kind = "floating-point values" if image.mode == "F" else "integers of more than 8 bits"
    raise ImageError(
        f"{name} has {kind} from {low:g} to {high:g}, and the model does not say which values are black and white",
        "convert it to 8 bits, or train the model on such images",
    )


def _deep_to_rgb(image: Image.Image, bounds: Bounds) -> Image.Image:
    values = np.asarray(image)
    if values.dtype == np.uint16:
        return Image.fromarray(np.take(_levels_of_16_bits(bounds), values)).convert("RGB")
    return Image.fromarray(_to_levels(values, bounds)).convert("RGB")


@functools.lru_cache(maxsize=8)
def _levels_of_16_bits(bounds: Bounds) -> np.ndarray:
    return _to_levels(np.arange(65_536), bounds)


def _to_levels(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Maps black and white to 0 and 255; values outside are clipped, and values that are not a number become black."""
    low, high = bounds
    scaled = values.astype(np.float64 if values.dtype.kind in "iu" else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.subtract(scaled, low, out=scaled)
        np.multiply(scaled, 255 / (high - low), out=scaled)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    if np.isnan(scaled.min(initial=0)):
        np.nan_to_num(scaled, copy=False, nan=0.0)
    return scaled.astype(np.uint8)


def _onto_white(image: Image.Image) -> Image.Image:
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")


def _plain_to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _parse_bounds(bounds: Any) -> Bounds:
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise ValueError("takes the values of black and white")
    low, high = bounds
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in bounds) or not low < high:
        raise ValueError("takes a lower and a higher finite value")
    return float(low), float(high)
