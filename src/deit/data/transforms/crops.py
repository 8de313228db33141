"""Random crops, resized to the model's input size.

Resizing is torch's bicubic interpolation of uint8 with antialiasing, as in torchvision's tensor transforms, with the same bits
on any CPU. It takes a quarter of the time of Pillow's, whose pixels differ by 0.04 of 255 levels on average, and by some ten at
sharp edges (tests/parity/test_augmentation.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional

from deit.images.decoding import largest_reduction

MAX_TRIES = 10  # to find a rectangle that fits
MAX_COVERING_PIXELS = 2**25  # of an image that is resized as a whole
PADDING = 4  # pixels on each side of a padded crop

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def random_resized_crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draws the box of a random resized crop; after ten failed tries, the largest center crop of an allowed aspect ratio."""
    for _ in range(MAX_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect_ratio)), round(math.sqrt(area / aspect_ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = _largest_crop(width, height, ratio)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _largest_crop(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Returns width and height of the largest crop of an allowed aspect ratio."""
    aspect_ratio = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, round(height * aspect_ratio)), min(height, round(width / aspect_ratio))
    return max(crop_width, 1), max(crop_height, 1)


def smallest_crop(width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[float, float]:
    """Returns the width and the height, in pixels, that no random resized crop falls below by more than half a pixel."""
    area = width * height * scale[0]
    largest_width, largest_height = _largest_crop(width, height, ratio)
    return min(math.sqrt(area * ratio[0]), largest_width), min(math.sqrt(area / ratio[1]), largest_height)


def crop_reduction(boxes: Iterable[Box], height: int, width: int) -> int:
    """Returns the JPEG reduction, 1, 2, 4 or 8, at which every box still has 1.5 times its crop's pixels per side.

    Crops of photos differ from those of full-size decoding by 0.4 to 0.9 of 255 levels on average, and by 2 in the worst crop
    (tests/parity/test_reduction.py); JPEG compression of quality 90 costs two to three.
    """
    return largest_reduction(min(crop_scale(box, height, width) for box in boxes))


def crop_scale(box: Box, height: int, width: int) -> float:
    """Returns the pixels of a box per pixel of its crop and side, the smaller of both sides."""
    left, top, right, bottom = box
    return min((right - left) / width, (bottom - top) / height)


def reduced_box(box: Box, factor: int) -> Box:
    """Returns the box in an image that was decoded ``factor`` times smaller, rounded to whole pixels.

    Its edges move by at most half a pixel of that image, which is a third of a pixel of the crop.
    """
    left, top, right, bottom = ((edge + factor // 2) // factor for edge in box)
    return left, top, right, bottom


def crop_and_resize(pixels: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Resizes a box of (H, W, 3) uint8 to (3, height, width) uint8. The box may exceed the image by a pixel."""
    left, top, right, bottom = box
    # A copy: torch does not accept read-only memory, and is faster on contiguous rows.
    crop = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)
    if tuple(crop.shape[1:]) == (height, width):
        return crop.numpy()
    resized = functional.interpolate(crop[None], (height, width), mode="bicubic", antialias=True)
    return resized[0].numpy()


def padded_crop(pixels: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Resizes the image, pads it by 4 black pixels and crops it at random: (H, W, 3) -> (3, height, width) uint8."""
    image = crop_and_resize(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), height, width)
    left, top = (int(offset) for offset in rng.integers(0, 2 * PADDING + 1, 2))
    padded = np.zeros((3, height + 2 * PADDING, width + 2 * PADDING), np.uint8)
    padded[:, PADDING : PADDING + height, PADDING : PADDING + width] = image
    return padded[:, top : top + height, left : left + width]


def simple_random_crop(
    pixels: np.ndarray, height: int, width: int, rng: np.random.Generator, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Simple random crop of DeiT III (section 3.2): (H, W, 3) -> (3, height, width) uint8.

    The image is resized to cover the output size with its aspect ratio kept, padded by reflection of 4 pixels, and cropped at a
    uniformly random position.

    Args:
        pixels: (H, W, 3) uint8.
        height: of the crop, in pixels.
        width: of the crop, in pixels.
        rng: generator of the sample.
        size: (height, width) of an image of which ``pixels`` is a reduced version, so that the same crop is drawn from it.
    """
    rows, columns = pixels.shape[:2]
    full_rows, full_columns = size or (rows, columns)
    # Integer arithmetic, as torchvision computes the longer side.
    if full_columns * height <= full_rows * width:
        new_rows, new_columns = max(height, full_rows * width // full_columns), width
    else:
        new_rows, new_columns = height, max(width, full_columns * height // full_rows)
    top = int(rng.integers(new_rows + 2 * PADDING - height + 1)) - PADDING
    left = int(rng.integers(new_columns + 2 * PADDING - width + 1)) - PADDING
    rows_needed, columns_needed = _reflected_indices(top, height, new_rows), _reflected_indices(left, width, new_columns)
    box = (0, 0, columns, rows)
    if new_rows * new_columns > MAX_COVERING_PIXELS:  # an extreme aspect ratio: only the part around the crop is resized
        first, last, top_edge, bottom_edge = _source_interval(rows_needed, rows, new_rows)
        start, stop, left_edge, right_edge = _source_interval(columns_needed, columns, new_columns)
        box = (left_edge, top_edge, right_edge, bottom_edge)
        new_rows, new_columns = last - first, stop - start
        rows_needed, columns_needed = rows_needed - first, columns_needed - start
    image = crop_and_resize(pixels, box, new_rows, new_columns)
    return image[:, rows_needed[:, None], columns_needed]


def _source_interval(needed: np.ndarray, length: int, new_length: int) -> tuple[int, int, int, int]:
    """Returns the interval of a resized axis that contains the needed pixels, and of the pixels that it is resized from."""
    scale = length / new_length
    left, right = math.floor(needed.min() * scale), math.ceil((needed.max() + 1) * scale)
    first, last = min(math.ceil(left / scale), int(needed.min())), max(math.floor(right / scale), int(needed.max()) + 1)
    return first, last, left, right


def _reflected_indices(start: int, count: int, length: int) -> np.ndarray:
    """Returns ``count`` indices from ``start`` on, reflected at both ends without repeating the edge."""
    indices = np.abs(np.arange(start, start + count))
    return np.where(indices < length, indices, 2 * (length - 1) - indices)
