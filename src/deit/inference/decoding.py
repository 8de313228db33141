"""Fast decoding of image files for prediction: close to the image processor, within stated bounds.

Two approximations save most of the time:

- A large JPEG is decoded two, four or eight times smaller per side, as long as it keeps one and a half times the pixels that
  the resize needs. Values of photographs change by less than one of 255 levels on average (tests/parity/test_reduction.py).
- The resize is Pillow's, computed as float32 matrix products, which are many times faster than Pillow's loops. Less than half a
  percent of the values change, by one level (tests/parity/test_decoding.py).
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
from deit.images.resizing import HeightWidth, center_offset, vertical_first

BLOCK_ROWS = 16  # output pixels per matrix; neighbors read mostly the same input pixels
PILLOW_PRECISION_BITS = 22  # of Pillow's fixed-point weights
# Multiplications per matrix product. OpenBLAS starts its own threads for larger ones (interface/gemm.c), which would compete
# with the threads that resize other images.
MAX_PRODUCT_SIZE = 2**18
MAX_MATRIX_SIDE = 4096  # pixels; the weights of longer sides would fill the cache
MAX_MATRIX_PIXELS = 2_000_000  # of an image; for larger ones, the conversion to float32 takes longer than Pillow's loops


def fast_pixels(processor: DeiTImageProcessor, source: Path | bytes, name: str = "") -> np.ndarray:
    """Decodes, resizes and crops an image file, approximately as :meth:`DeiTImageProcessor.pixels` does.

    Args:
        processor: image processor of the model.
        source: path or content of the file.
        name: name of the image in error messages; the path by default.

    Returns:
        (height, width, 3), uint8.

    Raises:
        ImageError: the image is unreadable.
    """
    if not processor.do_resize:
        return processor.pixels(open_image(source, name, processor.file_range))
    with EncodedImage(source, name, processor.file_range) as encoded:
        full_size = encoded.height, encoded.width
        target = target_size(processor.size, *full_size)
        image = encoded.decode(largest_reduction(min(full_size[0] / target[0], full_size[1] / target[1])))
    crop = (processor.crop_size["height"], processor.crop_size["width"]) if processor.do_center_crop else target
    half_even = processor.crop_rounding == "even"
    is_inside = crop[0] <= target[0] and crop[1] <= target[1]
    is_small = image.width * image.height <= MAX_MATRIX_PIXELS and max(image.size) <= MAX_MATRIX_SIDE
    if processor.resample not in FILTERS or not is_inside or not is_small:
        return resize_and_crop(image, target, crop, processor.resample, half_even)
    return np.moveaxis(_resize_by_products(image, full_size, target, crop, processor.resample, half_even), 0, -1)


def _resize_by_products(
    image: Image.Image, full_size: HeightWidth, target: HeightWidth, crop: HeightWidth, resample: int, half_even: bool
) -> np.ndarray:
    """Resizes an RGB image and takes a center crop. Rounds after each pass, as Pillow does.

    Args:
        image: an RGB image, which may be decoded at a reduced size.
        full_size: height and width of the image at full size.
        target: height and width to resize to.
        crop: height and width of the center crop.
        resample: a resampling filter in :data:`FILTERS`.
        half_even: rounding of the crop's offset.

    Returns:
        (3, *crop), uint8.
    """
    vertical = _plan_axis(image.height, full_size[0], target[0], crop[0], resample, half_even)
    horizontal = _plan_axis(image.width, full_size[1], target[1], crop[1], resample, half_even)
    planes = np.frombuffer(b"".join(image.tobytes("raw", band) for band in "RGB"), np.uint8)
    planes = planes.reshape(3, image.height, image.width)
    values = planes[:, vertical.start : vertical.stop, horizontal.start : horizontal.stop].astype(np.float32)
    if vertical_first(image.height, image.width, *target):
        values = _resize_horizontally(_round_in_place(_resize_vertically(values, vertical)), horizontal)
    else:
        values = _resize_vertically(_round_in_place(_resize_horizontally(values, horizontal)), vertical)
    return _round_in_place(values).astype(np.uint8)


@dataclass(frozen=True)
class _AxisPlan:
    """The resize of one axis as a product with a banded matrix, in blocks.

    Attributes:
        start: first input pixel that is read.
        stop: last input pixel that is read, plus one.
        length: number of output pixels.
        blocks: for each block its output pixels, its input pixels counted from ``start``, and its weights
            (output pixels, input pixels), float32.
    """

    start: int
    stop: int
    length: int
    blocks: tuple[tuple[slice, slice, np.ndarray], ...]


@functools.lru_cache(maxsize=256)
def _plan_axis(length: int, full_length: int, target: int, crop: int, resample: int, half_even: bool = False) -> _AxisPlan:
    """Computes Pillow's weights for the center ``crop`` of an axis of ``length`` pixels that is resized to ``target``.

    A JPEG that is decoded smaller may end in a pixel that is partly outside of the image: 2,250 pixels become 562.5, stored as
    563. The step is therefore computed from ``full_length``.
    """
    kernel, radius = FILTERS[resample]
    step = full_length / round(full_length / length) / target
    scale = max(step, 1.0)
    centers = (np.arange(crop) + center_offset(target, crop, half_even) + 0.5) * step  # (crop,)
    starts = np.maximum((centers - radius * scale + 0.5).astype(np.int64), 0)
    stops = np.minimum((centers + radius * scale + 0.5).astype(np.int64), length)
    indices = starts[:, None] + np.arange((stops - starts).max())  # (crop, taps)
    weights = kernel(np.abs((indices + 0.5 - centers[:, None]) / scale)) * (indices < stops[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    # Pillow's rounding decides the values that are halfway between two levels.
    weights = np.rint(weights * 2**PILLOW_PRECISION_BITS) / 2**PILLOW_PRECISION_BITS
    first, last = int(starts[0]), int(stops[-1])
    blocks = []
    for block_start in range(0, crop, BLOCK_ROWS):
        outputs = slice(block_start, min(block_start + BLOCK_ROWS, crop))
        low, high = int(starts[outputs][0]), int(stops[outputs][-1])
        matrix = np.zeros((outputs.stop - block_start, high - low + indices.shape[1]), np.float32)
        np.put_along_axis(matrix, indices[outputs] - low, weights[outputs].astype(np.float32), axis=1)
        blocks.append((outputs, slice(low - first, high - first), np.ascontiguousarray(matrix[:, : high - low])))
    return _AxisPlan(first, last, crop, tuple(blocks))


def _resize_vertically(values: np.ndarray, plan: _AxisPlan) -> np.ndarray:
    """(3, rows, columns) -> (3, plan.length, columns)."""
    columns = values.shape[2]
    resized = np.empty((3, plan.length, columns), np.float32)
    for outputs, inputs, weights in plan.blocks:
        step = max(1, MAX_PRODUCT_SIZE // weights.size)
        for start in range(0, columns, step):
            part = slice(start, start + step)
            np.matmul(weights, values[:, inputs, part], out=resized[:, outputs, part])
    return resized


def _resize_horizontally(values: np.ndarray, plan: _AxisPlan) -> np.ndarray:
    """(3, rows, columns) -> (3, rows, plan.length)."""
    rows = values.shape[1]
    resized = np.empty((3, rows, plan.length), np.float32)
    for outputs, inputs, weights in plan.blocks:
        step = max(1, MAX_PRODUCT_SIZE // weights.size)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            np.matmul(values[:, part, inputs], weights.T, out=resized[:, part, outputs])
    return resized


def _round_in_place(values: np.ndarray) -> np.ndarray:
    """Rounds to the nearest level in 0..255."""
    np.add(values, 0.5, out=values)
    np.floor(values, out=values)
    np.clip(values, 0, 255, out=values)
    return values


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# Pillow's filter -> its kernel as a function of the distance from the center, and its radius. Without the bilinear filter: its
# weights leave many values halfway between two levels, where the order of the sum decides.
FILTERS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    int(Image.Resampling.LANCZOS): (_lanczos, 3.0),
    int(Image.Resampling.BICUBIC): (_bicubic, 2.0),
}
