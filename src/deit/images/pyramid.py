"""An image at several sizes, each half of the one before, of which every crop takes the size that it needs.

The pixels of a level depend only on the file: a JPEG is decoded at full, half, quarter or eighth size, as its format offers;
every other level averages 2 x 2 pixels of the one before. A pyramid that starts at a finer level therefore contains every
coarser one, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deit.images.decoding import OVERSAMPLING, Decodable, reduction_of

MIN_SIDE = 32  # pixels that the shorter side of the coarsest level has at least, unless the image is smaller
MAX_REDUCTION = 2**11  # no image has more than 65,535 pixels per side

OpenImage = Callable[[], AbstractContextManager[Decodable]]


@dataclass(frozen=True)
class PyramidShape:
    """The sizes of a pyramid.

    Attributes:
        width: of the image, in pixels.
        height: of the image, in pixels.
        base: by how many times per side the finest level is smaller than the image, a power of two.
        count: number of levels.
        least: reduction at which the file can be decoded; 1 unless the image is extremely large.
    """

    width: int
    height: int
    base: int
    count: int
    least: int = 1

    @classmethod
    def of(cls, width: int, height: int, base: int, least: int) -> PyramidShape:
        """Returns the shape of the pyramid of an image, down to ``MIN_SIDE`` pixels."""
        count = 1
        while base << count <= coarsest_reduction(width, height):
            count += 1
        return cls(width, height, base, count, least)

    @property
    def reductions(self) -> tuple[int, ...]:
        """The reduction of each level, the finest first."""
        return tuple(self.base << level for level in range(self.count))

    def size(self, reduction: int) -> tuple[int, int]:
        """Returns (height, width) of a level, in pixels."""
        return -(-self.height // reduction), -(-self.width // reduction)

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(3 * math.prod(self.size(reduction)) for reduction in self.reductions)


@dataclass(frozen=True)
class Pyramid:
    """An image at several sizes.

    Attributes:
        shape: the sizes.
        levels: reduction -> (height, width, 3) uint8.
    """

    shape: PyramidShape
    levels: Mapping[int, np.ndarray]

    @classmethod
    def from_pixels(cls, pixels: np.ndarray) -> Pyramid:
        """Returns a pyramid of one level: (height, width, 3) uint8."""
        height, width, _ = pixels.shape
        return cls(PyramidShape(width, height, 1, 1), {1: pixels})

    def rows(self, reduction: int, top: int, bottom: int) -> tuple[np.ndarray, int]:  # noqa: ARG002
        """Returns rows of a level, at least those from ``top`` to ``bottom``, and the number of the first one."""
        return self.levels[reduction], 0


def reduction_for(scale: float) -> int:
    """Returns the largest power of two that keeps 1.5 times the pixels per side that are needed.

    Args:
        scale: pixels of the image per pixel that is needed, the smaller of both sides.

    Example:
        >>> [reduction_for(scale) for scale in (0.5, 2.9, 3.0, 100.0)]
        [1, 1, 2, 64]
    """
    reduction = 1
    while 2 * reduction * OVERSAMPLING <= scale and reduction < MAX_REDUCTION:
        reduction *= 2
    return reduction


def coarsest_reduction(width: int, height: int) -> int:
    """Returns the reduction of the coarsest level of an image."""
    reduction = 1
    while 2 * reduction * MIN_SIDE <= min(width, height) and reduction < MAX_REDUCTION:
        reduction *= 2
    return reduction


def build_pyramid(open_image: OpenImage, base_of: Callable[[int, int], int]) -> Pyramid:
    """Decodes an image to a pyramid.

    Args:
        open_image: opens the image; called once for each level that is decoded.
        base_of: (width, height) -> reduction of the finest level. A file that is too large to be decoded at that size starts at
            a coarser one.

    Raises:
        ImageError: the image is unreadable.
    """
    with open_image() as encoded:
        width, height, offered = encoded.width, encoded.height, encoded.reductions
        wanted = max(base_of(width, height), offered[0])
        image = encoded.decode(min(wanted, offered[-1]))
        reduction = reduction_of(encoded, image)
    while reduction < wanted:
        image, reduction = image.reduce(2), 2 * reduction
    shape = PyramidShape.of(width, height, reduction, offered[0])
    levels = {reduction: np.asarray(image)}
    for reduction in shape.reductions[1:]:
        decoded = _decode_at(open_image, reduction) if reduction in offered else None
        image = image.reduce(2) if decoded is None else decoded
        levels[reduction] = np.asarray(image)
    return Pyramid(shape, levels)


def _decode_at(open_image: OpenImage, reduction: int) -> Image.Image | None:
    """Decodes an image at a reduced size; returns None if Pillow does not offer it for this file."""
    with open_image() as encoded:
        image = encoded.decode(reduction)
        return image if reduction_of(encoded, image) == reduction else None
