"""What training does to one image: each step alone, and the whole as a function of its draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from deit.data.augment import (
    OPERATIONS,
    Augmentation,
    RandAugment,
    TrainTransform,
    color_jitter,
    crop_box,
    erase,
    rand_augment,
)
from deit.draws import Stream, generator
from tests.helpers import pattern

NOTHING = Augmentation(
    crop="resized", scale=(1, 1), ratio=(1, 1), flip=0, randaugment=RandAugment(operations=0), color_jitter=0, erasing=0
)
FILL = (124, 116, 104)


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, Stream.AUGMENT)


def without_normalising(settings: Augmentation, height: int, width: int) -> TrainTransform:
    return TrainTransform(settings, height, width, mean=(0, 0, 0), std=(1, 1, 1))


def test_the_paper_s_settings_are_the_default() -> None:
    paper = Augmentation()
    assert (paper.scale, paper.ratio, paper.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (paper.randaugment.operations, paper.randaugment.magnitude, paper.randaugment.magnitude_std) == (2, 9, 0.5)
    assert (paper.color_jitter, paper.erasing, paper.repeats) == (0.3, 0.25, 3)


def test_with_everything_off_the_pixels_only_move_to_channels_first() -> None:
    image = pattern(48, 48)
    values = without_normalising(NOTHING, 48, 48)(image, rng())
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert np.array_equal(np.rint(values * 255), np.asarray(image).transpose(2, 0, 1))


def test_channels_are_normalised_each_by_its_own_numbers() -> None:
    transform = TrainTransform(NOTHING, 40, 40, mean=(0.5, 0.0, 1.0), std=(0.5, 2.0, 1.0))
    values = transform(Image.new("RGB", (50, 50), (255, 102, 0)), rng())
    assert [channel.mean() for channel in values] == pytest.approx([1.0, 0.2, -1.0], abs=1e-5)


def test_the_same_draws_give_the_same_sample_and_others_another() -> None:
    transform, image = TrainTransform(Augmentation(), 64, 48), pattern(90, 70)
    first = transform(image, rng(3))
    assert first.shape == (3, 64, 48)
    assert np.array_equal(first, transform(image, rng(3)))
    assert not np.array_equal(first, transform(image, rng(4)))


def test_the_image_that_came_in_is_not_changed() -> None:
    image = pattern(64, 64)
    for seed in range(5):
        TrainTransform(Augmentation(erasing=1), 64, 64)(image, rng(seed))
    assert image == pattern(64, 64)


def test_a_flip_mirrors_the_image() -> None:
    image = pattern(48, 48)
    plain = without_normalising(NOTHING, 48, 48)(image, rng())
    assert np.array_equal(
        without_normalising(NOTHING.model_copy(update={"flip": 1.0}), 48, 48)(image, rng()), plain[:, :, ::-1]
    )
    halves = [
        np.array_equal(without_normalising(NOTHING.model_copy(update={"flip": 0.5}), 48, 48)(image, rng(seed)), plain)
        for seed in range(200)
    ]
    assert 70 < sum(halves) < 130


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
def test_a_crop_lies_within_the_image(
    width: int, height: int, low: float, more: float, ratio: float, wider: float, seed: int
) -> None:
    scale = (low, low + more * (1 - low))
    left, top, right, bottom = crop_box(width, height, scale, (ratio, ratio * wider), rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_cover_the_asked_for_areas_and_aspects() -> None:
    boxes = np.array([crop_box(1000, 1000, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed)) for seed in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspects = widths * heights / 1e6, widths / heights
    assert areas.min() >= 0.079
    assert 0.75 - 0.01 <= aspects.min() < 0.78
    assert 1.28 < aspects.max() <= 4 / 3 + 0.01
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.02)
    squares = np.array([crop_box(1000, 1000, (0.08, 1.0), (1, 1), rng(seed)) for seed in range(2000)])
    assert ((squares[:, 2] - squares[:, 0]) ** 2 / 1e6).mean() == pytest.approx(0.54, abs=0.02)  # uniform where all fit
    assert (boxes[:, 0] / np.maximum(1000 - widths, 1)).mean() == pytest.approx(0.5, abs=0.04)


def test_where_no_crop_fits_the_middle_is_taken() -> None:
    assert crop_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == (493, 0, 506, 10)  # 13 x 10
    assert crop_box(10, 1000, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == (0, 493, 10, 506)


@pytest.mark.parametrize(
    ("crop", "size", "padded"), [("auto", 32, True), ("auto", 33, False), ("resized", 32, False), ("padded", 64, True)]
)
def test_small_inputs_get_a_padded_crop(crop: Any, size: int, padded: bool) -> None:
    assert TrainTransform(Augmentation(crop=crop), size, size).padded == padded


def test_a_padded_crop_shifts_by_up_to_four_pixels_over_black() -> None:
    transform = without_normalising(NOTHING.model_copy(update={"crop": "padded"}), 32, 32)
    image = pattern(32, 32)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    seen = set()
    for seed in range(300):
        values = np.rint(transform(image, rng(seed)) * 255).astype(np.uint8).transpose(1, 2, 0)
        places = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(values, padded[top : top + 32, left : left + 32])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 70  # of 81


def test_erasing_fills_one_rectangle_with_normal_noise() -> None:
    shares, aspects, filled = [], [], []
    for seed in range(400):
        values = np.full((3, 60, 80), 9.0, np.float32)
        erase(values, rng(seed))
        touched = (values != 9).any(axis=0)
        rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        assert touched[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        shares.append(touched.mean())
        aspects.append(len(rows) / len(columns))
        filled.append(values[:, touched].ravel())
    assert 0.018 < min(shares) < 0.03
    assert 0.3 < max(shares) < 0.34
    assert min(aspects) > 0.28
    assert max(aspects) < 3.5
    noise = np.concatenate(filled)
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.01)


def test_erasing_comes_as_often_as_asked_and_after_normalising() -> None:
    transform = TrainTransform(NOTHING.model_copy(update={"erasing": 0.25}), 40, 40)
    white = Image.new("RGB", (40, 40), "white")
    erased = [len(np.unique(transform(white, rng(seed)))) > 3 for seed in range(400)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.06)


def test_erasing_leaves_an_image_of_one_pixel() -> None:
    values = np.ones((3, 1, 1), np.float32)
    erase(values, rng())
    assert (values == 1).all()


def test_colour_jitter_stays_within_its_strength() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [np.asarray(color_jitter(grey, 0.3, rng(seed)))[0, 0, 0] for seed in range(300)]
    assert 69 <= min(levels) < 75
    assert 125 < max(levels) <= 131
    assert color_jitter(pattern(9, 9), 0.0, rng()) == pattern(9, 9)


def test_colour_jitter_changes_brightness_contrast_and_saturation() -> None:
    image = Image.new("RGB", (2, 1), (200, 40, 40))
    image.putpixel((1, 0), (20, 20, 60))
    seen = np.array([np.asarray(color_jitter(image, 0.3, rng(seed)), float) for seed in range(200)])
    brightness, contrast = seen.mean((1, 2, 3)), seen.max((1, 2, 3)) - seen.min((1, 2, 3))
    saturation = (seen[:, 0, 0, 0] - seen[:, 0, 0, 1]) / seen[:, 0, 0, 0]
    assert min(np.std(brightness) / brightness.mean(), np.std(contrast) / contrast.mean(), np.std(saturation)) > 0.05


def test_colour_jitter_is_left_out_where_randaugment_is_on() -> None:
    image = Image.new("RGB", (40, 40), (90, 120, 200))
    off = NOTHING.model_copy(
        update={"color_jitter": 1.0, "randaugment": RandAugment(operations=1, magnitude=0, magnitude_std=0)}
    )
    harmless = without_normalising(off, 40, 40)
    jittered = without_normalising(NOTHING.model_copy(update={"color_jitter": 1.0}), 40, 40)
    original = np.array([90, 120, 200]) / 255
    changed = [np.abs(jittered(image, rng(seed))[:, 0, 0] - original).max() > 0.02 for seed in range(40)]
    assert sum(changed) > 30
    # At magnitude 0 the operations that are left change this image only where they stretch, equalise, invert or cut bits.
    kept = [np.abs(harmless(image, rng(seed))[:, 0, 0] - original).max() < 0.02 for seed in range(40)]
    assert sum(kept) > 20


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("way", [1, -1])
def test_an_operation_keeps_size_and_mode(operation: Any, level: float, way: int) -> None:
    for size in ((31, 17), (1, 1)):
        changed = operation(pattern(*size), level, way, FILL)
        assert (changed.mode, changed.size) == ("RGB", size)


@pytest.mark.parametrize("place", [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
def test_a_higher_level_is_a_stronger_change(place: int) -> None:
    image = pattern(48, 48)
    before = np.asarray(image, float)
    changes = [np.abs(np.asarray(OPERATIONS[place](image, level, 1, FILL), float) - before).mean() for level in (0, 0.3, 1)]
    assert changes[0] == 0
    assert changes[0] < changes[1] < changes[2]


def test_geometric_gaps_get_the_mean_colour() -> None:
    moved = OPERATIONS[13](Image.new("RGB", (20, 10), "white"), 1.0, 1, FILL)  # 45 % to the left
    assert moved.getpixel((19, 5)) == FILL
    assert moved.getpixel((5, 5)) == (255, 255, 255)
    assert TrainTransform(Augmentation(), 64, 64).fill == FILL


def test_the_strongest_posterizing_is_black() -> None:
    assert OPERATIONS[4](pattern(9, 9), 1.0, 1, FILL).getextrema() == ((0, 0),) * 3
    assert OPERATIONS[4](pattern(9, 9), 0.99, 1, FILL).getextrema() != ((0, 0),) * 3


def test_randaugment_draws_every_operation_half_of_the_time() -> None:
    image = pattern(16, 16)
    one = RandAugment(operations=1, magnitude=9, magnitude_std=0)
    same = [rand_augment(image, one, rng(seed), FILL) == image for seed in range(400)]
    assert np.mean(same) == pytest.approx(0.5, abs=0.1)
    assert rand_augment(image, RandAugment(operations=0), rng(), FILL) is image


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": (-0.1, 1)},
        {"ratio": (0, 1)},
        {"ratio": (1, float("inf"))},
        {"repeats": 0},
        {"flip": float("nan")},
        {"crop": "middle"},
        {"erase": 0.5},
        {"randaugment": {"magnitude": 11}},
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Augmentation(**fields)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_any_image_becomes_a_finite_sample(width: int, height: int, seed: int) -> None:
    for size in (24, 40):
        values = TrainTransform(Augmentation(erasing=1), size, size)(pattern(width, height), rng(seed))
        assert values.shape == (3, size, size)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
