"""What the bytes of an image file tell beyond Pillow: HEIC, TIFF files that Pillow does not read, and excessive metadata."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from deit.errors import ImageError
from deit.images.cost import UNCHECKED_METADATA
from deit.images.sniffing import heic_remedy

MAX_SEGMENTS = 2048  # of a JPEG, before its pixels
MAX_FILL = 2**12  # bytes between two segments
MAX_PPM_HEADER = 2**16
JPEG_STARTS_WITH, SCAN = b"\xff\xd8", 0xDA
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 258, 277, 339


def register_heif(name: str) -> None:
    """Makes Pillow read HEIC, by the optional library pillow-heif.

    Raises:
        ImageError: the library is not installed.
    """
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(f"{name} is a HEIC image", f"{heic_remedy()}, or convert it to JPEG") from error
    pillow_heif.register_heif_opener()


def unsupported_tiff(source: Path | bytes) -> str:
    """Describes a TIFF that Pillow does not read, such as "is a TIFF of 6 bands of 16 bits"; empty if it is damaged."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        try:
            head = file.read(8)
            directory = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if head[2:4] in (b"+\0", b"\0+") else b""))
            file.seek(directory.next)
            directory.load(file)
            bits, samples = directory.get(BITS_PER_SAMPLE, (1,)), directory.get(SAMPLES_PER_PIXEL, 1)
            kind = directory.get(SAMPLE_FORMAT, (1,))
            depth = max(bits) if isinstance(bits, tuple) else bits
            is_float = (kind[0] if isinstance(kind, tuple) else kind) == 3
            bands = f"{samples} bands" if samples != 1 else "one band"
            return f"is a TIFF of {bands} of {depth}-bit {'floats' if is_float else 'integers'}, which is not supported"
        except (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
            return ""


def metadata_is_long(file: BinaryIO) -> bool:
    """Whether the metadata before the pixels of a JPEG or PPM takes Pillow long to read.

    Pillow joins the segments of a JPEG's EXIF data one by one, and skips junk between segments and comments byte by byte.
    """
    start = file.read(2)
    if start == JPEG_STARTS_WITH:
        return _jpeg_metadata_is_long(file)
    if start[:1] == b"P" and start[1:].isalnum():
        header = re.sub(rb"#[^\r\n]*[\r\n]", b" ", file.read(MAX_PPM_HEADER))
        return len(header.split(None, 3)) < 3
    return False


def _jpeg_metadata_is_long(file: BinaryIO) -> bool:
    """Reads the lengths of the segments up to the first scan. The file is positioned after the first marker."""
    for _ in range(MAX_SEGMENTS):
        marker = file.read(2)
        fill = 0
        while marker == b"\xff\xff" and fill < MAX_FILL:
            marker, fill = marker[1:] + file.read(1), fill + 1
        if len(marker) < 2 or marker[1] == SCAN:
            return file.tell() > UNCHECKED_METADATA
        if marker[0] != 0xFF or fill == MAX_FILL:  # junk
            return True
        if marker[1] in (0x01, *range(0xD0, 0xD9)):  # markers without a length
            continue
        length = file.read(2)
        if len(length) < 2:
            return False
        file.seek(max(struct.unpack(">H", length)[0] - 2, 0), io.SEEK_CUR)
    return True
