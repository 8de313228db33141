"""Decodes image files to upright RGB images of 8 bits per channel. The only module that decodes images."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deit.errors import ImageError, ImageTooLargeError
from deit.images.limits import check_pixels

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})  # in data folders
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes MPO, which phones write
MAX_FILE_BYTES = 512 * 2**20
RETAINED_BLOCKS = 4
TRANSPOSED_ORIENTATIONS = range(5, 9)  # EXIF orientations that swap height and width
JPEG_REDUCTIONS = (8, 4, 2)  # scaled decoding that the JPEG format offers, per side
OVERSAMPLING = 1.5  # a JPEG decoded at a reduced size keeps this many times the pixels per side that are needed
# Errors of Pillow's readers on damaged files.
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
)


class Decodable(Protocol):
    """An image whose size is known.

    Attributes:
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.
    """

    height: int
    width: int

    def decode(self, reduction: int = 1) -> Image.Image:
        """Returns the image, upright and RGB.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG may be decoded this many times smaller per side. Other formats ignore it.
        """


class EncodedImage(AbstractContextManager["EncodedImage"]):
    """An image file whose header has been read, so that its size is known before it is decoded.

    Grayscale, palette, CMYK, 16-bit and floating-point images are converted; transparency is composited onto white; the EXIF
    orientation is applied; the first frame of an animation is used.

    Args:
        source: path or content of the file.
        name: name of the image in error messages; the path by default.

    Attributes:
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.

    Raises:
        ImageError: the file is missing, too large, or not an image.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (640, 480)).save(file, "JPEG")
        >>> with EncodedImage(file.getvalue()) as image:
        ...     image.height, image.width, image.decode(reduction=4).size
        (480, 640, (160, 120))
    """

    def __init__(self, source: Path | bytes, name: str = "") -> None:
        self._name = name or (str(source) if isinstance(source, Path) else "the image")
        with _as_image_error(self._name), ExitStack() as stack:
            self._image = stack.enter_context(_open(source, self._name))
            self.width, self.height = self._image.size
            if self._image.getexif().get(ExifTags.Base.Orientation) in TRANSPOSED_ORIENTATIONS:
                self.width, self.height = self.height, self.width
            stack.pop_all()  # the image stays open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._image.close()

    def decode(self, reduction: int = 1) -> Image.Image:
        """Decodes the image. May be called once.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG is decoded this many times smaller per side, which its format supports and which
                saves time. Other formats are decoded at full size.

        Returns:
            An upright image of mode RGB.

        Raises:
            ImageError: the image is truncated or damaged.
        """
        with _as_image_error(self._name):
            if reduction > 1 and self._image.format == "JPEG":
                self._image.draft(None, (self._image.width // reduction, self._image.height // reduction))
            return to_rgb(ImageOps.exif_transpose(self._image))


class DecodedImage:
    """An image that is already decoded, for code that takes any :class:`Decodable`.

    Args:
        image: an upright image of mode RGB.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = image.size

    def decode(self, reduction: int = 1) -> Image.Image:  # noqa: ARG002
        """Returns the image at full size."""
        return self._image


def open_image(source: Path | bytes, name: str = "") -> Image.Image:
    """Decodes an image file at full size; see :class:`EncodedImage`.

    Returns:
        An upright image of mode RGB.

    Raises:
        ImageError: the file is missing, not an image, truncated, or larger than :func:`max_pixels`; the message
            names it.
    """
    with EncodedImage(source, name) as image:
        return image.decode()


def check_header(source: Path | bytes, name: str = "") -> None:
    """Checks that a file starts like an image of an allowed size. Reads a few hundred bytes.

    Raises:
        ImageError: it does not. Damage after the header is not detected.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    with _as_image_error(name), _open(source, name):
        pass


def largest_reduction(scale: float) -> int:
    """Returns the largest JPEG reduction, 1, 2, 4 or 8, that keeps 1.5 times the pixels per side that are needed.

    Args:
        scale: pixels of the image per pixel that is needed, the smaller of both sides.
    """
    return next((reduction for reduction in JPEG_REDUCTIONS if reduction * OVERSAMPLING <= scale), 1)


def configure_pillow() -> None:
    """Sets Pillow's global options for programs that decode many images: the command line and worker processes.

    Pillow returns the memory of every image to the system, and allocating it again takes as long as decoding: it is told to
    retain a few blocks of at most 16 MiB. Its warnings on odd metadata and large images are silenced, since limits are checked
    here. The filter is set once, because filters that come and go (``warnings.catch_warnings``) are not thread-safe.
    """
    Image.MAX_IMAGE_PIXELS = None  # deit.images.limits decides instead
    Image.core.set_blocks_max(RETAINED_BLOCKS)  # type: ignore[attr-defined]  # documented, but not exported
    warnings.filterwarnings("ignore", module=r"PIL\.")


def is_image_name(path: Path) -> bool:
    """Whether a file has the suffix of an image. Hidden files are not images."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow image to mode RGB, with transparency composited onto white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _open(source: Path | bytes, name: str) -> Image.Image:
    """Opens a file and checks its size, without decoding it."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB", "make it smaller")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    try:
        check_pixels(name, *image.size)
    except ImageTooLargeError:
        image.close()
        raise
    return image


def _to_eight_bits(array: np.ndarray) -> np.ndarray:
    """Converts (H, W) 16-bit integers, or 32-bit values with a 16-bit or 8-bit range, to uint8."""
    values = np.nan_to_num(array.astype(np.float64))
    if array.dtype.kind != "f" and (array.dtype.itemsize == 2 or values.max(initial=0) > 255):
        values /= 257.0  # 65535 -> 255
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    """Turns Pillow's errors into an ImageError that names the image."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist", "check the path") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image of a supported format", f"supported are {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{name} has more pixels than Pillow decodes", "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except DECODING_ERRORS as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ImageError(f"{name} cannot be read as an image ({reason})", "replace or remove it") from error
