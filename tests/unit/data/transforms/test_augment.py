"""The training augmentation of one image: each step alone, and the whole as a function of its generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from deit.data.transforms.augment import Augmentation, TrainTransform, color_jitter, erase, three_augment
from deit.data.transforms.randaugment import RandAugment
from deit.rng import RngStream, generator
from tests.helpers import pattern

NO_AUGMENTATION = Augmentation(
    crop="resized", scale=(1, 1), ratio=(1, 1), flip=0, randaugment=RandAugment(operations=0), color_jitter=0, erasing=0
)


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, RngStream.AUGMENT)


def unnormalized(settings: Augmentation, height: int, width: int) -> TrainTransform:
    return TrainTransform(settings, height, width, mean=(0, 0, 0), std=(1, 1, 1))


def test_defaults_are_the_settings_of_the_paper() -> None:
    defaults = Augmentation()
    assert (defaults.scale, defaults.ratio, defaults.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (defaults.randaugment.operations, defaults.randaugment.magnitude, defaults.randaugment.magnitude_std) == (2, 9, 0.5)
    assert (defaults.color_jitter, defaults.erasing, defaults.repeats) == (0.3, 0.25, 3)


def test_without_augmentation_pixels_are_only_transposed() -> None:
    image = pattern(48, 48)
    values = unnormalized(NO_AUGMENTATION, 48, 48)(image, rng())
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert np.array_equal(np.rint(values * 255), np.asarray(image).transpose(2, 0, 1))


def test_channels_are_normalized_by_their_mean_and_std() -> None:
    transform = TrainTransform(NO_AUGMENTATION, 40, 40, mean=(0.5, 0.0, 1.0), std=(0.5, 2.0, 1.0))
    values = transform(Image.new("RGB", (50, 50), (255, 102, 0)), rng())
    assert [channel.mean() for channel in values] == pytest.approx([1.0, 0.2, -1.0], abs=1e-5)


def test_sample_is_a_function_of_the_generator() -> None:
    transform, image = TrainTransform(Augmentation(), 64, 48), pattern(90, 70)
    first = transform(image, rng(3))
    assert first.shape == (3, 64, 48)
    assert np.array_equal(first, transform(image, rng(3)))
    assert not np.array_equal(first, transform(image, rng(4)))


def test_input_image_is_not_modified() -> None:
    image = pattern(64, 64)
    for seed in range(5):
        TrainTransform(Augmentation(erasing=1), 64, 64)(image, rng(seed))
    assert image == pattern(64, 64)


def test_horizontal_flip() -> None:
    image = pattern(48, 48)
    unflipped = unnormalized(NO_AUGMENTATION, 48, 48)(image, rng())
    assert np.array_equal(
        unnormalized(NO_AUGMENTATION.model_copy(update={"flip": 1.0}), 48, 48)(image, rng()), unflipped[:, :, ::-1]
    )
    is_unflipped = [
        np.array_equal(unnormalized(NO_AUGMENTATION.model_copy(update={"flip": 0.5}), 48, 48)(image, rng(seed)), unflipped)
        for seed in range(200)
    ]
    assert 70 < sum(is_unflipped) < 130


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        ("auto", 32, "padded"),
        ("auto", 33, "resized"),
        ("resized", 32, "resized"),
        ("padded", 64, "padded"),
        ("simple", 32, "simple"),
    ],
)
def test_crop_follows_the_input_size(crop: Any, size: int, expected: str) -> None:
    assert TrainTransform(Augmentation(crop=crop), size, size).crop == expected


def test_padded_crop_shifts_by_up_to_four_pixels_over_black() -> None:
    transform = unnormalized(NO_AUGMENTATION.model_copy(update={"crop": "padded"}), 32, 32)
    image = pattern(32, 32)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    seen = set()
    for seed in range(300):
        values = np.rint(transform(image, rng(seed)) * 255).astype(np.uint8).transpose(1, 2, 0)
        positions = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(values, padded[top : top + 32, left : left + 32])
        ]
        assert len(positions) == 1
        seen.add(positions[0])
    assert len(seen) > 70  # of 81


def test_random_erasing_fills_one_rectangle_with_normal_noise() -> None:
    areas, aspect_ratios, noise = [], [], []
    for seed in range(400):
        values = np.full((3, 60, 80), 9.0, np.float32)
        erase(values, rng(seed))
        erased = (values != 9).any(axis=0)
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(erased.mean())
        aspect_ratios.append(len(rows) / len(columns))
        noise.append(values[:, erased].ravel())
    assert 0.018 < min(areas) < 0.03
    assert 0.3 < max(areas) < 0.34
    assert min(aspect_ratios) > 0.28
    assert max(aspect_ratios) < 3.5
    values = np.concatenate(noise)
    assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=0.01)


def test_random_erasing_has_its_probability_and_comes_after_normalization() -> None:
    transform = TrainTransform(NO_AUGMENTATION.model_copy(update={"erasing": 0.25}), 40, 40)
    white = Image.new("RGB", (40, 40), "white")
    erased = [len(np.unique(transform(white, rng(seed)))) > 3 for seed in range(400)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.06)


def test_image_of_one_pixel_is_not_erased() -> None:
    values = np.ones((3, 1, 1), np.float32)
    erase(values, rng())
    assert (values == 1).all()


def test_color_jitter_stays_within_its_strength() -> None:
    gray = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [np.asarray(color_jitter(gray, 0.3, rng(seed)))[0, 0, 0] for seed in range(300)]
    assert 69 <= min(levels) < 75
    assert 125 < max(levels) <= 131
    assert color_jitter(pattern(9, 9), 0.0, rng()) == pattern(9, 9)


def test_color_jitter_changes_brightness_contrast_and_saturation() -> None:
    image = Image.new("RGB", (2, 1), (200, 40, 40))
    image.putpixel((1, 0), (20, 20, 60))
    seen = np.array([np.asarray(color_jitter(image, 0.3, rng(seed)), float) for seed in range(200)])
    brightness, contrast = seen.mean((1, 2, 3)), seen.max((1, 2, 3)) - seen.min((1, 2, 3))
    saturation = (seen[:, 0, 0, 0] - seen[:, 0, 0, 1]) / seen[:, 0, 0, 0]
    assert min(np.std(brightness) / brightness.mean(), np.std(contrast) / contrast.mean(), np.std(saturation)) > 0.05


def test_randaugment_replaces_color_jitter() -> None:
    image = Image.new("RGB", (40, 40), (90, 120, 200))
    weakest = NO_AUGMENTATION.model_copy(
        update={"color_jitter": 1.0, "randaugment": RandAugment(operations=1, magnitude=0, magnitude_std=0)}
    )
    augmented = unnormalized(weakest, 40, 40)
    jittered = unnormalized(NO_AUGMENTATION.model_copy(update={"color_jitter": 1.0}), 40, 40)
    original = np.array([90, 120, 200]) / 255
    changed = [np.abs(jittered(image, rng(seed))[:, 0, 0] - original).max() > 0.02 for seed in range(40)]
    assert sum(changed) > 30
    # At magnitude 0 only autocontrast, equalize, invert and posterize change this image.
    unchanged = [np.abs(augmented(image, rng(seed))[:, 0, 0] - original).max() < 0.02 for seed in range(40)]
    assert sum(unchanged) > 20


def test_three_augment_draws_grayscale_solarization_and_blur_equally_often() -> None:
    image = pattern(24, 24)
    before = np.asarray(image)
    kinds = []
    for seed in range(600):
        after = np.asarray(three_augment(image, rng(seed)))
        gray = (after == after[:, :, :1]).all()
        solarized = np.array_equal(after, np.where(before < 128, before, 255 - before))
        kinds.append("gray" if gray else "solarized" if solarized else "blurred")
    assert [kinds.count(kind) / 600 for kind in ("gray", "solarized", "blurred")] == pytest.approx([1 / 3] * 3, abs=0.1)


def test_range_of_the_blur() -> None:
    line = Image.new("RGB", (41, 41))
    line.paste((120, 120, 120), (20, 0, 21, 41))  # too dark to be solarized
    peaks = {np.asarray(three_augment(line, rng(seed)))[20, 20, 0] for seed in range(300)}
    assert 117 <= max(peaks) <= 120
    assert 20 < min(peaks) < 30  # 120 / (2 * sqrt(2 pi)) = 24


def test_color_jitter_follows_three_augment() -> None:
    gray = Image.new("RGB", (40, 40), (100, 100, 100))
    three = NO_AUGMENTATION.model_copy(update={"three_augment": True, "color_jitter": 0.3})
    levels = np.array([unnormalized(three, 40, 40)(gray, rng(seed))[0, 0, 0] * 255 for seed in range(200)])
    assert 69 <= levels.min() < 76
    assert 124 < levels.max() <= 131
    without_jitter = unnormalized(three.model_copy(update={"color_jitter": 0.0}), 40, 40)
    assert all(np.rint(255 * without_jitter(gray, rng(seed))[0, 0, 0]) == 100 for seed in range(20))


def test_three_augment_and_randaugment_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match=r"set augmentation\.randaugment\.operations=0"):
        Augmentation(three_augment=True)


def test_simple_random_crop_by_name() -> None:
    transform = unnormalized(NO_AUGMENTATION.model_copy(update={"crop": "simple"}), 20, 20)
    image = pattern(20, 20)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    values = np.rint(transform(image, rng()) * 255).transpose(1, 2, 0)
    assert any(np.array_equal(values, padded[t : t + 20, x : x + 20]) for t in range(9) for x in range(9))


def test_sample_is_written_to_the_given_array() -> None:
    transform, image = TrainTransform(Augmentation(), 40, 48), pattern(90, 70)
    batch = np.zeros((3, 3, 40, 48), np.float32)
    generator_of_sample = rng(7)
    transform.write(np.asarray(image), transform.box(90, 70, generator_of_sample), generator_of_sample, batch[1])
    assert np.array_equal(batch[1], transform(image, rng(7)))
    assert not batch[[0, 2]].any()


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
def test_invalid_settings_are_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Augmentation(**fields)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_sample_of_any_image_is_finite(width: int, height: int, seed: int) -> None:
    for size in (24, 40):
        values = TrainTransform(Augmentation(erasing=1), size, size)(pattern(width, height), rng(seed))
        assert values.shape == (3, size, size)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
