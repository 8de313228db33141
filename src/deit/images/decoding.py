"""Bytes from outside -> an upright RGB image of 8 bits a channel. The one place where image files are decoded."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deit.errors import ImageError

# What the package reads; a name with another ending in a data folder is not an image to it.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# JPEG stands for MPO too, the format of phones' photos with depth.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # Pillow's own bound: 512 MiB of RGB
MAX_FILE_BYTES = 512 * 2**20
KEPT_BLOCKS = 4
SIDEWAYS = range(5, 9)  # values of the EXIF orientation
# Pillow's readers let through whatever goes wrong while they take a damaged file apart.
DECODING_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)

# Height and width of the upright image -> how many times smaller it may be decoded: 1, 2, 4 or 8.
Reduction = Callable[[int, int], int]

# Pillow gives the memory of each image back to the system, and getting it again takes as long as decoding. This is its own
# setting for keeping some: blocks of 16 MiB at most.
Image.core.set_blocks_max(KEPT_BLOCKS)  # type: ignore[attr-defined]  # documented, but not exported

# Pillow warns of odd metadata and from half its bound on; ours is the bound above. Once and for good, since filters that
# come and go (warnings.catch_warnings) would disturb each other between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image_name(path: Path) -> bool:
    """Whether the file's ending is one that the package reads. Hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def open_image(source: Path | bytes, name: str = "", reduction: Reduction | None = None) -> Image.Image:
    """Decode one image.

    Handles gray, palette, CMYK, 16-bit and floating-point images; lays transparent ones on white; turns by the EXIF
    orientation; takes the first frame of an animation.

    Args:
        source: a file's path, or its bytes.
        name: what to call the image in an error; the path by default.
        reduction: is asked once the size is known. A JPEG file is then decoded as many times smaller, which is a choice of
            its format and saves time; an image of another format is not.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: missing, not an image, cut off, or larger than ``MAX_PIXELS``; the message names the file.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        with _opened(source, name) as image:
            if reduction is not None:
                _reduce(image, reduction)
            return to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except DECODING_ERRORS as error:
        raise _unreadable(name, error) from error


def check_header(source: Path | bytes, name: str = "") -> None:
    """Whether a file begins as an image of an allowed size does; a few hundred bytes are read.

    Args:
        source: as for :func:`open_image`; likewise ``name``.

    Raises:
        ImageError: as :func:`open_image`, but what comes after the header is not looked at.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        with _opened(source, name):
            pass
    except ImageError:
        raise
    except DECODING_ERRORS as error:
        raise _unreadable(name, error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image -> mode RGB, 8 bits, without its transparency (laid on white)."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _opened(source: Path | bytes, name: str) -> Image.Image:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB", "make it smaller")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{name} has {image.width} x {image.height} pixels", f"at most {MAX_PIXELS:,} are read")
    return image


def _reduce(image: Image.Image, reduction: Reduction) -> None:
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
        width, height = height, width
    factor = reduction(height, width)
    if factor > 1 and image.format == "JPEG":
        image.draft(None, (image.width // factor, image.height // factor))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """(H, W) of 16-bit integers, or of 32-bit values with a 16-bit or 8-bit range -> uint8."""
    values = np.nan_to_num(array.astype(np.float64))
    if array.dtype.kind != "f" and (array.dtype.itemsize == 2 or values.max(initial=0) > 255):
        values /= 257.0  # 65535 -> 255
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _unreadable(name: str, error: BaseException) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{name} does not exist", "check the path")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{name} is not an image of a known format", f"known are {', '.join(FORMATS)}")
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return ImageError(f"{name} cannot be read as an image ({reason})", "replace or remove it")
