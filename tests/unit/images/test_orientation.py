"""Finding the orientation of an image without decoding it."""

from __future__ import annotations

import io

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from deit.images.decoding import EncodedImage, read_header
from deit.images.orientation import find_transposition
from tests.helpers import pattern

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
RAW_EXIF = "Raw profile type exif"


def exif() -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    return tags.tobytes()


def png(**options: object) -> bytes:
    file = io.BytesIO()
    pattern(9, 5).save(file, "PNG", **options)
    return file.getvalue()


def text(name: str, value: str) -> PngInfo:
    info = PngInfo()
    info.add_itxt(name, value)
    return info


def chunks_behind(content: bytes) -> bytes:
    """Returns a PNG with the chunks between its header and its pixels moved behind the pixels."""
    chunks: list[bytes] = []
    position = 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big") + 12
        chunks.append(content[position : position + length])
        position += length
    order = {b"IHDR": 0, b"IDAT": 1, b"IEND": 3}
    ordered = sorted(chunks, key=lambda chunk: order.get(chunk[4:8], 2))
    return content[:8] + b"".join(ordered)


PNGS = {
    "EXIF": png(exif=exif()),
    "XMP": png(pnginfo=text("XML:com.adobe.xmp", XMP)),
    "compressed text": png(pnginfo=text(RAW_EXIF, f"\nexif\n{len(exif())}\n{exif().hex()}")),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("name", PNGS)
def test_png_is_turned(name: str, behind: bool) -> None:
    content = chunks_behind(PNGS[name]) if behind else PNGS[name]
    assert read_header(content)[1:] == (5, 9)
    with EncodedImage(content) as image:
        assert (image.width, image.height) == (5, 9)
        assert image.decode().size == (5, 9)


def test_other_png_is_not_decoded() -> None:
    content = bytearray(png())
    start = content.index(b"IDAT") + 8
    content[start : start + 4] = bytes(4)  # damaged pixels
    with Image.open(io.BytesIO(content)) as image:
        assert find_transposition(image) is None
    assert read_header(bytes(content)) == ("RGB", 9, 5)
