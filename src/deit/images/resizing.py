"""Resizes as Pillow does, bit for bit, but computes little more than the pixels that a center crop keeps."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from PIL import Image

HeightWidth = tuple[int, int]


def center_offset(length: int, crop: int, half_even: bool = False) -> int:
    """Returns the first pixel of a center crop along one axis; negative if the crop is longer and is padded.

    An odd difference has no center. transformers rounds the offset down; torchvision, and with it the authors' evaluation and
    timm, rounds half to even, and pads less at the start.

    Args:
        length: pixels of the image.
        crop: pixels of the crop.
        half_even: round as torchvision does.
    """
    if not half_even:
        return (length - crop) // 2
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)


def resize_for_center_crop(
    image: Image.Image, target: HeightWidth, crop: HeightWidth, resample: int, half_even: bool = False
) -> Image.Image:
    """Resizes an image such that its center crop equals the center crop of ``image.resize``, bit for bit.

    Pillow resizes one axis after the other and rounds to 8 bits in between. This function makes the same two passes in the
    same order, and drops pixels outside the crop as early as it can.

    Args:
        image: an image of any mode; only RGB and L are accelerated.
        target: height and width to resize to.
        crop: height and width of the center crop that the caller takes.
        resample: Pillow's resampling filter.
        half_even: rounding of the crop's offset, see :func:`center_offset`.

    Returns:
        The resized image, or a centered part of it that contains the crop.
    """
    height, width = target
    is_cropped = crop[0] < height or crop[1] < width
    if resample == Image.Resampling.NEAREST or image.mode not in ("RGB", "L") or not is_cropped or not _pass_order_is_known():
        return image.resize((width, height), resample)
    rows = _ResizePass.plan(image.height, height, min(crop[0], height), half_even)
    columns = _ResizePass.plan(image.width, width, min(crop[1], width), half_even)
    if vertical_first(image.height, image.width, height, width):
        first, last = columns.needed
        image = rows.vertical(image.crop((first, 0, last, image.height)), resample)
        return columns.shifted(first).horizontal(image, resample)
    first, last = rows.needed
    image = columns.horizontal(image.crop((0, first, image.width, last)), resample)
    return rows.shifted(first).vertical(image, resample)


@dataclasses.dataclass(frozen=True)
class _ResizePass:
    """Resizes one axis of an image, then takes a center crop along it.

    Attributes:
        start: first edge of the source interval that is resized, in pixels.
        stop: last edge of that interval.
        length: pixels that the interval is resized to.
        crop: pixels in the center of those that are kept.
        half_even: rounding of the crop's offset.
        needed: first pixel, and last pixel + 1, of the source that the kept pixels depend on, at most.
    """

    start: float
    stop: float
    length: int
    crop: int
    half_even: bool
    needed: tuple[int, int]

    @classmethod
    def plan(cls, source: int, target: int, crop: int, half_even: bool) -> _ResizePass:
        """Resizes only the interval of the crop if that changes no bit, otherwise the whole axis.

        Pillow computes the weights of each pixel from ``start + (i + 0.5) * step`` in float64, with start and stop in
        float32. If the step is a fraction whose denominator is a power of two, and start and stop are exact in float32, all
        of this is exact, and the pixels of an interval equal those of the whole.
        """
        denominator = target // math.gcd(source, target)
        first = center_offset(target, crop, half_even)
        start, stop = first * source / target, (first + crop) * source / target
        is_power_of_two = denominator & (denominator - 1) == 0
        exact = is_power_of_two and all(float(np.float32(edge)) == edge for edge in (start, stop, stop - start))
        if not exact or crop == target or target == source:
            return cls(0, source, target, crop, half_even, (0, source))
        reach = 3 * max(source / target, 1) + 2  # Pillow's widest filter, Lanczos, has a radius of 3
        return cls(start, stop, crop, crop, half_even, (max(int(start - reach), 0), min(math.ceil(stop + reach), source)))

    def shifted(self, first: int) -> _ResizePass:
        """Returns the same pass for a source whose first ``first`` pixels were cut off."""
        return dataclasses.replace(self, start=self.start - first, stop=self.stop - first)

    def vertical(self, image: Image.Image, resample: int) -> Image.Image:
        box = (0, self.start, image.width, self.stop)
        return center_crop(image.resize((image.width, self.length), resample, box=box), self.crop, image.width, self.half_even)

    def horizontal(self, image: Image.Image, resample: int) -> Image.Image:
        box = (self.start, 0, self.stop, image.height)
        return center_crop(
            image.resize((self.length, image.height), resample, box=box), image.height, self.crop, self.half_even
        )


def vertical_first(height: int, width: int, to_height: int, to_width: int) -> bool:
    """Whether Pillow 13 resizes vertically before horizontally, which it does not document."""
    return height - to_height > max(2 * (width - to_width), 0)


@functools.cache
def _pass_order_is_known() -> bool:
    """Whether the installed Pillow follows :func:`vertical_first`, tested on both sides of the threshold."""
    noise = (np.arange(20 * 29, dtype=np.uint32).reshape(29, 20) * 2654435761 >> 24).astype(np.uint8)
    for height in (28, 29):
        image = Image.fromarray(noise[:height])
        expected = image.resize((12, 12), Image.Resampling.BICUBIC)
        intermediate_size = (20, 12) if vertical_first(height, 20, 12, 12) else (12, height)
        intermediate = image.resize(intermediate_size, Image.Resampling.BICUBIC)
        if intermediate.resize((12, 12), Image.Resampling.BICUBIC).tobytes() != expected.tobytes():
            return False
    return True


def center_crop(image: Image.Image, height: int, width: int, half_even: bool = False) -> Image.Image:
    """Takes a center crop, padded with zeros where the image is smaller."""
    if image.size == (width, height):
        return image
    top, left = center_offset(image.height, height, half_even), center_offset(image.width, width, half_even)
    return image.crop((left, top, left + width, top + height))
