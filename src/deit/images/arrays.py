"""Images of any kind -> arrays (H, W, C) of the wanted size: the steps of transformers' Pillow backend, bit for bit.

H height, W width, C channels. Nothing here knows of settings: :mod:`deit.images.processor` does.
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
from deit.images.processor_settings import Sides, Statistic
from deit.images.resizing import middle, resized

if TYPE_CHECKING:
    import torch

    ImageInput = Image.Image | np.ndarray | torch.Tensor | str | Path

CHANNELS = frozenset({1, 3, 4})  # what the channels' axis is told by


def flattened(images: Any) -> list[Any]:
    """One image, a batch of four dimensions, or lists of them, nested at will -> one list.

    Example:
        >>> len(flattened([[np.zeros((4, 4, 3))], [np.zeros((2, 4, 4, 3))]]))
        3
    """
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return [image for item in images for image in flattened(item)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def channels_last(image: ImageInput, rgb: bool, layout: str | None, known: Collection[int]) -> Image.Image | np.ndarray:
    """One image -> a Pillow image of mode RGB or L, or an array (H, W, C) of any numeric type.

    Args:
        image: a Pillow image; an array or tensor of (H, W, C), (C, H, W) or (H, W); the path of a file.
        rgb: make three channels of one, and of those with transparency, which is laid on white.
        layout: ``channels_first`` or ``channels_last``; told by the shape when None.
        known: numbers of channels by which the shape tells; where both ends could be it, the first is.

    Raises:
        ImageError: it is no image, or it cannot be read.
    """
    if isinstance(image, str | Path):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        return _from_pillow(image, rgb)
    if not hasattr(image, "ndim"):
        raise ImageError(f"{type(image).__name__} is no image", "pass a Pillow image, an array, a tensor, a path, or a list")
    array = _array(image)
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "biuf":
        raise ImageError(f"An array of shape {array.shape} and type {array.dtype} is no image", "pass (height, width, 3)")
    if array.ndim == 2:
        array = array[..., None]
    elif layout == "channels_first" or (layout is None and array.shape[0] in known):
        array = np.moveaxis(array, 0, -1)
    elif layout is None and array.shape[-1] not in known:
        raise ImageError(f"An array of shape {array.shape} is no image with known channels", "pass input_data_format")
    return _rgb_array(array) if rgb else array


def fitted(source: Image.Image | np.ndarray, target: Sides | None, crop: Sides | None, resample: int) -> np.ndarray:
    """Resize to ``target``, then take the middle ``crop``, both (height, width) -> (H, W, C).

    Resized arrays pass through 8 bits: those that lie in 0..1 come back as float32 in 0..1, all others as uint8. What is
    only cropped keeps its type. What lies beyond an image's edge is zero.

    Raises:
        ImageError: an array with values outside 0..255 is to be resized.

    Example:
        >>> fitted(Image.new("RGB", (500, 375)), (256, 256), (224, 224), Image.Resampling.BICUBIC).shape
        (224, 224, 3)
    """
    if isinstance(source, Image.Image):
        return _fitted_image(source, target, crop, resample)
    if target is None:
        return source if crop is None else _cropped(source, *crop)
    pixels, unit = _eight_bits(source)
    if source.shape[-1] > 4:  # more than Pillow knows, so one after the other
        each = [fitted(pixels[..., [channel]], target, crop, resample) for channel in range(source.shape[-1])]
        values = np.concatenate(each, axis=-1)
    else:
        image = Image.fromarray(pixels[..., 0] if source.shape[-1] == 1 else pixels)
        values = _fitted_image(image, target, crop, resample)
    return scaled(values, 1 / 255, None) if unit else values


def scaled(values: np.ndarray, factor: float | None, statistics: tuple[Statistic, Statistic] | None) -> np.ndarray:
    """(..., C) times the factor, minus the mean, by the standard deviation; float32, or as given where nothing is done.

    The product is rounded from float64, the rest is float32: other orders differ in the last bit.
    """
    if factor is not None:
        values = (values.astype(np.float64) * factor).astype(np.float32)
    if statistics is not None:
        values = values if values.dtype.kind == "f" else values.astype(np.float32)
        mean, std = (_per_channel(statistic, values.shape[-1]) for statistic in statistics)
        values = (values - mean.astype(values.dtype)) / std.astype(values.dtype)
    return values


def scale_into(
    out: np.ndarray, pixels: np.ndarray, factor: float | None, statistics: tuple[Statistic, Statistic] | None
) -> None:
    """:func:`scaled` of (H, W, C), uint8, written to (C, H, W), float32."""
    for channel, (values, steps) in enumerate(_table(factor, statistics, pixels.shape[-1])):
        if steps is None:
            np.take(values, pixels[..., channel], out=out[channel], mode="clip")
        else:
            _walk(out[channel], pixels[..., channel], steps)


Steps = tuple[np.float32, np.float32, np.float32]


@functools.lru_cache(maxsize=64)
def _table(
    factor: float | None, statistics: tuple[Statistic, Statistic] | None, channels: int
) -> list[tuple[np.ndarray, Steps | None]]:
    """By channel: :func:`scaled` of the 256 values, and float32 steps that lead to the very same numbers, if they do.

    The steps divide by 255 where :func:`scaled` multiplies in float64. They are tried on all values that there are, and
    take a third of the time of looking values up.
    """
    every = np.arange(256, dtype=np.uint8)
    values = scaled(np.repeat(every[:, None], channels, axis=1), factor, statistics)
    mean, std = (_per_channel(statistic, channels).astype(np.float32) for statistic in statistics or (0.0, 1.0))
    rows: list[tuple[np.ndarray, Steps | None]] = []
    for channel in range(channels):
        steps = np.float32(1 / factor if factor else 1), mean[channel], std[channel]
        tried = _walk(np.empty(256, np.float32), every, steps)
        row = np.ascontiguousarray(values[:, channel])
        rows.append((row, steps if np.array_equal(tried, row) else None))
    return rows


def _walk(out: np.ndarray, pixels: np.ndarray, steps: Steps) -> np.ndarray:
    np.divide(pixels, steps[0], out=out, dtype=np.float32)
    np.subtract(out, steps[1], out=out)
    np.divide(out, steps[2], out=out)
    return out


def _per_channel(statistic: Statistic, channels: int) -> np.ndarray:
    if isinstance(statistic, tuple) and len(statistic) != channels:
        raise ConfigError(
            f"image_mean or image_std has {len(statistic)} values and the image {channels} channels",
            "pass one value a channel, or convert the image",
        )
    return np.broadcast_to(np.asarray(statistic, np.float64), (channels,))


def _from_pillow(image: Image.Image, rgb: bool) -> Image.Image | np.ndarray:
    if not image.width * image.height:
        raise ImageError("An image without pixels is no image", "leave it out")
    try:
        image.load()
        if rgb:
            return _rgb(image)
        return image if image.mode in ("RGB", "L") else _with_channels(np.asarray(image))
    except DECODING_ERRORS as error:
        raise ImageError(f"An image of mode {image.mode} cannot be read ({error})", "replace or remove it") from error


def _rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")


def _rgb_array(array: np.ndarray) -> np.ndarray:
    """As :func:`_rgb`, but not to the last bit: transformers, too, lays arrays on white in floating point."""
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


def _array(image: Any) -> np.ndarray:
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        image = image.float() if str(image.dtype) == "torch.bfloat16" else image  # NumPy has no such type
    return np.asarray(image)


def _eight_bits(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Values as uint8, and whether they were fractions of 1. Those are cut off, not rounded, as transformers does."""
    if array.dtype == np.uint8:
        return array, False
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        raise ImageError(f"An image has values from {low} to {high}", "bring them to 0..255, or switch do_resize off")
    if array.dtype.kind != "f" or np.allclose(array, array.astype(int)):
        return array.astype(np.uint8), False
    if high <= 1:
        return scaled(array, 255, None).astype(np.uint8), True
    return np.rint(array).astype(np.uint8), False  # transformers refuses these


def _fitted_image(image: Image.Image, target: Sides | None, crop: Sides | None, resample: int) -> np.ndarray:
    if target is not None:
        image = resized(image, target, crop or target, resample)
    if crop is not None:
        image = middle(image, *crop)
    return _planes(image) if image.mode == "RGB" else _with_channels(np.asarray(image))


def _planes(image: Image.Image) -> np.ndarray:
    """(H, W, 3) with each channel's values side by side in memory, where what follows reads them fastest."""
    planes = b"".join(image.tobytes("raw", band) for band in "RGB")
    return np.frombuffer(planes, np.uint8).reshape(3, image.height, image.width).transpose(1, 2, 0)


def _cropped(array: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return array[top : top + height, left : left + width]
    result = np.zeros((height, width, array.shape[-1]), array.dtype)
    inner = array[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    result[max(-top, 0) :, max(-left, 0) :][: inner.shape[0], : inner.shape[1]] = inner
    return result


def _with_channels(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array
