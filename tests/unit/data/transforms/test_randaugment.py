"""RandAugment: single operations and how they are drawn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from deit.data.transforms.augment import Augmentation, TrainTransform
from deit.data.transforms.randaugment import OPERATIONS, DrawnOperation, RandAugment, apply_operations, draw_operations
from deit.rng import RngStream, generator
from tests.helpers import pattern

FILL = (124, 116, 104)


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, RngStream.AUGMENT)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_operation_keeps_size_and_mode(operation: Any, level: float, sign: int) -> None:
    for size in ((31, 17), (1, 1)):
        changed = operation(pattern(*size), level, sign, FILL)
        assert (changed.mode, changed.size) == ("RGB", size)


@pytest.mark.parametrize("index", [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
def test_higher_level_is_a_stronger_change(index: int) -> None:
    image = pattern(48, 48)
    before = np.asarray(image, float)
    changes = [np.abs(np.asarray(OPERATIONS[index](image, level, 1, FILL), float) - before).mean() for level in (0, 0.3, 1)]
    assert changes[0] == 0
    assert changes[0] < changes[1] < changes[2]


def test_geometric_operations_fill_with_the_mean_color() -> None:
    translated = OPERATIONS[13](Image.new("RGB", (20, 10), "white"), 1.0, 1, FILL)  # 45 % to the left
    assert translated.getpixel((19, 5)) == FILL
    assert translated.getpixel((5, 5)) == (255, 255, 255)
    assert TrainTransform(Augmentation(), 64, 64).fill == FILL


def test_highest_level_of_posterize_is_black() -> None:
    assert OPERATIONS[4](pattern(9, 9), 1.0, 1, FILL).getextrema() == ((0, 0),) * 3
    assert OPERATIONS[4](pattern(9, 9), 0.99, 1, FILL).getextrema() != ((0, 0),) * 3


def test_operations_are_drawn_equally_often_and_applied_half_of_the_time() -> None:
    settings = RandAugment(operations=2, magnitude=9, magnitude_std=0.5)
    drawn = [draw_operations(settings, rng(seed)) for seed in range(3000)]
    counts = Counter(len(changes) for changes in drawn)
    assert [counts[number] / 3000 for number in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    each = Counter(OPERATIONS.index(one.operation) for changes in drawn for one in changes)
    assert sorted(each) == list(range(len(OPERATIONS)))
    assert all(count == pytest.approx(200, abs=70) for count in each.values())  # five standard deviations
    ways = [one.sign for changes in drawn for one in changes]
    assert np.mean(ways) == pytest.approx(0, abs=0.1)
    assert set(ways) == {1, -1}


def test_levels_are_normally_distributed_and_clipped_at_ten() -> None:
    settings = RandAugment(operations=2, magnitude=9, magnitude_std=0.5)
    levels = np.array([one.level for seed in range(3000) for one in draw_operations(settings, rng(seed))])
    assert levels.max() == 1
    assert (levels.mean(), levels.std()) == pytest.approx((0.9, 0.049), abs=0.004)
    assert {one.level for one in draw_operations(RandAugment(magnitude=0, magnitude_std=0, operations=9), rng())} == {0}


def test_operations_are_applied_in_order() -> None:
    image = pattern(20, 20)
    inverted, shifted = DrawnOperation(OPERATIONS[2], 1, 1), DrawnOperation(OPERATIONS[13], 1, 1)
    expected = OPERATIONS[13](OPERATIONS[2](image, 1, 1, FILL), 1, 1, FILL)
    assert apply_operations(image, [inverted, shifted], FILL) == expected
    assert apply_operations(image, [shifted, inverted], FILL) != expected
    assert apply_operations(image, [], FILL) is image
    assert draw_operations(RandAugment(operations=0), rng()) == []


def test_rotate_shear_subset() -> None:
    settings = RandAugment(operations=4, subset="rotate-shear")
    drawn = {OPERATIONS.index(one.operation) for seed in range(50) for one in draw_operations(settings, rng(seed))}
    assert drawn == {3, 11, 12}


@pytest.mark.parametrize("fields", [{"magnitude": 11}, {"magnitude_std": -1}, {"operations": -1}, {"subset": "none"}])
def test_invalid_settings_are_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        RandAugment(**fields)
