"""Estimates what decoding an image takes, from its header, so that costly images are refused before they are decoded.

An image is decoded, converted to RGB strip by strip (:mod:`deit.images.conversion`), turned upright if necessary, and cropped.
The most memory is in use in one of these steps. The constants are measured by ``benchmarks/hostile_images.py`` and rounded up;
they are for one core of an AMD EPYC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from deit.errors import ImageTooLargeError
from deit.images.limits import DEFAULT_MAX_PIXELS, check_pixels, max_pixels

MAX_SIDE = 65_535  # pixels; what JPEG allows
RGB_BYTES = 4  # Pillow stores RGB in 32 bits per pixel
# Two copies of an RGB image: while it is turned upright, or cropped before it is resized.
MAX_BYTES = 2 * RGB_BYTES * DEFAULT_MAX_PIXELS
MAX_SECONDS = 4.5
JPEG_REDUCTIONS = (1, 2, 4, 8)  # scaled decoding that the JPEG format offers, per side
SMALLEST_SCAN = 12  # bytes of a scan's header in a JPEG
UNCHECKED_METADATA = 2**24  # bytes; a smaller file is too small for metadata that takes long to read


@dataclass(frozen=True)
class Rate:
    """What a decoder takes beside the decoded image.

    Attributes:
        extra_bytes: memory per pixel.
        pixel_ns: time per pixel.
        file_ns: time per byte of the file.
    """

    extra_bytes: float
    pixel_ns: float
    file_ns: float


@dataclass(frozen=True)
class Cost:
    """Memory in bytes, and time in seconds."""

    memory: float
    seconds: float

    @property
    def share(self) -> float:
        """Fraction of the limit that is used, of the scarcer resource."""
        return max(self.memory / MAX_BYTES, self.seconds / MAX_SECONDS)


RATES = {
    "AVIF": Rate(18, 30, 110),
    "BMP": Rate(0, 6, 0),
    "GIF": Rate(0, 6, 12),
    "HEIF": Rate(18, 60, 110),
    "JPEG": Rate(0, 8, 10),
    "MPO": Rate(0, 8, 10),
    "PNG": Rate(0, 3, 17),
    "PPM": Rate(0, 6, 0),
    "TIFF": Rate(0, 6, 14),
    "WEBP": Rate(20, 32, 70),
}
PLAIN_PPM = Rate(3, 20, 360)  # numbers as text, which Pillow parses in Python
SCALED_PPM = Rate(8, 2700, 0)  # levels that are not 8 or 16 bits, which Pillow scales in Python
RLE_BMP = Rate(3, 220, 450)
FAX_TIFF = Rate(0, 6, 55)
PROGRESSIVE_JPEG = Rate(6, 8, 12)  # up to three coefficients of 16 bits per pixel are kept
WHOLE_FILES = ("AVIF", "HEIF", "TIFF", "WEBP")  # formats whose decoder reads the whole file at once
SCAN_NS = 1.5  # per pixel and scan of a JPEG
CONVERSION_NS = 10  # per pixel, of conversion and resize
TRANSPARENCY_NS = 20
FULL_PRECISION_NS = 28  # of 32-bit integers and floats
LAB_NS = 60
INTERLACED_NS = 12  # of a PNG


def check_cost(name: str, image: Image.Image, file_bytes: int, scans: int) -> int:
    """Checks that an opened image is small enough to be decoded.

    Args:
        name: name of the image in error messages.
        image: an image whose header has been read.
        file_bytes: size of its file.
        scans: scans of a JPEG.

    Returns:
        By how many times a JPEG must be decoded smaller per side to be within the limits: 1, 2, 4 or 8. Other formats: 1.

    Raises:
        ImageTooLargeError: the image has too many pixels, or decoding it takes too much memory or time.
    """
    width, height = image.size
    check_pixels(name, width, height)
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"{name} has {width} x {height} pixels, and a side may have {MAX_SIDE:,}", "cut it up")
    allowed = max(1.0, max_pixels() / DEFAULT_MAX_PIXELS)
    reductions = JPEG_REDUCTIONS if image.format in ("JPEG", "MPO") else (1,)
    for reduction in reductions:
        cost = decoding_cost(image, file_bytes, scans, reduction)
        if cost.share <= allowed:
            return reduction
    least = cost  # of the largest reduction
    raise ImageTooLargeError(
        f"{name}: decoding {width} x {height} pixels of mode {image.mode} from a {image.format} file takes about "
        f"{least.memory / 1e9:.1f} GB and {least.seconds:.1f} s, and at most {allowed * MAX_BYTES / 1e9:.1f} GB and "
        f"{allowed * MAX_SECONDS:.1f} s are accepted",
        f"make it smaller, or raise the limits with --max-pixels {math.ceil(least.share * DEFAULT_MAX_PIXELS)}",
    )


def decoding_cost(image: Image.Image, file_bytes: int, scans: int = 1, reduction: int = 1) -> Cost:
    """Estimates what it takes to decode an image, convert it to RGB, turn it upright and resize it.

    Args:
        image: an image whose header has been read.
        file_bytes: size of its file.
        scans: scans of a JPEG.
        reduction: by how many times a JPEG is decoded smaller per side.
    """
    pixels = image.width * image.height
    decoded, rate = pixels / reduction**2, _rate(image)
    stored = pixel_bytes(image.mode)
    decoding = pixels * rate.extra_bytes + decoded * stored
    nanoseconds = pixels * rate.pixel_ns + file_bytes * rate.file_ns
    nanoseconds += decoded * _conversion_ns(image)
    if image.format in ("JPEG", "MPO"):
        nanoseconds += scans * pixels * SCAN_NS
    if image.format == "PNG":
        nanoseconds += pixels * (3 * stored_bytes(image) + (INTERLACED_NS if image.info.get("interlace") else 0))
    if image.format == "TIFF":
        tile_bytes, area = _tiff_tiles(image)
        decoding += tile_bytes
        nanoseconds += max(area, pixels) * 2 * stored_bytes(image)
    if image.format in WHOLE_FILES:
        decoding += file_bytes
    converting = decoded * max(stored + RGB_BYTES, 2 * RGB_BYTES)
    return Cost(max(decoding, converting), nanoseconds * 1e-9)


def pixel_bytes(mode: str) -> int:
    """Returns the bytes that Pillow stores per pixel of a mode."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def stored_bytes(image: Image.Image) -> float:
    """Returns the bytes per pixel that an image has in its file before compression."""
    if image.format == "TIFF":
        bits = _tag(image, 258, (1,))
        samples = _tag(image, 277, 1)
        bits = bits if isinstance(bits, tuple) else (bits,)
        total = sum(bits) if len(bits) > 1 else bits[0] * (samples if isinstance(samples, int) else 1)
        return max(float(total) / 8, 1.0)
    depth = 2 if is_16_bit(image) else 1
    return depth * len(image.getbands()) if image.mode in ("RGB", "RGBA", "LA", "L", "P", "1") else pixel_bytes(image.mode)


def is_16_bit(image: Image.Image) -> bool:
    """Whether the file of an opened image, not yet decoded, has 16 bits per channel."""
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def count_scans(content: bytes) -> int:
    """Returns the number of scans of a JPEG, each of which takes a pass over the image."""
    return max(content.count(b"\xff\xda"), 1)


def may_have_slow_scans(file_bytes: int, pixels: int) -> bool:
    """Whether a JPEG of this size could have so many scans that it takes long."""
    return file_bytes / SMALLEST_SCAN * pixels * SCAN_NS > 1e9


def _rate(image: Image.Image) -> Rate:
    tile = next(iter(getattr(image, "tile", ())), None)
    codec = getattr(tile, "codec_name", "")
    if codec == "ppm_plain":
        return PLAIN_PPM
    if codec == "ppm":
        return SCALED_PPM
    if codec == "bmp_rle":
        return RLE_BMP
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        return PROGRESSIVE_JPEG
    if image.format == "TIFF":
        compression = str(image.info.get("compression"))
        if compression.startswith(("group", "tiff_ccitt")):
            return FAX_TIFF
        if compression in ("webp", "jpeg", "tiff_jpeg"):
            return RATES["WEBP" if compression == "webp" else "JPEG"]
    return RATES.get(image.format or "", RATES["AVIF"])


def _conversion_ns(image: Image.Image) -> int:
    if image.has_transparency_data:
        return TRANSPARENCY_NS
    if image.mode == "LAB":
        return LAB_NS
    return FULL_PRECISION_NS if image.mode in ("F", "I") else CONVERSION_NS


def _tiff_tiles(image: Image.Image) -> tuple[float, float]:
    """Returns the bytes of a decoded tile or strip of a TIFF, and the pixels of all tiles, which may exceed the image."""
    width, height = image.size
    tile_width, tile_height = _tag(image, 322, 0), _tag(image, 323, 0)
    if isinstance(tile_width, int) and isinstance(tile_height, int) and tile_width > 0 and tile_height > 0:
        tiles = math.ceil(width / tile_width) * math.ceil(height / tile_height)
        return tile_width * tile_height * stored_bytes(image), float(tiles * tile_width * tile_height)
    if image.info.get("compression") == "raw":
        return 0.0, float(width * height)
    rows = _tag(image, 278, height)
    return width * min(rows if isinstance(rows, int) else height, height) * stored_bytes(image), float(width * height)


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)
