"""Image files of every kind: the pixels that come out, and the errors."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deit.errors import ImageError
from deit.images import decoding as images
from deit.images.decoding import EncodedImage, check_header, is_image_name, open_image, to_rgb
from tests.helpers import pattern

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = open_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def first(content: bytes) -> tuple[int, ...]:
    return tuple(pixels(content)[0, 0].tolist())


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_give_the_very_pixels(kind: str, options: dict[str, object]) -> None:
    image = pattern(37, 23)
    assert np.array_equal(pixels(encoded(image, kind, **options)), np.asarray(image))


def test_a_jpeg_gives_nearly_its_pixels() -> None:
    image = Image.linear_gradient("L").convert("RGB")
    difference = pixels(encoded(image, "JPEG", quality=95)).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).max() <= 6


def decode(content: bytes, reduction: int) -> Image.Image:
    with EncodedImage(content) as image:
        return image.decode(reduction)


def size(content: bytes) -> tuple[int, int]:
    with EncodedImage(content) as image:
        return image.height, image.width


@pytest.mark.parametrize(("factor", "expected"), [(1, (203, 154)), (2, (102, 77)), (4, (51, 39)), (8, (26, 20))])
def test_a_jpeg_is_decoded_smaller_on_request(factor: int, expected: tuple[int, int]) -> None:
    content = encoded(pattern(203, 154), "JPEG", quality=95)
    image = decode(content, factor)
    assert (image.mode, image.size) == ("RGB", expected)
    assert size(content) == (154, 203)
    whole = open_image(content)
    if factor == 1:
        assert image == whole
    else:
        blocks = np.asarray(whole, float)[: 154 // factor * factor, : 203 // factor * factor]
        blocks = blocks.reshape(154 // factor, factor, 203 // factor, factor, 3).mean((1, 3))
        difference = np.asarray(image, float)[: len(blocks), : blocks.shape[1]] - blocks
        assert np.abs(difference[:, :, :2]).mean() < 2.5  # the smooth channels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_jpeg_is_upright_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(pattern(160, 96), "JPEG", quality=95, exif=exif)
    whole = open_image(content)
    image = decode(content, 4)
    assert size(content) == (whole.height, whole.width)
    assert image.size == (whole.width // 4, whole.height // 4)
    expected = np.asarray(whole.resize(image.size, Image.Resampling.BOX), float)
    assert np.abs(np.asarray(image, float) - expected)[:, :, :2].mean() < 2.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_smaller_jpeg_may_have_other_colors(mode: str) -> None:
    content = encoded(pattern(64, 48).convert(mode), "JPEG", quality=95)
    image = decode(content, 2)
    assert (image.mode, image.size) == ("RGB", (32, 24))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_asked_and_decoded_whole(kind: str) -> None:
    content = encoded(pattern(64, 48), kind)
    assert decode(content, 4) == open_image(content)
    assert size(content) == (48, 64)


def test_a_jpeg_that_is_cut_off_is_refused_at_any_size() -> None:
    content = encoded(pattern(640, 480), "JPEG")
    with pytest.raises(ImageError, match="cannot be read"):
        decode(content[: len(content) // 2], 2)


def test_grey_stays_grey() -> None:
    assert first(encoded(Image.new("L", (3, 2), 77), "PNG")) == (77, 77, 77)
    assert first(encoded(Image.new("1", (3, 2), 1), "PNG")) == (255, 255, 255)


def test_a_palette_gives_its_colors() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 1, 2, 3])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG")).tolist() == [[[200, 10, 20], [1, 2, 3]]]


def test_a_transparent_palette_entry_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 1, 2, 3])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG", transparency=1)).tolist() == [[[200, 10, 20], [255, 255, 255]]]
    assert pixels(encoded(image, "GIF", transparency=1)).tolist() == [[[200, 10, 20], [255, 255, 255]]]


def test_a_half_transparent_palette_entry_is_mixed_with_white() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([100, 0, 200])
    # 100 + (255 - 100) * 0.5, and so on, for an alpha of 128 / 255
    assert np.abs(np.subtract(first(encoded(image, "PNG", transparency=bytes([128]))), (177, 127, 227))).max() <= 1


def test_a_transparent_color_of_an_rgb_file_is_laid_on_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert pixels(encoded(image, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize(("alpha", "value"), [(0, 255), (255, 40), (51, 212)])  # 40 * 0.2 + 255 * 0.8 = 212
def test_alpha_is_laid_on_white(alpha: int, value: int) -> None:
    assert first(encoded(Image.new("RGBA", (2, 2), (40, 40, 40, alpha)), "PNG")) == (value, value, value)
    assert first(encoded(Image.new("LA", (2, 2), (40, alpha)), "PNG")) == (value, value, value)


def test_cmyk_is_turned_into_light() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow make red
    assert first(encoded(ink, "TIFF")) == (255, 0, 0)
    assert np.abs(np.subtract(first(encoded(ink, "JPEG", quality=100)), (255, 0, 0))).max() <= 3
    assert first(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF")) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    values = np.array([[0, 257, 51_400, 65_535, 200]], np.uint16)  # 257 = 65535 / 255 is one step; 200 rounds to one
    assert pixels(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 200, 255, 1]


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    assert first(encoded(Image.fromarray(np.full((2, 2), 250, np.uint16)), "PNG")) == (1, 1, 1)


def test_a_sixteen_bit_color_png_keeps_its_colors() -> None:
    raw = b"\x00" + struct.pack(">3H", 65_535, 32_896, 257)
    content = png(1, 1, raw, depth=16, color=2)
    assert np.abs(np.subtract(first(content), (255, 128, 1))).max() <= 1


def test_whole_numbers_of_32_bits_are_read_by_their_range() -> None:
    small = np.array([[0, 100, 255]], np.int32)
    large = np.array([[0, 25_700, 65_535]], np.int32)
    assert pixels(encoded(Image.fromarray(small), "TIFF"))[0, :, 0].tolist() == [0, 100, 255]
    assert pixels(encoded(Image.fromarray(large), "TIFF"))[0, :, 0].tolist() == [0, 100, 255]


def test_floating_point_values_are_rounded_and_bounded() -> None:
    values = np.array([[-5.0, 99.6, 300.0, np.nan]], np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 100, 255, 0]


# What a camera stores of an upright picture, and the number by which it says how to turn it back.
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
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_turned_photo_comes_out_upright(orientation: int, kind: str) -> None:
    upright = np.asarray(pattern(7, 4))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(stored, kind, exif=exif, **options)), upright)


def test_a_turned_photo_of_another_mode_comes_out_upright() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.fromarray(np.array([[0], [65_535]], np.uint16))  # the top becomes the right
    assert pixels(encoded(stored, "PNG", exif=exif))[:, :, 0].tolist() == [[255, 0]]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {"quality": 100})):
        shown = first(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert np.abs(np.subtract(shown, (255, 0, 0))).max() <= 1


def test_an_rgb_image_in_memory_is_taken_as_it_is() -> None:
    image = pattern(5, 5)
    assert to_rgb(image) is image


def test_a_missing_file_a_folder_and_a_text_are_told_apart(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_a_cut_off_file_is_named(tmp_path: Path, kind: str) -> None:
    content = encoded(pattern(64, 64), kind)
    path = tmp_path / "half file"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="half file"):
        open_image(path)


def test_bytes_from_elsewhere_are_called_by_the_given_name() -> None:
    with pytest.raises(ImageError, match=r"upload 7 is not an image"):
        open_image(b"hello", name="upload 7")


def test_a_format_that_pillow_knows_and_the_package_does_not_is_refused() -> None:
    with pytest.raises(ImageError, match="not an image of a supported format"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb = png(60_000, 60_000, b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb\.png"):
        check_header(tmp_path / "bomb.png")


def test_the_bounds_on_pixels_and_bytes_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(pattern(10, 10), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="10 x 10 pixels: at most 99 are supported"):
        open_image(content)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert open_image(content).size == (10, 10)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", len(content) - 1)
    with pytest.raises(ImageError, match="larger than"):
        open_image(content)


def test_the_header_alone_tells_an_image_from_a_text(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(encoded(pattern(64, 64), "JPEG")[:700])
    check_header(tmp_path / "cut.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.jpg"):
        check_header(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match=r"none\.jpg does not exist"):
        check_header(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.JPG", True), ("b c.webp", True), ("a.txt", False), (".a.png", False), ("png", False), ("a.svg", False)],
)
def test_files_are_known_by_their_ending(name: str, known: bool) -> None:
    assert is_image_name(Path("folder") / name) == known


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_an_image_or_a_clear_error(content: bytes) -> None:
    opened_or_refused(content)


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
def test_a_damaged_image_is_an_image_or_a_clear_error(content: bytes, changes: list[tuple[float, int]], length: float) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    opened_or_refused(bytes(damaged[: int(length * len(damaged)) if length < 0.9 else len(damaged)]))


def opened_or_refused(content: bytes) -> None:
    try:
        image = open_image(content, name="upload")
    except ImageError as error:
        assert "upload" in str(error)
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"
        assert min(image.size) > 0


def png(width: int, height: int, raw: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG file by hand: what Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
