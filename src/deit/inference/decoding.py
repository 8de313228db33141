"""Image files -> the pixels that a model takes, as fast as they can be had within a stated distance of the exact ones.

Two things are near enough and save most of the time. A large JPEG is decoded two, four or eight times smaller, as long as it
still has one and a half times the pixels that the resize asks for: photographs differ by less than a level of 255 on
average (tests/parity/test_reduction.py). And the resize is Pillow's own, but in float32 matrix products, which a processor
does many times faster than Pillow's loops: less than half a percent of the values differ, by one level
(tests/parity/test_decoding.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deit.images.arrays import resize_and_crop
from deit.images.decoding import EncodedImage, largest_reduction, open_image
from deit.images.processor import DeiTImageProcessor
from deit.images.processor_settings import target_size
from deit.images.resizing import HeightWidth, vertical_first

BLOCK = 16  # rows of a matrix at once: they share most of their columns
PILLOW_BITS = 22  # of the fixed-point weights that Pillow computes with
# Multiplications of one product, at most: OpenBLAS starts its own threads for more (interface/gemm.c), and here several
# threads of ours resize images side by side already.
SERIAL = 2**18
MOST_PIXELS = 2_000_000  # of an image: beyond, bringing it to float32 takes longer than Pillow's loops


def near_pixels(processor: DeiTImageProcessor, source: Path | bytes) -> np.ndarray:
    """A file, read, resized and cropped nearly as the processor would: (height, width, 3), uint8.

    Raises:
        ImageError: it cannot be read.
    """
    if not processor.do_resize:
        return processor.pixels(open_image(source))
    with EncodedImage(source) as encoded:
        whole = encoded.height, encoded.width
        sides = target_size(processor.size, *whole)
        image = encoded.decode(largest_reduction(min(whole[0] / sides[0], whole[1] / sides[1])))
    crop = (processor.crop_size["height"], processor.crop_size["width"]) if processor.do_center_crop else sides
    inside = crop[0] <= sides[0] and crop[1] <= sides[1]
    if processor.resample not in FILTERS or not inside or image.width * image.height > MOST_PIXELS:
        return resize_and_crop(image, sides, crop, processor.resample)
    return np.moveaxis(_resized(image, whole, sides, crop, processor.resample), 0, -1)


def _resized(image: Image.Image, whole: HeightWidth, target: HeightWidth, crop: HeightWidth, resample: int) -> np.ndarray:
    """The middle ``crop`` of an RGB image resized to ``target``: (3, *crop), uint8. Pillow rounds between its passes too.

    Args:
        whole: height and width of what the image was decoded from, maybe smaller.
    """
    upright = _pass(image.height, whole[0], target[0], crop[0], resample)
    across = _pass(image.width, whole[1], target[1], crop[1], resample)
    planes = np.frombuffer(b"".join(image.tobytes("raw", band) for band in "RGB"), np.uint8)
    needed = planes.reshape(3, image.height, image.width)[:, upright.first : upright.last, across.first : across.last]
    values = needed.astype(np.float32)
    if vertical_first(image.height, image.width, *target):
        values = _across(_rounded(_upright(values, upright)), across)
    else:
        values = _upright(_rounded(_across(values, across)), upright)
    return _rounded(values).astype(np.uint8)


@dataclass(frozen=True)
class _Pass:
    """One side's resize: blocks of (rows made, from and to which pixels they read, their weights), counted from ``first``."""

    first: int
    last: int
    made: int
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]


@functools.lru_cache(maxsize=256)
def _pass(length: int, whole: int, target: int, crop: int, resample: int) -> _Pass:
    """The middle ``crop`` pixels of a side of ``length`` resized to ``target``, with Pillow's weights.

    A JPEG of ``whole`` pixels that is decoded smaller has its last pixel in part beyond the edge: 2,250 are 562.5, in 563.
    """
    shape, reach = FILTERS[resample]
    step = whole / round(whole / length) / target
    widened = max(step, 1.0)
    centers = (np.arange((target - crop) // 2, (target - crop) // 2 + crop) + 0.5) * step
    starts = np.maximum((centers - reach * widened + 0.5).astype(np.int64), 0)
    stops = np.minimum((centers + reach * widened + 0.5).astype(np.int64), length)
    places = starts[:, None] + np.arange((stops - starts).max())  # (crop, taps)
    weights = shape(np.abs((places + 0.5 - centers[:, None]) / widened)) * (places < stops[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    weights = np.rint(weights * 2**PILLOW_BITS) / 2**PILLOW_BITS  # what lies halfway goes where this rounding puts it
    first, last = int(starts[0]), int(stops[-1])
    blocks = []
    for start in range(0, crop, BLOCK):
        rows = slice(start, min(start + BLOCK, crop))
        low, high = int(starts[rows][0]), int(stops[rows][-1])
        matrix = np.zeros((rows.stop - start, high - low + places.shape[1]), np.float32)
        np.put_along_axis(matrix, places[rows] - low, weights[rows].astype(np.float32), axis=1)
        blocks.append((rows, slice(low - first, high - first), np.ascontiguousarray(matrix[:, : high - low])))
    return _Pass(first, last, crop, tuple(blocks))


def _upright(values: np.ndarray, side: _Pass) -> np.ndarray:
    """(3, rows, columns) -> (3, made, columns)."""
    columns = values.shape[2]
    made = np.empty((3, side.made, columns), np.float32)
    for rows, read, weights in side.blocks:
        step = max(1, SERIAL // weights.size)
        for place in range(0, columns, step):
            np.matmul(weights, values[:, read, place : place + step], out=made[:, rows, place : place + step])
    return made


def _across(values: np.ndarray, side: _Pass) -> np.ndarray:
    """(3, rows, columns) -> (3, rows, made)."""
    rows = values.shape[1]
    made = np.empty((3, rows, side.made), np.float32)
    for columns, read, weights in side.blocks:
        step = max(1, SERIAL // weights.size)
        for place in range(0, rows, step):
            np.matmul(values[:, place : place + step, read], weights.T, out=made[:, place : place + step, columns])
    return made


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest level, in place."""
    np.add(values, 0.5, out=values)
    np.floor(values, out=values)
    np.clip(values, 0, 255, out=values)
    return values


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# Pillow's numbers of filters -> their shape over the distance from the center, and how far that reaches. Not the bilinear one:
# its weights leave many values halfway between two levels, and then the order of the sum decides.
FILTERS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    int(Image.Resampling.LANCZOS): (_lanczos, 3.0),
    int(Image.Resampling.BICUBIC): (_cubic, 2.0),
}
