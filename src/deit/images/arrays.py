"""Converts images of any kind to arrays (H, W, C), resizes, crops and normalizes them, as transformers' Pillow backend does.

Results are equal to transformers' bit for bit. H is height, W width, C channels. The settings are those of
:mod:`deit.images.processor`, which calls these functions.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deit.errors import ConfigError, ImageError
from deit.images.decoding import DECODING_ERRORS, open_image
from deit.images.processor_settings import Statistic
from deit.images.resizing import HeightWidth, center_crop, center_offset, resize_for_center_crop

if TYPE_CHECKING:
    import torch

    ImageInput = Image.Image | np.ndarray | torch.Tensor | str | Path

CHANNELS = frozenset({1, 3, 4})  # numbers of channels by which the channel axis of an array is recognized


def flatten_images(images: Any) -> list[Any]:
    """Returns a flat list of images, from one image, a 4-dimensional batch, or lists of them of any nesting.

    Example:
        >>> len(flatten_images([[np.zeros((4, 4, 3))], [np.zeros((2, 4, 4, 3))]]))
        3
    """
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return [image for item in images for image in flatten_images(item)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def to_channels_last(image: ImageInput, rgb: bool, layout: str | None, known: Collection[int]) -> Image.Image | np.ndarray:
    """Converts an image to a Pillow image of mode RGB or L, or to an array (H, W, C) of any numeric type.

    Args:
        image: a Pillow image; an array or tensor of shape (H, W, C), (C, H, W) or (H, W); or the path of a file.
        rgb: convert to three channels: gray is repeated, transparency is composited onto white.
        layout: ``channels_first`` or ``channels_last``; None to infer it from the shape.
        known: numbers of channels to infer the layout by; if both the first and the last axis match, the first is taken.

    Raises:
        ImageError: the input is not an image, or cannot be read.
    """
    if isinstance(image, str | Path):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        return _from_pillow(image, rgb)
    if not hasattr(image, "ndim"):
        raise ImageError(
            f"{type(image).__name__} is not an image", "pass a Pillow image, an array, a tensor, a path, or a list of these"
        )
    array = _to_numpy(image)
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "biuf":
        raise ImageError(f"An array of shape {array.shape} and type {array.dtype} is not an image", "pass (height, width, 3)")
    if array.ndim == 2:
        array = array[..., None]
    elif layout == "channels_first" or (layout is None and array.shape[0] in known):
        array = np.moveaxis(array, 0, -1)
    elif layout is None and array.shape[-1] not in known:
        raise ImageError(f"An array of shape {array.shape} is not an image with known channels", "pass input_data_format")
    return _array_to_rgb(array) if rgb else array


def resize_and_crop(
    source: Image.Image | np.ndarray,
    target: HeightWidth | None,
    crop: HeightWidth | None,
    resample: int,
    half_even: bool = False,
) -> np.ndarray:
    """Resizes an image to ``target``, then takes a center crop of ``crop``.

    Regions of the crop outside the image are zero.

    Args:
        source: a Pillow image, or an array (H, W, C).
        target: height and width; None does not resize.
        crop: height and width; None does not crop.
        resample: Pillow's resampling filter.
        half_even: rounding of the crop's offset, see :func:`deit.images.resizing.center_offset`.

    Returns:
        (H, W, C). Resized arrays are quantized to 8 bits: values in 0..1 are returned as float32 in 0..1, others as uint8.
        Arrays that are only cropped keep their type.

    Raises:
        ImageError: an array to resize has values outside 0..255.

    Example:
        >>> resize_and_crop(Image.new("RGB", (500, 375)), (256, 256), (224, 224), Image.Resampling.BICUBIC).shape
        (224, 224, 3)
    """
    if isinstance(source, Image.Image):
        return _resize_and_crop_image(source, target, crop, resample, half_even)
    if target is None:
        return source if crop is None else _center_crop_array(source, *crop, half_even)
    pixels, is_fraction = _to_uint8(source)
    if source.shape[-1] > 4:  # more channels than Pillow supports, so one by one
        channels = [
            resize_and_crop(pixels[..., [channel]], target, crop, resample, half_even) for channel in range(source.shape[-1])
        ]
        resized = np.concatenate(channels, axis=-1)
    else:
        image = Image.fromarray(pixels[..., 0] if source.shape[-1] == 1 else pixels)
        resized = _resize_and_crop_image(image, target, crop, resample, half_even)
    return rescale_and_normalize(resized, 1 / 255, None) if is_fraction else resized


def rescale_and_normalize(
    values: np.ndarray, factor: float | None, statistics: tuple[Statistic, Statistic] | None
) -> np.ndarray:
    """Multiplies (..., C) by the factor, subtracts the mean and divides by the standard deviation.

    The product is computed in float64 and rounded, the rest in float32: another order differs in the last bit.

    Args:
        values: (..., C).
        factor: rescale factor; None does not rescale.
        statistics: mean and standard deviation; None does not normalize.

    Returns:
        (..., C) float32; unchanged if neither step is done.
    """
    if factor is not None:
        values = (values.astype(np.float64) * factor).astype(np.float32)
    if statistics is not None:
        values = values if values.dtype.kind == "f" else values.astype(np.float32)
        mean, std = (_per_channel(statistic, values.shape[-1]) for statistic in statistics)
        values = (values - mean.astype(values.dtype)) / std.astype(values.dtype)
    return values


def rescale_and_normalize_into(
    out: np.ndarray, pixels: np.ndarray, factor: float | None, statistics: tuple[Statistic, Statistic] | None
) -> None:
    """Writes :func:`rescale_and_normalize` of (H, W, C) uint8 to ``out``, (C, H, W) float32. Same bits, but faster."""
    for channel, (values, constants) in enumerate(_lookup_tables(factor, statistics, pixels.shape[-1])):
        if constants is None:
            np.take(values, pixels[..., channel], out=out[channel], mode="clip")
        else:
            _compute_in_float32(out[channel], pixels[..., channel], constants)


Constants = tuple[np.float32, np.float32, np.float32]  # divisor, mean, standard deviation


@functools.lru_cache(maxsize=64)
def _lookup_tables(
    factor: float | None, statistics: tuple[Statistic, Statistic] | None, channels: int
) -> list[tuple[np.ndarray, Constants | None]]:
    """Returns for each channel the normalized values of 0..255, and constants for float32 arithmetic with the same results.

    The float32 arithmetic divides by 255 where :func:`rescale_and_normalize` multiplies in float64. It takes a third of the
    time of a lookup. The constants are None if its results differ for any of the 256 values.
    """
    levels = np.arange(256, dtype=np.uint8)
    values = rescale_and_normalize(np.repeat(levels[:, None], channels, axis=1), factor, statistics)
    mean, std = (_per_channel(statistic, channels).astype(np.float32) for statistic in statistics or (0.0, 1.0))
    tables: list[tuple[np.ndarray, Constants | None]] = []
    for channel in range(channels):
        constants = np.float32(1 / factor if factor else 1), mean[channel], std[channel]
        computed = _compute_in_float32(np.empty(256, np.float32), levels, constants)
        table = np.ascontiguousarray(values[:, channel])
        tables.append((table, constants if np.array_equal(computed, table) else None))
    return tables


def _compute_in_float32(out: np.ndarray, pixels: np.ndarray, constants: Constants) -> np.ndarray:
    divisor, mean, std = constants
    np.divide(pixels, divisor, out=out, dtype=np.float32)
    np.subtract(out, mean, out=out)
    np.divide(out, std, out=out)
    return out


def _per_channel(statistic: Statistic, channels: int) -> np.ndarray:
    if isinstance(statistic, tuple) and len(statistic) != channels:
        raise ConfigError(
            f"image_mean or image_std has {len(statistic)} values and the image {channels} channels",
            "pass one value per channel, or convert the image",
        )
    return np.broadcast_to(np.asarray(statistic, np.float64), (channels,))


def _from_pillow(image: Image.Image, rgb: bool) -> Image.Image | np.ndarray:
    if not image.width * image.height:
        raise ImageError("An image without pixels is not an image", "leave it out")
    try:
        image.load()
        if rgb:
            return _image_to_rgb(image)
        return image if image.mode in ("RGB", "L") else _add_channel_axis(np.asarray(image))
    except DECODING_ERRORS as error:
        raise ImageError(f"An image of mode {image.mode} cannot be read ({error})", "replace or remove it") from error


def _image_to_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    """Converts (H, W, C) to three channels.

    May differ from :func:`_image_to_rgb` in the last bit: transformers also composites arrays in floating point.
    """
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    if array.shape[-1] != 4:
        return array
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise ImageError("A transparent image of floats has values outside 0..1", "divide them by 255")
    white = 255 if array.dtype.kind in "iu" else 1.0
    alpha = array[..., 3:] / white
    blend = alpha * array[..., :3] + (1 - alpha) * white
    return np.asarray(np.round(blend) if white == 255 else blend, array.dtype)


def _to_numpy(image: Any) -> np.ndarray:
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        image = image.float() if str(image.dtype) == "torch.bfloat16" else image  # NumPy has no bfloat16
    return np.asarray(image)


def _to_uint8(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Returns values as uint8, and whether they were in 0..1. Those are truncated, not rounded, as in transformers."""
    if array.dtype == np.uint8:
        return array, False
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise ImageError(f"An image has values from {low} to {high}", "scale them to 0..255, or pass do_resize=False")
    if array.dtype.kind != "f" or np.allclose(array, array.astype(int)):
        return array.astype(np.uint8), False
    if high <= 1:
        return rescale_and_normalize(array, 255, None).astype(np.uint8), True
    return np.rint(array).astype(np.uint8), False  # transformers raises an error here


def _resize_and_crop_image(
    image: Image.Image, target: HeightWidth | None, crop: HeightWidth | None, resample: int, half_even: bool
) -> np.ndarray:
    if target is not None:
        image = resize_for_center_crop(image, target, crop or target, resample, half_even)
    if crop is not None:
        image = center_crop(image, *crop, half_even)
    return _to_planar_array(image) if image.mode == "RGB" else _add_channel_axis(np.asarray(image))


def _to_planar_array(image: Image.Image) -> np.ndarray:
    """Returns (H, W, 3) with each channel contiguous in memory, which normalization reads fastest."""
    planes = b"".join(image.tobytes("raw", band) for band in "RGB")
    return np.frombuffer(planes, np.uint8).reshape(3, image.height, image.width).transpose(1, 2, 0)


def _center_crop_array(array: np.ndarray, height: int, width: int, half_even: bool) -> np.ndarray:
    top, left = center_offset(array.shape[0], height, half_even), center_offset(array.shape[1], width, half_even)
    if top >= 0 and left >= 0:
        return array[top : top + height, left : left + width]
    padded = np.zeros((height, width, array.shape[-1]), array.dtype)
    inner = array[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    padded[max(-top, 0) :, max(-left, 0) :][: inner.shape[0], : inner.shape[1]] = inner
    return padded


def _add_channel_axis(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array
