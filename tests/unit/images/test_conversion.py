"""Conversion to RGB of 8 bits: ranges of values, strips, and images whose range is unknown."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deit.errors import ImageError
from deit.images import conversion
from deit.images.conversion import ValueRange, finite_extrema, standard_bounds, to_rgb
from deit.images.decoding import open_image
from tests.helpers import pattern


def levels(image: Image.Image, value_range: ValueRange | None = None) -> list[int]:
    result: list[int] = np.asarray(to_rgb(image, value_range))[0, :, 0].tolist()
    return result


def row(values: list[float], dtype: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


CT = ValueRange(integers=(-1000, 3000))


@pytest.mark.parametrize(
    ("image", "value_range", "expected"),
    [
        (row([0, 4095, 2048, 9999], np.uint16), ValueRange(integers=(0, 4095)), [0, 255, 128, 255]),
        (row([-1000, 3000, 1000, -2048], np.int32), CT, [0, 255, 128, 0]),
        (row([0, 1, 0.5, 2], np.float32), ValueRange(floats=(0, 1)), [0, 255, 128, 255]),
        (row([0, 4000, 1000, np.nan], np.float32), ValueRange(floats=(0, 4000)), [0, 255, 64, 0]),
        (row([-np.inf, np.inf, 99.6, -5], np.float32), ValueRange(floats=(0, 255)), [0, 255, 100, 0]),
    ],
    ids=["12 bits", "signed", "fractions", "large floats", "not finite"],
)
def test_range_maps_black_and_white(image: Image.Image, value_range: ValueRange, expected: list[int]) -> None:
    assert levels(image, value_range) == expected


def test_range_leaves_images_of_8_bits_unchanged() -> None:
    for mode in ("RGB", "L", "RGBA", "P"):
        image = pattern(9, 7).convert(mode)
        assert to_rgb(image, CT) == to_rgb(image)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (row([0, 257, 65_535], np.uint16), [0, 1, 255]),
        (row([0, 0, 0], np.uint16), [0, 0, 0]),
        (row([0, 25_700, 65_535], np.int32), [0, 100, 255]),
        (row([0, 0.5, 1], np.float32), [0, 128, 255]),
    ],
    ids=["16 bits", "black", "32-bit integers", "fractions"],
)
def test_without_a_range_only_values_that_leave_no_doubt_are_read(image: Image.Image, expected: list[int]) -> None:
    assert levels(image) == expected


@pytest.mark.parametrize(
    "image",
    [
        row([0, 4095], np.uint16),
        row([0, 250], np.uint16),
        row([-1000, 3000], np.int32),
        row([0, 255], np.int32),
        row([0, 70_000], np.int32),
        row([0, 4000], np.float32),
        row([0, 255], np.float32),
        row([-1, 1], np.float32),
    ],
    ids=lambda image: f"{image.mode} {image.getextrema()}",
)
def test_without_a_range_other_values_are_refused_with_the_remedy(image: Image.Image) -> None:
    low, high = image.getextrema()
    with pytest.raises(ImageError, match=rf"a\.tif has .* from {low:g} to {high:g}.*convert it to 8 bits, or train the model"):
        to_rgb(image, name="a.tif")
    with pytest.raises(ImageError):
        to_rgb(image, ValueRange(integers=(0, 1)) if image.mode == "F" else ValueRange(floats=(0, 1)))  # of the other kind


def test_12_bit_file_tells_its_range() -> None:
    assert np.asarray(open_image(tiff_of_12_bits()))[0, :, 0].tolist() == [0, 255]


def tiff_of_12_bits() -> bytes:
    """Returns a TIFF of 2 x 1 pixels of 12 bits, 0 and 4095."""
    file = io.BytesIO()
    row([0, 1], np.uint16).save(file, "TIFF", tiffinfo={})
    content = bytearray(file.getvalue())
    from PIL import TiffImagePlugin

    directory = TiffImagePlugin.ImageFileDirectory_v2(bytes(content[:8]))
    reader = io.BytesIO(content)
    reader.seek(directory.next)
    directory.load(reader)
    strip = directory[273][0]
    content[strip : strip + 3] = b"\x00\x0f\xff"
    entry = content.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")  # BitsPerSample, one SHORT, 16
    content[entry + 8] = 12
    entry = content.index(b"\x17\x01")  # StripByteCounts
    content[entry + 8] = 3
    return bytes(content)


MODES = ["1", "L", "LA", "P", "P, clear", "RGB, clear", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F", "RGB"]


def in_mode(mode: str) -> Image.Image:
    image = pattern(23, 19)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L")) / np.float32(255))
    if mode in ("LA", "RGBA"):
        image.putalpha(pattern(23, 19, seed=1).convert("L"))
    converted = image.convert(mode.partition(",")[0])
    if "clear" in mode:
        converted.info["transparency"] = 3 if mode[0] == "P" else (0, 0, 0)
    return converted


@pytest.mark.parametrize("mode", MODES)
def test_strips_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = in_mode(mode)
    whole = to_rgb(image)
    monkeypatch.setattr(conversion, "STRIP_PIXELS", 50)
    assert to_rgb(image) == whole
    assert whole.mode == "RGB"


def test_extrema_are_finite() -> None:
    assert finite_extrema(row([np.nan, -3, np.inf, 7], np.float32)) == (-3, 7)
    assert finite_extrema(row([np.nan, np.inf], np.float32)) == (0, 0)
    assert finite_extrema(row([5, 4095], np.uint16)) == (5, 4095)


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("I;16", 0, 255, (0, 255)),
        ("I;16", 0, 256, (0, 1023)),
        ("I;16", 3, 3000, (0, 4095)),
        ("I;16", 0, 40_000, (0, 65_535)),
        ("I", -1, 40, None),
        ("I", 0, 65_536, None),
        ("F", 0, 1, (0, 1)),
        ("F", 0, 1.5, (0, 255)),
        ("F", 0, 4000, (0, 4095)),
        ("F", -0.1, 1, None),
    ],
)
def test_standard_bounds(mode: str, low: float, high: float, expected: tuple[float, float] | None) -> None:
    assert standard_bounds(mode, low, high) == expected


def test_range_is_saved_as_json() -> None:
    both = ValueRange(integers=(-1000, 3000), floats=(0, 1))
    assert ValueRange.from_dict(both.to_dict()) == both
    assert ValueRange.from_dict({}) == ValueRange()
    assert str(both) == "integers -1000 to 3000 and floating-point values 0 to 1"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["integers", "floats", "x"]), children),
)


@given(json_values)
def test_any_json_is_a_range_or_a_value_error(content: Any) -> None:
    try:
        value_range = ValueRange.from_dict(content)
    except ValueError:
        return
    for bounds in (value_range.integers, value_range.floats):
        assert bounds is None or bounds[0] < bounds[1]
