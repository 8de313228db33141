"""Random crops: their distribution, their resizing and the JPEG reduction that they allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.transforms import crops
from deit.data.transforms.crops import (
    crop_and_resize,
    crop_reduction,
    padded_crop,
    random_resized_crop_box,
    reduced_box,
    simple_random_crop,
)
from deit.rng import RngStream, generator
from tests.helpers import pattern


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, RngStream.AUGMENT)


def pixels(width: int, height: int) -> np.ndarray:
    return np.asarray(pattern(width, height))


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 100),
    st.floats(1, 3),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_crop_is_within_the_image(
    width: int, height: int, low: float, more: float, ratio: float, width_of_range: float, seed: int
) -> None:
    scale = (low, low + more * (1 - low))
    left, top, right, bottom = random_resized_crop_box(width, height, scale, (ratio, ratio * width_of_range), rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_cover_the_range_of_areas_and_aspect_ratios() -> None:
    boxes = np.array([random_resized_crop_box(1000, 1000, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed)) for seed in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspect_ratios = widths * heights / 1e6, widths / heights
    assert areas.min() >= 0.079
    assert 0.75 - 0.01 <= aspect_ratios.min() < 0.78
    assert 1.28 < aspect_ratios.max() <= 4 / 3 + 0.01
    assert np.log(aspect_ratios).mean() == pytest.approx(0, abs=0.02)
    squares = np.array([random_resized_crop_box(1000, 1000, (0.08, 1.0), (1, 1), rng(seed)) for seed in range(2000)])
    assert ((squares[:, 2] - squares[:, 0]) ** 2 / 1e6).mean() == pytest.approx(0.54, abs=0.02)  # uniform if all crops fit
    assert (boxes[:, 0] / np.maximum(1000 - widths, 1)).mean() == pytest.approx(0.5, abs=0.04)


def test_center_crop_if_no_random_crop_fits() -> None:
    assert random_resized_crop_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == (493, 0, 506, 10)  # 13 x 10
    assert random_resized_crop_box(10, 1000, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == (0, 493, 10, 506)


def test_box_of_the_output_size_is_not_resized() -> None:
    image = pixels(50, 40)
    crop = crop_and_resize(image, (7, 3, 31, 19), 16, 24)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, image[3:19, 7:31].transpose(2, 0, 1))


def test_resized_box_does_not_depend_on_pixels_outside() -> None:
    image = pixels(60, 50)
    other = np.full_like(image, 255)
    other[10:40, 20:50] = image[10:40, 20:50]
    crop = crop_and_resize(image, (20, 10, 50, 40), 17, 23)
    assert crop.shape == (3, 17, 23)
    assert np.array_equal(crop, crop_and_resize(other, (20, 10, 50, 40), 17, 23))


def test_linear_ramp_stays_linear_at_any_size() -> None:
    ramp = np.repeat(np.linspace(20, 220, 101).astype(np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)
    for size in (13, 60, 240):
        expected = 20 + 200 * ((np.arange(size) + 0.5) * 101 / size - 0.5) / 100
        interior = slice(size // 8, -(size // 8))  # the edges have no neighbors
        assert np.abs(crop_and_resize(ramp, (0, 0, 101, 60), size, size)[:, :, interior] - expected[interior]).max() < 2


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 400), st.integers(8, 400), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_reduced_box_has_enough_pixels_and_the_same_position(
    width: int, height: int, target_height: int, target_width: int, seed: int
) -> None:
    boxes = [random_resized_crop_box(width, height, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed + number)) for number in range(3)]
    factor = crop_reduction(boxes, target_height, target_width)
    assert factor in (1, 2, 4, 8)
    for box in boxes:
        reduced = reduced_box(box, factor)
        assert all(abs(edge * factor - original) <= factor / 2 for edge, original in zip(reduced, box, strict=True))
        assert 0 <= reduced[0] < reduced[2] <= -(-width // factor)
        assert 0 <= reduced[1] < reduced[3] <= -(-height // factor)
        if factor > 1:
            assert reduced[2] - reduced[0] >= target_width
            assert reduced[3] - reduced[1] >= target_height


def test_reduction_follows_from_the_smallest_box() -> None:
    whole = (0, 0, 2000, 1500)
    assert crop_reduction([whole], 224, 224) == 4  # 1500 / 4 = 375, 1.67 times 224
    assert crop_reduction([whole, (0, 0, 672, 900)], 224, 224) == 2
    assert crop_reduction([whole, (0, 0, 671, 900)], 224, 224) == 1
    assert crop_reduction([whole], 100, 150) == 8
    assert crop_reduction([whole], 100, 250) == 4
    assert crop_reduction([(5, 5, 30, 30)], 224, 224) == 1


def test_padded_crop_is_over_black() -> None:
    image = pixels(32, 24)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0))).transpose(2, 0, 1)
    crops = [padded_crop(image, 24, 32, rng(seed)) for seed in range(30)]
    windows = [padded[:, top : top + 24, left : left + 32] for top in range(9) for left in range(9)]
    assert all(any(np.array_equal(crop, window) for window in windows) for crop in crops)
    assert len({crop.tobytes() for crop in crops}) > 15


@pytest.mark.parametrize(
    ("size", "target", "covering"),
    [
        ((50, 40), (20, 20), (25, 20)),
        ((40, 50), (20, 20), (20, 25)),
        ((100, 30), (16, 24), (53, 16)),
        ((9, 9), (16, 16), (16, 16)),
    ],
)
def test_simple_random_crop_is_of_the_covering_image_padded_by_reflection(
    size: tuple[int, int], target: tuple[int, int], covering: tuple[int, int]
) -> None:
    image, (height, width) = pixels(*size), target
    whole = crop_and_resize(image, (0, 0, *size), covering[1], covering[0])
    padded = np.pad(whole, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    seen = set()
    for seed in range(300):
        crop = simple_random_crop(image, height, width, rng(seed))
        assert crop.shape == (3, height, width)
        positions = [
            (top, left)
            for top in range(padded.shape[1] - height + 1)
            for left in range(padded.shape[2] - width + 1)
            if padded[0, top, left] == crop[0, 0, 0]
            and np.array_equal(padded[:, top : top + height, left : left + width], crop)
        ]
        assert len(positions) == 1
        seen.add(positions[0])
    rows, columns = zip(*seen, strict=True)
    assert (min(rows), max(rows)) == (0, padded.shape[1] - height)
    assert (min(columns), max(columns)) == (0, padded.shape[2] - width)


@pytest.mark.parametrize("size", [(65_535, 1), (1, 65_535), (40_000, 7), (9, 30_000)], ids=str)
def test_simple_random_crop_of_an_extreme_aspect_ratio_resizes_a_part(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole image would have up to 3.3 billion pixels. The part gives the pixels of the whole, up to rounding."""
    rows, columns = size
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    largest = 0
    resize = crops.crop_and_resize

    def recording(pixels: np.ndarray, box: crops.Box, height: int, width: int) -> np.ndarray:
        nonlocal largest
        largest = max(largest, height * width)
        return resize(pixels, box, height, width)

    monkeypatch.setattr(crops, "crop_and_resize", recording)
    for seed in range(4):
        crop = simple_random_crop(image, 224, 224, rng(seed))
        assert crop.shape == (3, 224, 224)
    assert largest < 2**20


def test_part_of_a_covering_image_gives_the_pixels_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.asarray(pattern(90, 700))
    whole = [simple_random_crop(image, 48, 32, rng(seed)) for seed in range(8)]
    monkeypatch.setattr(crops, "MAX_COVERING_PIXELS", 0)
    for seed, expected in enumerate(whole):
        difference = np.abs(simple_random_crop(image, 48, 32, rng(seed)).astype(int) - expected)
        assert np.mean(difference[:, 8:-8]) < 6  # the interval begins between two pixels of the whole
