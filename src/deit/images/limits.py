"""Limits on the size of images, so that a small file cannot take all memory or time.

The number of pixels alone says little: decoding takes between 5 and 28 bytes per pixel, depending on the format and on what the
file stores. The limits are therefore three: pixels, bytes while decoding, and time while decoding. The bytes and the time are
estimated from the header, before anything is decoded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from deit.errors import ImageTooLargeError, UserError

MAX_PIXELS_VARIABLE = "DEIT_MAX_PIXELS"
DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own limit: 512 MiB of RGB


def max_pixels() -> int:
    """Returns the largest number of pixels of an image that is decoded: ``$DEIT_MAX_PIXELS``, or 178,956,970.

    It is read from the environment, which worker processes inherit however they are started.

    Raises:
        UserError: the variable is not a positive number.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if not text:
        return DEFAULT_MAX_PIXELS
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and int(text) > 0):
        raise UserError(f"{MAX_PIXELS_VARIABLE} is {text!r}", "set it to a number of pixels, such as 400000000")
    return int(text)


def set_max_pixels(pixels: int | None) -> None:
    """Sets the largest number of pixels of an image, for this process and the processes that it starts.

    Args:
        pixels: the limit; None keeps the present one.
    """
    if pixels is not None:
        os.environ[MAX_PIXELS_VARIABLE] = str(pixels)


@contextlib.contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Sets the largest number of pixels within a ``with`` block."""
    before = os.environ.get(MAX_PIXELS_VARIABLE)
    set_max_pixels(pixels)
    try:
        yield
    finally:
        if before is None:
            del os.environ[MAX_PIXELS_VARIABLE]
        else:
            os.environ[MAX_PIXELS_VARIABLE] = before


def check_pixels(name: str, width: int, height: int) -> None:
    """Checks the number of pixels of an image.

    Raises:
        ImageTooLargeError: there are more than :func:`max_pixels`.
    """
    limit = max_pixels()
    if width * height > limit:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} pixels, and at most {limit:,} are accepted",
            f"make it smaller, or raise the limit with --max-pixels {width * height}",
        )
