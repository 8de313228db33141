"""Decoding of image files: pixels by format, color mode, bit depth and orientation; limits; and errors."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deit.errors import ImageError, ImageTooLargeError
from deit.images import decoding
from deit.images.conversion import to_rgb
from deit.images.decoding import (
    DecodedImage,
    EncodedImage,
    check_header,
    largest_reduction,
    open_image,
)
from tests.helpers import pattern

ORIENTATION = 0x0112


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = open_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def first_pixel(content: bytes) -> tuple[int, ...]:
    return tuple(pixels(content)[0, 0].tolist())


@pytest.mark.parametrize(
    ("format_name", "options"), [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_are_exact(format_name: str, options: dict[str, object]) -> None:
    image = pattern(37, 23)
    assert np.array_equal(pixels(encoded(image, format_name, **options)), np.asarray(image))


def test_jpeg_is_nearly_exact() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    difference = pixels(encoded(image, "JPEG", quality=95)).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).max() <= 6


def decode(content: bytes, reduction: int) -> Image.Image:
    with EncodedImage(content) as image:
        return image.decode(reduction)


def height_and_width(content: bytes) -> tuple[int, int]:
    with EncodedImage(content) as image:
        return image.height, image.width


@pytest.mark.parametrize(("reduction", "expected"), [(1, (203, 154)), (2, (102, 77)), (4, (51, 39)), (8, (26, 20))])
def test_jpeg_is_decoded_at_a_reduced_size(reduction: int, expected: tuple[int, int]) -> None:
    content = encoded(pattern(203, 154), "JPEG", quality=95)
    image = decode(content, reduction)
    assert (image.mode, image.size) == ("RGB", expected)
    assert height_and_width(content) == (154, 203)
    full = open_image(content)
    if reduction == 1:
        assert image == full
    else:
        blocks = np.asarray(full, float)[: 154 // reduction * reduction, : 203 // reduction * reduction]
        blocks = blocks.reshape(154 // reduction, reduction, 203 // reduction, reduction, 3).mean((1, 3))
        difference = np.asarray(image, float)[: len(blocks), : blocks.shape[1]] - blocks
        assert np.abs(difference[:, :, :2]).mean() < 2.5  # the smooth channels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_jpeg_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(pattern(160, 96), "JPEG", quality=95, exif=exif)
    full = open_image(content)
    image = decode(content, 4)
    assert height_and_width(content) == (full.height, full.width)
    assert image.size == (full.width // 4, full.height // 4)
    expected = np.asarray(full.resize(image.size, Image.Resampling.BOX), float)
    assert np.abs(np.asarray(image, float) - expected)[:, :, :2].mean() < 2.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_jpeg_of_other_color_modes(mode: str) -> None:
    content = encoded(pattern(64, 48).convert(mode), "JPEG", quality=95)
    image = decode(content, 2)
    assert (image.mode, image.size) == ("RGB", (32, 24))


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_decoded_at_full_size(format_name: str) -> None:
    content = encoded(pattern(64, 48), format_name)
    assert decode(content, 4) == open_image(content)
    assert height_and_width(content) == (48, 64)


def test_truncated_jpeg_is_an_error_at_a_reduced_size() -> None:
    content = encoded(pattern(640, 480), "JPEG")
    with pytest.raises(ImageError, match="cannot be read"):
        decode(content[: len(content) // 2], 2)


def test_grayscale() -> None:
    assert first_pixel(encoded(Image.new("L", (3, 2), 77), "PNG")) == (77, 77, 77)
    assert first_pixel(encoded(Image.new("1", (3, 2), 1), "PNG")) == (255, 255, 255)


def test_palette() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 1, 2, 3])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG")).tolist() == [[[200, 10, 20], [1, 2, 3]]]


def test_transparent_palette_entry_is_composited_onto_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 1, 2, 3])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG", transparency=1)).tolist() == [[[200, 10, 20], [255, 255, 255]]]
    assert pixels(encoded(image, "GIF", transparency=1)).tolist() == [[[200, 10, 20], [255, 255, 255]]]


def test_half_transparent_palette_entry_is_blended_with_white() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([100, 0, 200])
    # 100 + (255 - 100) * 0.5, and so on, for an alpha of 128 / 255
    assert np.abs(np.subtract(first_pixel(encoded(image, "PNG", transparency=bytes([128]))), (177, 127, 227))).max() <= 1


def test_transparent_color_of_an_rgb_file_is_composited_onto_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert pixels(encoded(image, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize(("alpha", "value"), [(0, 255), (255, 40), (51, 212)])  # 40 * 0.2 + 255 * 0.8 = 212
def test_alpha_is_composited_onto_white(alpha: int, value: int) -> None:
    assert first_pixel(encoded(Image.new("RGBA", (2, 2), (40, 40, 40, alpha)), "PNG")) == (value, value, value)
    assert first_pixel(encoded(Image.new("LA", (2, 2), (40, alpha)), "PNG")) == (value, value, value)


def test_cmyk_is_converted_to_rgb() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow make red
    assert first_pixel(encoded(ink, "TIFF")) == (255, 0, 0)
    assert np.abs(np.subtract(first_pixel(encoded(ink, "JPEG", quality=100)), (255, 0, 0))).max() <= 3
    assert first_pixel(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF")) == (0, 0, 0)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_to_8(format_name: str) -> None:
    values = np.array([[0, 257, 51_400, 65_535, 200]], np.uint16)  # 257 = 65535 / 255 is one step; 200 rounds to one
    assert pixels(encoded(Image.fromarray(values), format_name))[0, :, 0].tolist() == [0, 1, 200, 255, 1]


def test_16_bit_color_png() -> None:
    raw = b"\x00" + struct.pack(">3H", 65_535, 32_896, 257)
    content = png(1, 1, raw, depth=16, color=2)
    assert np.abs(np.subtract(first_pixel(content), (255, 128, 1))).max() <= 1


# EXIF orientation -> the pixels that a camera stores for an upright picture.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.transpose(1, 0, 2), 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG", "MPO"])
def test_size_is_that_of_the_upright_image(orientation: int, format_name: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(pattern(70, 40), format_name, exif=exif)
    expected = (40, 70) if orientation < 5 else (70, 40)  # height and width
    assert height_and_width(content) == expected
    assert pixels(content).shape[:2] == expected


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format_name: str) -> None:
    upright = np.asarray(pattern(7, 4))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options: dict[str, object] = {"lossless": True} if format_name == "WEBP" else {}
    assert np.array_equal(pixels(encoded(stored, format_name, exif=exif, **options)), upright)


def test_exif_orientation_is_applied_in_other_modes() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.fromarray(np.array([[0], [65_535]], np.uint16))  # the top becomes the right
    assert pixels(encoded(stored, "PNG", exif=exif))[:, :, 0].tolist() == [[255, 0]]


def test_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for format_name, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {"quality": 100})):
        shown = first_pixel(encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options))
        assert np.abs(np.subtract(shown, (255, 0, 0))).max() <= 1


def test_rgb_image_is_not_copied() -> None:
    image = pattern(5, 5)
    assert to_rgb(image) is image


def test_errors_of_missing_files_folders_and_text_files_differ(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match=r"a\.png is not an image of a supported format"):
        open_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"empty\.png is not an image"):
        open_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="cannot be read as an image"):
        open_image(tmp_path)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_error_names_a_truncated_file(tmp_path: Path, format_name: str) -> None:
    content = encoded(pattern(64, 64), format_name)
    path = tmp_path / "half file"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="half file"):
        open_image(path)


def test_error_uses_the_given_name() -> None:
    with pytest.raises(ImageError, match=r"upload 7 is not an image"):
        open_image(b"hello", name="upload 7")


def test_unsupported_format_of_pillow_is_an_error() -> None:
    with pytest.raises(ImageError, match="not an image of a supported format"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_too_many_pixels_are_an_error_before_decoding(tmp_path: Path) -> None:
    bomb = png(60_000, 60_000, b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageTooLargeError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")
    with pytest.raises(ImageTooLargeError, match=r"bomb\.png"):
        check_header(tmp_path / "bomb.png")


def test_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(pattern(10, 10), "PNG")
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", len(content) - 1)
    with pytest.raises(ImageTooLargeError, match="larger than"):
        open_image(content)


def test_check_header(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(encoded(pattern(64, 64), "JPEG")[:700])
    check_header(tmp_path / "cut.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.jpg"):
        check_header(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match=r"none\.jpg does not exist"):
        check_header(tmp_path / "none.jpg")


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_an_image_or_an_error(content: bytes) -> None:
    assert_image_or_error(content)


SEEDS = [
    encoded(pattern(19, 13), "PNG"),
    encoded(pattern(19, 13).quantize(8), "PNG", transparency=2),
    encoded(Image.fromarray(np.arange(200, dtype=np.uint16).reshape(10, 20) * 300), "PNG"),
    encoded(pattern(19, 13), "JPEG", exif=Image.Exif()),
    encoded(pattern(19, 13).convert("CMYK"), "JPEG"),
    encoded(pattern(19, 13), "JPEG", progressive=True),
    encoded(pattern(19, 13), "WEBP"),
    encoded(pattern(19, 13).convert("RGBA"), "WEBP", lossless=True),
    encoded(pattern(19, 13), "TIFF", compression="tiff_lzw"),
    encoded(pattern(19, 13).convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
    encoded(pattern(19, 13), "TIFF"),
    encoded(pattern(19, 13).convert("P"), "GIF"),
    encoded(pattern(19, 13), "BMP"),
    encoded(pattern(19, 13), "PPM"),
]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_damaged_file_is_an_image_or_an_error(content: bytes, changes: list[tuple[float, int]], length: float) -> None:
    damaged = bytearray(content)
    for position, value in changes:
        damaged[int(position * len(damaged))] = value
    assert_image_or_error(bytes(damaged[: int(length * len(damaged)) if length < 0.9 else len(damaged)]))


def assert_image_or_error(content: bytes) -> None:
    try:
        image = open_image(content, name="upload")
    except ImageError as error:
        assert "upload" in str(error)
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"
        assert min(image.size) > 0


def png(width: int, height: int, raw: bytes, depth: int = 8, color: int = 2) -> bytes:
    """Returns a PNG file that Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_decoded_image_has_the_interface_of_an_encoded_one() -> None:
    image = pattern(7, 4)
    decoded = DecodedImage(image)
    assert (decoded.height, decoded.width) == (4, 7)
    assert decoded.decode(reduction=8) is image


@pytest.mark.parametrize(
    ("scale", "expected"), [(0.5, 1), (2.99, 1), (3.0, 2), (5.99, 2), (6.0, 4), (11.99, 4), (12.0, 8), (100.0, 8)]
)
def test_largest_reduction_keeps_half_again_as_many_pixels_as_needed(scale: float, expected: int) -> None:
    assert largest_reduction(scale) == expected


IMPORT_AND_CONFIGURE = """
import warnings
from PIL import Image

def settings():
    return Image.core.get_blocks_max(), any("PIL" in str(module) for _, _, _, module, _ in warnings.filters)

before = settings()
import deit, deit.images.decoding, deit.data.opening, deit.inference
deit.DeiTImageProcessor
assert settings() == before
deit.images.decoding.configure_pillow()
assert settings() == (deit.images.decoding.RETAINED_BLOCKS, True) != before
"""


def test_pillow_is_configured_only_on_request() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_AND_CONFIGURE], check=True)
