"""Decodes image files to upright RGB images of 8 bits per channel. The only module that decodes images."""

from __future__ import annotations

import io
import logging
import math
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from PIL import Image, UnidentifiedImageError

from deit.errors import DeiTError, ImageError, ImageTooLargeError
from deit.images.conversion import MIN_16_BIT_MAXIMUM, ValueRange, finite_extrema, is_deep, to_rgb
from deit.images.cost import UNCHECKED_METADATA, check_cost, count_scans, is_16_bit, may_have_slow_scans
from deit.images.metadata import metadata_is_long, register_heif, unsupported_tiff
from deit.images.orientation import SIDE_SWAPS, find_transposition
from deit.images.sniffing import HEAD_BYTES, FileKind, kind_of_content

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes MPO, which phones write
MAX_FILE_BYTES = 512 * 2**20
RETAINED_BLOCKS = 4
LARGE_PIXELS = 2**25  # of an image that is reduced after decoding, if its format does not offer reduced decoding
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_REDUCTIONS = (8, 4, 2)  # scaled decoding that the JPEG format offers, per side
OVERSAMPLING = 1.5  # a JPEG decoded at a reduced size keeps this many times the pixels per side that are needed
# Errors of Pillow's readers on damaged files.
DECODING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class ImageHeader(NamedTuple):
    """Pillow's mode of an image, and the size of the upright image in pixels."""

    mode: str
    width: int
    height: int


class Decodable(Protocol):
    """An image whose size is known.

    Attributes:
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.
        reductions: by how many times per side the file can be decoded smaller, in increasing order: (1, 2, 4, 8), or (1,).
    """

    height: int
    width: int
    reductions: tuple[int, ...]

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
        value_range: black and white of images with more than 8 bits, see :func:`deit.images.conversion.to_rgb`.

    Attributes:
        height: of the upright image, in pixels.
        width: of the upright image, in pixels.
        reductions: by how many times per side the file can be decoded smaller; a JPEG of extreme size not at full size.

    Raises:
        ImageError: the file is missing, too large, or not an image.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (640, 480)).save(file, "JPEG")
        >>> with EncodedImage(file.getvalue()) as image:
        ...     image.height, image.width, image.decode(reduction=4).size
        (480, 640, (160, 120))
    """

    def __init__(self, source: Path | bytes, name: str = "", value_range: ValueRange | None = None) -> None:
        self._name, self._value_range = _source_name(source, name), value_range
        with _as_image_error(self._name), ExitStack() as stack:
            image, self._least_reduction = _open(source, self._name)
            stack.enter_context(image)
            self._image: Image.Image | None = image
            self._mode, self._size, self._is_16_bit = image.mode, image.size, is_16_bit(image)
            self._stored_bits = _stored_bits(image)
            offered = (1, *JPEG_REDUCTIONS[::-1]) if image.format in ("JPEG", "MPO") else (1,)
            self.reductions = tuple(reduction for reduction in offered if reduction >= self._least_reduction)
            self._transposition = find_transposition(image)
            self.width, self.height = self._size[::-1] if self._transposition in SIDE_SWAPS else self._size
            stack.pop_all()  # the image stays open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._image is not None:
            self._image.close()

    def decode(self, reduction: int = 1) -> Image.Image:
        """Decodes the image. May be called once.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG is decoded this many times smaller per side, which its format supports and which
                saves time, and so are other images of more than ``LARGE_PIXELS``. A JPEG that is too large to be decoded at
                full size is reduced in any case. See :func:`reduction_of`.

        Returns:
            An upright image of mode RGB.

        Raises:
            ImageError: the image is truncated or damaged, or its values are of an unknown range.
        """
        with _as_image_error(self._name):
            stored = self._load(max(reduction, self._least_reduction))
            image = to_rgb(stored, self._value_range, self._stored_bits, self._name)
            if stored is not image:
                stored.close()  # frees its memory before more copies are made
            if reduction > 1 and image.size == self._size and math.prod(self._size) > LARGE_PIXELS:
                image = image.reduce(reduction)
            return image if self._transposition is None else image.transpose(self._transposition)

    def extrema(self) -> tuple[float, float]:
        """Decodes an image with more than 8 bits, and returns its lowest and highest value. May be called once.

        Raises:
            ImageError: the image is truncated or damaged.
        """
        with _as_image_error(self._name):
            return finite_extrema(self._load(1))

    def _load(self, reduction: int) -> Image.Image:
        """Decodes the image as it is stored, and frees the decoder, which may hold several copies of it."""
        image = self._image
        assert image is not None, "an image is decoded once"
        if reduction > 1 and image.format in ("JPEG", "MPO"):
            image.draft(None, (max(image.width // reduction, 1), max(image.height // reduction, 1)))
        expected = image.size
        image.load()
        if image.size != expected or image.mode != self._mode:
            raise ImageError(f"{self._name} is damaged: its header and its pixels differ in size", "replace or remove it")
        if self._is_16_bit and not is_deep(image.mode):
            _check_16_bit_color(image, self._name)
        self._image, decoded = None, image._new(image.im)
        image.close()
        return decoded


class DecodedImage:
    """An image that is already decoded, for code that takes any :class:`Decodable`.

    Args:
        image: an upright image of mode RGB.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = image.size
        self.reductions: tuple[int, ...] = (1,)

    def decode(self, reduction: int = 1) -> Image.Image:  # noqa: ARG002
        """Returns the image at full size."""
        return self._image


def open_image(source: Path | bytes, name: str = "", value_range: ValueRange | None = None) -> Image.Image:
    """Decodes an image file at full size; see :class:`EncodedImage`.

    A JPEG that is too large for that, by the limits of :mod:`deit.images.cost`, is decoded at a reduced size.

    Returns:
        An upright image of mode RGB.

    Raises:
        ImageError: the file is missing, not an image, truncated, or too large; the message names it.
    """
    with EncodedImage(source, name, value_range) as image:
        return image.decode()


def check_header(source: Path | bytes, name: str = "") -> None:
    """Checks that a file starts like an image of an allowed size.

    Raises:
        ImageError: it does not. Damage after the header is not detected.
    """
    read_header(source, name)


def read_header(source: Path | bytes, name: str = "") -> ImageHeader:
    """Returns what the header of an image file tells.

    Raises:
        ImageError: as :func:`check_header`.
    """
    name = _source_name(source, name)
    with _as_image_error(name):
        image, _ = _open(source, name)
        with image:
            mode, size = image.mode, image.size
            width, height = size[::-1] if find_transposition(image) in SIDE_SWAPS else size
            return ImageHeader(mode, width, height)


def has_more_frames(source: Path | bytes, name: str = "") -> bool:
    """Whether an image is an animation or has several pages, of which only the first is used. Reads no pixels.

    Raises:
        ImageError: the file is not an image, or too large.
    """
    name = _source_name(source, name)
    with _as_image_error(name):
        image, _ = _open(source, name)
        with image:
            return image.format != "MPO" and bool(getattr(image, "is_animated", False))  # MPO: a photo and its preview


def reduction_of(encoded: Decodable, image: Image.Image) -> int:
    """Returns by how many times per side an image was decoded smaller: 1, 2, 4 or 8."""
    full = encoded.width, encoded.height
    return next((factor for factor in (1, *JPEG_REDUCTIONS[::-1]) if _divided(full, factor) == image.size), 1)


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
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # errors are raised here; Pillow logs some of them, too
    Image.MAX_IMAGE_PIXELS = None  # deit.images.limits decides instead
    Image.core.set_blocks_max(RETAINED_BLOCKS)  # type: ignore[attr-defined]  # documented, but not exported
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _source_name(source: Path | bytes, name: str) -> str:
    return name or (str(source) if isinstance(source, Path) else "the file")


def _open(source: Path | bytes, name: str) -> tuple[Image.Image, int]:
    """Opens a file and checks what decoding it takes, without decoding it.

    Returns:
        The image, and by how many times a JPEG must be decoded smaller.
    """
    file_bytes = _file_bytes(source, name)
    if file_bytes > UNCHECKED_METADATA:
        _check_metadata(source, name)
    image = _identify(source, name)
    try:
        pixels = math.prod(image.size)
        if not pixels:
            raise ImageError(f"{name} has {image.width} x {image.height} pixels", "replace or remove it")
        scans = 1
        if image.format in ("JPEG", "MPO") and may_have_slow_scans(file_bytes, pixels):
            scans = count_scans(source if isinstance(source, bytes) else source.read_bytes())
        return image, check_cost(name, image, file_bytes, scans)
    except BaseException:
        image.close()
        raise


def _file_bytes(source: Path | bytes, name: str) -> int:
    """Returns the size of a file, which must be within the limit."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = source.stat()
        size = status.st_size
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # reading a pipe may never return
            raise ImageError(f"{name} is not a regular file", "save the image, or pipe it into `deit predict MODEL -`")
    if size > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB", "make it smaller")
    return size


def _identify(source: Path | bytes, name: str) -> Image.Image:
    """Opens a file with the decoder of its format, which is told by its content."""
    try:
        return Image.open(_file(source), formats=FORMATS)
    except UnidentifiedImageError:
        head = source[:HEAD_BYTES] if isinstance(source, bytes) else _read_head(source)
        if kind_of_content(head) is FileKind.HEIC:
            register_heif(name)
            return Image.open(_file(source), formats=("HEIF",))
        problem = unsupported_tiff(source) if head[:4] in TIFF_SIGNATURES else ""
        if problem:
            raise ImageError(f"{name} {problem}", "convert it to RGB or grayscale") from None
        raise


def _file(source: Path | bytes) -> io.BytesIO | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _check_metadata(source: Path | bytes, name: str) -> None:
    """Refuses large files whose metadata would take Pillow long to read."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if metadata_is_long(file):
            raise ImageTooLargeError(f"{name} has more than {UNCHECKED_METADATA >> 20} MiB of metadata", "remove the metadata")


def _stored_bits(image: Image.Image) -> int:
    """Returns the bits per value of a grayscale image of more than 8 bits, if its header tells them; otherwise 0."""
    tile = next(iter(getattr(image, "tile", ())), None)
    if image.format == "TIFF" and "I;12" in str(getattr(tile, "args", "")):
        return 12
    return 16 if image.format == "PPM" and tile is not None and tile.codec_name.startswith("ppm") else 0  # Pillow scales


def _check_16_bit_color(image: Image.Image, name: str) -> None:
    """Checks that 16-bit color, of which Pillow keeps the upper 8 bits, uses the upper bits."""
    extrema = image.getextrema()
    colors = extrema[:-1] if "A" in image.getbands() else extrema
    highest = max(int(high) for _, high in colors)  # type: ignore[misc]
    if highest < MIN_16_BIT_MAXIMUM >> 8:
        raise ImageError(
            f"{name} has 16 bits per channel, but no value above {(highest << 8) + 255:,} of 65,535", "convert it to 8 bits"
        )


def _divided(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Returns the size of an image that was decoded ``factor`` times smaller per side."""
    return -(-size[0] // factor), -(-size[1] // factor)


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    """Turns Pillow's errors into an ImageError that names the image."""
    try:
        yield
    except DeiTError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist", "check the path") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image of a supported format", f"supported are {', '.join(FORMATS)} and, with deit[heic], HEIC"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{name} has more pixels than Pillow decodes", "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except DECODING_ERRORS as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ImageError(f"{name} cannot be read as an image ({reason})", "replace or remove it") from error
