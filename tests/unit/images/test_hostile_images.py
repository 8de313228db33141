"""Files that are damaged, small on disk and large in memory, or slow to decode: an error, or bounded. Nothing else is raised.

``benchmarks/hostile_images.py`` measures memory and time of files of full size.
"""

from __future__ import annotations

import io
import random
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.errors import ImageError, ImageTooLargeError
from deit.images import cost, decoding
from deit.images.cost import MAX_BYTES, MAX_SECONDS, decoding_cost
from deit.images.decoding import EncodedImage, check_header, open_image, reduction_of
from deit.images.limits import DEFAULT_MAX_PIXELS, pixel_limit
from deit.images.processor import DeiTImageProcessor
from deit.inference.decoding import fast_pixels
from tests.helpers import pattern


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def tags(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010F] = orientation, 3.5, "maker"
    return exif


PHOTO = pattern(23, 17)
GRAY_16 = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
FLOATS = Image.fromarray(np.asarray(PHOTO.convert("L")) / np.float32(255))
SEEDS = {
    "PNG": encoded(PHOTO, "PNG", exif=tags()),
    "palette PNG": encoded(PHOTO.quantize(8), "PNG", transparency=2),
    "16-bit PNG": encoded(GRAY_16, "PNG"),
    "RGBA PNG": encoded(PHOTO.convert("RGBA"), "PNG"),
    "JPEG": encoded(PHOTO, "JPEG", exif=tags(), icc_profile=b"x" * 99, comment=b"hi"),
    "progressive JPEG": encoded(PHOTO, "JPEG", progressive=True),
    "CMYK JPEG": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "MPO": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO], exif=tags()),
    "WebP": encoded(PHOTO, "WEBP", exif=tags()),
    "lossless WebP": encoded(PHOTO.convert("RGBA"), "WEBP", lossless=True),
    "AVIF": encoded(PHOTO, "AVIF", exif=tags(), speed=10),
    "TIFF": encoded(PHOTO, "TIFF", exif=tags()),
    "LZW TIFF": encoded(PHOTO, "TIFF", compression="tiff_lzw", exif=tags()),
    "16-bit TIFF": encoded(GRAY_16, "TIFF", exif=tags()),
    "float TIFF": encoded(FLOATS, "TIFF", exif=tags()),
    "BigTIFF": encoded(PHOTO, "TIFF", big_tiff=True, exif=tags()),
    "animated GIF": encoded(PHOTO.convert("P"), "GIF", save_all=True, append_images=[PHOTO.convert("L")]),
    "BMP": encoded(PHOTO, "BMP"),
    "PPM": encoded(PHOTO, "PPM"),
    "PBM": encoded(PHOTO.convert("1"), "PPM"),
    "PFM": encoded(FLOATS, "PPM"),
}
CASES = 40  # per seed


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with a few bits flipped, and bytes replaced, removed or inserted, mostly in the header."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        position = rng.randrange(min(len(damaged), rng.choice([40, 200, len(damaged)])))
        kind = rng.random()
        if kind < 0.6:
            damaged[position] ^= 1 << rng.randrange(8)
        elif kind < 0.8:
            damaged[position] = rng.choice([0, 255, 127, 128])
        elif kind < 0.9:
            del damaged[position : position + rng.randrange(1, 5)]
        else:
            damaged[position:position] = rng.randbytes(rng.randrange(1, 5))
    return bytes(damaged)


def decode_reduced(content: bytes) -> None:
    with EncodedImage(content, "upload") as image:
        decoded = image.decode(4)
        assert decoded.mode == "RGB"
        assert reduction_of(image, decoded) in (1, 2, 4, 8)


PROCESSORS = [DeiTImageProcessor.for_size(16, 16), DeiTImageProcessor.for_size(16, 16, crop="pad")]
READERS: list[Callable[[bytes], Any]] = [
    lambda content: open_image(content, "upload"),
    lambda content: check_header(content, "upload"),
    decode_reduced,
    *(lambda content, processor=processor: fast_pixels(processor, content, "upload") for processor in PROCESSORS),
]


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_file_is_an_image_or_an_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(name)
    refused = 0
    for _ in range(CASES):
        content = mutated(SEEDS[name], rng)
        for read in READERS:
            try:
                read(content)
            except ImageError as error:
                refused += 1
                assert "upload" in str(error)
                assert "\n" not in str(error)
    assert 0 < refused < CASES * len(READERS)
    capfd.readouterr()  # what the decoders write in C


@pytest.mark.parametrize("name", ["TIFF", "LZW TIFF", "16-bit TIFF"])
def test_orientation_of_a_tiff_is_applied_once(name: str) -> None:
    """The fast reader divided by zero where the sides were exchanged twice."""
    content = encoded(pattern(90, 20), "TIFF", exif=tags(), **({"compression": "tiff_lzw"} if "LZW" in name else {}))
    with EncodedImage(content) as image:
        assert (image.width, image.height) == image.decode().size == (20, 90)
    assert fast_pixels(PROCESSORS[0], content).shape == (16, 16, 3)


def header_of(width: int, height: int, color: int = 2, depth: int = 8) -> bytes:
    """Returns a PNG without pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def ppm_header(kind: str, width: int, height: int, maximum: str) -> bytes:
    return f"{kind} {width} {height} {maximum}\n".encode()


TOO_LARGE = {
    "RGB PNG": header_of(13_500, 13_500),
    "RGBA PNG": header_of(13_000, 13_000, color=6),
    "16-bit LA PNG": header_of(13_000, 13_000, color=4, depth=16),
    "one row": header_of(10**6, 1),
    "PPM of 7 bits": ppm_header("P6", 2000, 2000, "127"),
    "gray PPM of 10 bits": ppm_header("P5", 3000, 3000, "1023"),
    "RLE BMP": b"BM" + struct.pack("<IHHI", 2000, 0, 0, 1078)
    + struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 900, 0, 0, 256, 0) + bytes(1024),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_costly_image_is_refused_by_its_header(name: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(TOO_LARGE[name])
    for source in (TOO_LARGE[name], tmp_path / "image"):
        with pytest.raises(ImageTooLargeError):
            check_header(source)
        with pytest.raises(ImageTooLargeError):
            open_image(source)


def test_tile_that_is_larger_than_the_image_is_refused() -> None:
    content = bytearray(encoded(pattern(32, 32), "TIFF", compression="tiff_adobe_deflate", tiffinfo={}))
    rows = content.index(struct.pack("<HHI", 278, 3, 1))
    width = content.index(struct.pack("<HHI", 277, 3, 1))
    assert width < rows
    content[rows : rows + 12] = struct.pack("<HHII", 322, 4, 1, 40_000)  # in place of RowsPerStrip: TileWidth
    counts = content.index(struct.pack("<HH", 279, 4))
    content[counts : counts + 12] = struct.pack("<HHII", 323, 4, 1, 40_000)
    with pytest.raises(ImageTooLargeError, match=r"GB and .* s are accepted"):
        check_header(bytes(content))


def many_scans(count: int) -> bytes:
    content = encoded(Image.new("L", (600, 600)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def test_scans_of_a_jpeg_are_counted() -> None:
    check_header(many_scans(100))
    with pytest.raises(ImageTooLargeError):
        check_header(many_scans(20_000))


def test_limit_grows_with_max_pixels() -> None:
    with pytest.raises(ImageTooLargeError) as caught:
        check_header(TOO_LARGE["RGBA PNG"])
    suggested = int(str(caught.value).rpartition("--max-pixels ")[2].rstrip("."))
    assert suggested > DEFAULT_MAX_PIXELS
    with pixel_limit(suggested):
        check_header(TOO_LARGE["RGBA PNG"])
    with pixel_limit(suggested - 10), pytest.raises(ImageTooLargeError):
        check_header(TOO_LARGE["RGBA PNG"])
    with pixel_limit(1000):  # a smaller limit is one of pixels alone
        check_header(header_of(30, 30, color=6))


def test_large_progressive_jpeg_is_decoded_at_a_reduced_size(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(pattern(640, 480), "JPEG", progressive=True, quality=95)
    full = open_image(content)
    with Image.open(io.BytesIO(content)) as image:
        costs = [decoding_cost(image, len(content), 1, reduction).memory for reduction in (1, 2)]
    monkeypatch.setattr(cost, "MAX_BYTES", sum(costs) / 2)
    reduced = open_image(content)
    assert (full.size, reduced.size) == ((640, 480), (320, 240))
    with EncodedImage(content) as image:
        assert reduction_of(image, image.decode()) == 2


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP"])
def test_large_image_of_another_format_is_reduced_after_decoding(format_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(pattern(61, 47), format_name, exif=tags())
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 2000)
    with EncodedImage(content) as image:
        decoded = image.decode(4)
        assert decoded.size == (12, 16)
        assert reduction_of(image, decoded) == 4
    assert open_image(content).size == (47, 61)


def test_default_limits_are_those_of_the_documentation() -> None:
    assert MAX_BYTES < 1.5e9
    assert MAX_SECONDS < 5


def test_long_metadata_is_refused() -> None:
    jpeg = SEEDS["JPEG"]
    segments = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527)
    for content in (
        jpeg[:2] + segments * 300 + jpeg[2:],
        jpeg[:2] + b"\xff" * 2**24 + jpeg[2:],
        b"P6 #" + b"x" * 2**24 + b"\n2 2 255\n" + bytes(12),
    ):
        with pytest.raises(ImageTooLargeError, match="16 MiB of metadata"):
            check_header(content)
    assert open_image(jpeg + bytes(2**24)).size == (17, 23)  # what follows the image is not metadata


def test_pipe_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is not a regular file"):
        open_image(tmp_path / "pipe")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_heic_without_its_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for read in (open_image, check_header):
        with pytest.raises(ImageError, match=r"upload is a HEIC image: pip install 'deit\[heic\]'"):
            read(HEIC, "upload")


def test_heic_is_read_by_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeHeif(Image.Image):
        pass

    def register() -> None:
        monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: pattern(9, 7), lambda head: head[4:8] == b"ftyp"))

    fake = types.ModuleType("pillow_heif")
    fake.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    assert open_image(HEIC).size == (9, 7)
