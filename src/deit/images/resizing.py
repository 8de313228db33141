"""Pillow's resize to the bit, of little more than what a center crop leaves."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from PIL import Image

Sides = tuple[int, int]


def resized(image: Image.Image, target: Sides, crop: Sides, resample: int) -> Image.Image:
    """Resized to ``target``, but of what lies outside the middle ``crop`` no more than exactness asks for.

    Pillow resizes one side after the other and rounds to 8 bits in between. Here are the same two passes in the same order,
    and what the crop leaves out is dropped as early as it can be.
    """
    height, width = target
    smaller = crop[0] < height or crop[1] < width
    if resample == Image.Resampling.NEAREST or image.mode not in ("RGB", "L") or not smaller or not _order_is_known():
        return image.resize((width, height), resample)
    upright = _Pass.plan(image.height, height, min(crop[0], height))
    across = _Pass.plan(image.width, width, min(crop[1], width))
    if vertical_first(image.height, image.width, height, width):
        first, last = across.needed
        image = upright.vertical(image.crop((first, 0, last, image.height)), resample)
        return across.moved(first).horizontal(image, resample)
    first, last = upright.needed
    image = across.horizontal(image.crop((0, first, image.width, last)), resample)
    return upright.moved(first).vertical(image, resample)


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One side: read from ``start`` to ``stop``, make ``made`` pixels of it, leave the middle ``left`` of those."""

    start: float
    stop: float
    made: int
    left: int
    needed: tuple[int, int]  # the pixels of the source that matter, at least

    @classmethod
    def plan(cls, length: int, target: int, crop: int) -> _Pass:
        """A pass that makes the crop alone where that changes no bit, and the whole side where it might.

        Pillow finds each pixel's weights from ``start + (i + 0.5) * step`` in float64, with start and stop in float32. If
        the step is a fraction with a power of two below, and start and stop fit float32, all of this is exact, and the
        pixels of a window are those of the whole.
        """
        below = target // math.gcd(length, target)
        first = (target - crop) // 2
        start, stop = first * length / target, (first + crop) * length / target
        exact = below & (below - 1) == 0 and all(float(np.float32(edge)) == edge for edge in (start, stop, stop - start))
        if not exact or crop == target or target == length:
            return cls(0, length, target, crop, (0, length))
        reach = 3 * max(length / target, 1) + 2  # no filter of Pillow's is wider
        return cls(start, stop, crop, crop, (max(int(start - reach), 0), min(math.ceil(stop + reach), length)))

    def moved(self, first: int) -> _Pass:
        """The same pass of an image that begins at its pixel ``first``."""
        return dataclasses.replace(self, start=self.start - first, stop=self.stop - first)

    def vertical(self, image: Image.Image, resample: int) -> Image.Image:
        box = (0, self.start, image.width, self.stop)
        return middle(image.resize((image.width, self.made), resample, box=box), self.left, image.width)

    def horizontal(self, image: Image.Image, resample: int) -> Image.Image:
        box = (self.start, 0, self.stop, image.height)
        return middle(image.resize((self.made, image.height), resample, box=box), image.height, self.left)


def vertical_first(height: int, width: int, to_height: int, to_width: int) -> bool:
    """Pillow 13's order of the two passes, which it does not document."""
    return height - to_height > max(2 * (width - to_width), 0)


@functools.cache
def _order_is_known() -> bool:
    """Whether this Pillow resizes in the order that we think, tried on both sides of where it changes."""
    noise = (np.arange(20 * 29, dtype=np.uint32).reshape(29, 20) * 2654435761 >> 24).astype(np.uint8)
    for height in (28, 29):
        image = Image.fromarray(noise[:height])
        whole = image.resize((12, 12), Image.Resampling.BICUBIC)
        step = (20, 12) if vertical_first(height, 20, 12, 12) else (12, height)
        halfway = image.resize(step, Image.Resampling.BICUBIC)
        if halfway.resize((12, 12), Image.Resampling.BICUBIC).tobytes() != whole.tobytes():
            return False
    return True


def middle(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of an image, with black around it where it is smaller."""
    if image.size == (width, height):
        return image
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))
