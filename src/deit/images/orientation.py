"""Finds how an image must be turned to be upright, from its metadata and without decoding it."""

from __future__ import annotations

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

# EXIF orientation -> what turns the image upright.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDE_SWAPS = [TRANSPOSITIONS[orientation] for orientation in range(5, 9)]
# Entries of a PNG in which Pillow looks for an orientation, and how its file names them.
PNG_ENTRIES = {
    "exif": b"eXIf",
    "Raw profile type exif": b"Raw profile type exif",
    "XML:com.adobe.xmp": b"XML:com.adobe.xmp",
}


def find_transposition(image: Image.Image) -> Image.Transpose | None:
    """Returns what turns an opened image upright after it is decoded; None if nothing does.

    Pillow turns TIFF files upright itself. To find an orientation behind the pixels of a PNG, it decodes them.
    """
    if image.format == "TIFF" or (isinstance(image, PngImageFile) and not _may_be_turned(image)):
        return None
    return TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _may_be_turned(image: PngImageFile) -> bool:
    """Whether a PNG has entries that may hold an orientation, before or behind its pixels."""
    if any(name in image.info for name in PNG_ENTRIES):
        return True
    assert image.fp is not None
    position = image.fp.tell()
    rest = image.fp.read()
    image.fp.seek(position)
    return any(name in rest for name in PNG_ENTRIES.values())
