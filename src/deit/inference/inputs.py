"""The kinds of images that a predictor takes: files, Pillow images, arrays and tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from deit.errors import ImageError
from deit.images.arrays import to_channels_last
from deit.images.conversion import ValueRange, to_rgb
from deit.images.decoding import DECODING_ERRORS, MAX_FILE_BYTES
from deit.images.orientation import TRANSPOSITIONS

if TYPE_CHECKING:
    import torch

    ImageLike = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor

URL_SCHEMES = ("http://", "https://", "ftp://", "s3://", "gs://", "file://")
DEEP_DTYPES = ("uint16", "int16")  # of arrays that hold more than 8 bits


def is_single_image(images: Any) -> bool:
    """Whether this is one image and not several: not an iterable of images, nor a batch of four dimensions."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read"):
        return True
    dimensions = getattr(images, "ndim", None)
    return dimensions is not None and dimensions < 4


def image_file(image: Any) -> Path | bytes | None:
    """Returns the path or the content of an image file; None if the image is not a file.

    Raises:
        ImageError: it is a URL, or a file that is open as text.
    """
    if isinstance(image, str) and image.lower().startswith((*URL_SCHEMES, "data:")):
        raise ImageError(f"{image[:200]} is a URL", "download the image, and pass its path or bytes")
    if isinstance(image, str | os.PathLike):
        return Path(os.fsdecode(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not hasattr(image, "read") or isinstance(image, Image.Image):
        return None
    try:
        content = image.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a closed file, or one that is open as text and is not text
        raise ImageError(f"An open file cannot be read ({error})", 'open it with open(path, "rb")') from error
    if not isinstance(content, bytes):
        raise ImageError("A file that is open as text is not an image", 'open it with open(path, "rb")')
    return content


def from_pillow(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Converts a Pillow image as if it were read from its file: upright, RGB, by the range of the data set.

    Raises:
        ImageError: the image cannot be read, or its values are of an unknown range.
    """
    try:
        transposition = TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        image.load()
        if not image.width * image.height:
            raise ImageError("An image without pixels is not an image", "leave it out")
        rgb = to_rgb(image, value_range, name="The image")
        return rgb if transposition is None else rgb.transpose(transposition)
    except ImageError:
        raise
    except DECODING_ERRORS as error:
        raise ImageError(f"An image of mode {image.mode} cannot be read ({error})", "replace or remove it") from error


def from_array(image: Any, value_range: ValueRange | None) -> np.ndarray:
    """Converts an array or tensor to (H, W, 3) uint8.

    Arrays of one channel are converted as files of more than 8 bits if they have 16-bit integers, or if the model was trained
    on such files. Others have values in 0..255, or floats in 0..1.

    Raises:
        ImageError: it is not an image, or its values are of an unknown range.
    """
    if isinstance(image, list | tuple):
        raise ImageError("A list is not an image", "pass a flat list of images, or an array")
    array = to_channels_last(image, False, None, {1, 3, 4})
    assert isinstance(array, np.ndarray)
    if array.shape[-1] == 1 and _is_deep_array(array, value_range):
        deep = array[..., 0]
        mode_type = np.float32 if deep.dtype.kind == "f" else np.uint16 if deep.dtype == np.uint16 else np.int32
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(deep.astype(mode_type))), value_range, name="The image"))
    if array.dtype == np.uint16:
        raise ImageError("An array of 16-bit integers has several channels", "scale it to 8 bits")
    return values_to_uint8(to_channels_last(array, True, "channels_last", {1, 3, 4}))


def values_to_uint8(image: np.ndarray | Image.Image) -> np.ndarray:
    """Converts values in 0..255, or floats in 0..1, to uint8.

    Raises:
        ImageError: other values.
    """
    values = np.asarray(image)
    if values.dtype == np.uint8:
        return values
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (low >= 0 and high <= 255):
        raise ImageError(f"An image has values from {low} to {high}", "scale them to 0..255, or floats to 0..1")
    scaled = values * 255.0 if values.dtype.kind == "f" and high <= 1 else values
    return np.rint(scaled).astype(np.uint8)


def _is_deep_array(array: np.ndarray, value_range: ValueRange | None) -> bool:
    """Whether an array of one channel has more than 8 bits: by its type, or by what the model was trained on."""
    if array.dtype.kind in "bc" or array.dtype.itemsize == 1:
        return False
    mode = "F" if array.dtype.kind == "f" else "I"
    has_range = value_range is not None and value_range.bounds(mode) is not None
    return has_range or array.dtype.name in DEEP_DTYPES
