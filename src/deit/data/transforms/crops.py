"""Which part of an image a training sample shows, and that part in the size of the model's input.

Resizing is torch's, bicubic with antialiasing on 8 bits, as torchvision's tensor transforms have it to the last bit on any
CPU. It takes a quarter of the time of Pillow's, whose pixels differ from it by 0.04 levels of 255 on average, at most by some
ten at sharp edges (tests/parity/test_crops.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional

from deit.images.decoding import largest_reduction

TRIES = 10  # to find a rectangle that fits
PADDING = 4  # pixels on each side of a padded crop

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def crop_box(width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator) -> Box:
    """The box of a random resized crop; after ten misses the largest middle crop of an allowed aspect."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    crop_width, crop_height = max(crop_width, 1), max(crop_height, 1)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def crop_reduction(boxes: Iterable[Box], height: int, width: int) -> int:
    """Returns the JPEG reduction, 1, 2, 4 or 8, at which every box still has 1.5 times its crop's pixels per side.

    Crops of photos differ from those of full-size decoding by 0.4 to 0.9 of 255 levels on average, and by 2 in the worst crop
    (tests/parity/test_reduction.py); JPEG compression of quality 90 costs two to three.
    """
    scale = min(min((right - left) / width, (bottom - top) / height) for left, top, right, bottom in boxes)
    return largest_reduction(scale)


def reduced_box(box: Box, factor: int) -> Box:
    """The box in an image that was decoded ``factor`` times smaller, on whole pixels.

    Its edges move by half a pixel of that image at most, which is a third of a pixel of the crop.
    """
    left, top, right, bottom = ((edge + factor // 2) // factor for edge in box)
    return left, top, right, bottom


def resized(pixels: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """A box of (H, W, 3) uint8, which may reach beyond the image by a pixel -> (3, height, width) uint8."""
    left, top, right, bottom = box
    # A copy: torch takes no read-only memory, and is faster where rows follow each other.
    part = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)
    if tuple(part.shape[1:]) == (height, width):
        return part.numpy()
    made = functional.interpolate(part[None], (height, width), mode="bicubic", antialias=True)
    return made[0].numpy()


def shifted_crop(pixels: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """The whole image in the asked size, moved by up to 4 pixels over black: (H, W, 3) -> (3, height, width), uint8."""
    image = resized(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), height, width)
    left, top = (int(place) for place in rng.integers(0, 2 * PADDING + 1, 2))
    padded = np.zeros((3, height + 2 * PADDING, width + 2 * PADDING), np.uint8)
    padded[:, PADDING : PADDING + height, PADDING : PADDING + width] = image
    return padded[:, top : top + height, left : left + width]


def simple_crop(pixels: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """DeiT III's simple random crop (section 3.2): (H, W, 3) -> (3, height, width), uint8.

    The image is resized to cover the asked size with its aspect kept, gets 4 pixels of its mirror image on each side, and is
    cropped at a uniform place.
    """
    rows, columns = pixels.shape[:2]
    # Whole numbers, as torchvision computes the longer side: the shorter one is the size itself.
    if columns * height <= rows * width:
        new_rows, new_columns = max(height, rows * width // columns), width
    else:
        new_rows, new_columns = height, max(width, columns * height // rows)
    image = resized(pixels, (0, 0, columns, rows), new_rows, new_columns)
    top = int(rng.integers(new_rows + 2 * PADDING - height + 1)) - PADDING
    left = int(rng.integers(new_columns + 2 * PADDING - width + 1)) - PADDING
    return image[:, _mirrored(top, height, new_rows)[:, None], _mirrored(left, width, new_columns)]


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
    """Indices from ``start`` on, folded back at both ends without doubling the last pixel."""
    places = np.abs(np.arange(start, start + count))
    return np.where(places < length, places, 2 * (length - 1) - places)
