"""Pyramids: levels depend on the file only, and crops of them are close to crops of the full image."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deit.images import cost
from deit.images.decoding import EncodedImage
from deit.images.pyramid import MIN_SIDE, Pyramid, PyramidShape, build_pyramid, coarsest_reduction, reduction_for
from tests.helpers import pattern


def encoded(width: int, height: int, image_format: str, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pattern(width // 8, height // 8).resize((width, height), Image.Resampling.BICUBIC).save(file, image_format, exif=exif)
    return file.getvalue()


def build(content: bytes, base: int) -> Pyramid:
    return build_pyramid(partial(EncodedImage, content), lambda _width, _height: base)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_finer_pyramid_contains_the_levels_of_a_coarser_one(image_format: str, orientation: int) -> None:
    content = encoded(1301, 997, image_format, orientation)
    finest = build(content, 1)
    assert finest.shape == PyramidShape(*((997, 1301) if orientation == 6 else (1301, 997)), 1, 5)
    for base in (2, 4, 8, 16):
        coarser = build(content, base)
        assert coarser.shape.reductions == finest.shape.reductions[finest.shape.reductions.index(base) :]
        for reduction, level in coarser.levels.items():
            assert level.shape == (*coarser.shape.size(reduction), 3)
            assert np.array_equal(level, finest.levels[reduction])


def test_levels_of_a_jpeg_are_those_of_reduced_decoding() -> None:
    content = encoded(800, 640, "JPEG")
    for reduction, level in build(content, 1).levels.items():
        if reduction <= 8:
            with EncodedImage(content) as image:
                assert np.array_equal(level, np.asarray(image.decode(reduction)))


def test_levels_average_blocks() -> None:
    content = encoded(128, 96, "PNG")
    levels = build(content, 1).levels
    averages = levels[1].reshape(48, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(levels[2] - averages).max() <= 1


def test_image_that_must_be_reduced_starts_at_a_coarser_level(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(800, 640, "JPEG")
    expected = build(content, 4)
    monkeypatch.setattr(cost, "MAX_BYTES", 800 * 640 * 8 // 4)
    pyramid = build(content, 1)
    assert pyramid.shape.least == 2
    assert pyramid.shape.base == 2
    assert np.array_equal(pyramid.levels[4], expected.levels[4])


@given(st.integers(1, 70_000), st.integers(1, 70_000))
def test_coarsest_level_has_the_least_side(width: int, height: int) -> None:
    shape = PyramidShape.of(width, height, 1, 1)
    assert shape.reductions[-1] == coarsest_reduction(width, height)
    sides = [min(shape.size(reduction)) for reduction in shape.reductions]
    assert sides[-1] >= min(MIN_SIDE, width, height)
    assert shape.nbytes <= 3 * 1.5 * (width + 1) * (height + 1)


@given(st.floats(0, 1e5))
def test_reduction_keeps_one_and_a_half_times_the_pixels(scale: float) -> None:
    reduction = reduction_for(scale)
    assert reduction == 1 or scale / reduction >= 1.5
    assert reduction == 2**11 or scale / (2 * reduction) < 1.5
