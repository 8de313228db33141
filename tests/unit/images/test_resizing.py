"""Resizing for a center crop: equal to cropping what Pillow resizes, also where the shortcut does not apply."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deit.images import resizing
from deit.images.resizing import center_crop, resize_for_center_crop, vertical_first
from tests.helpers import pattern

SIZES = [(500, 375), (375, 500), (64, 48), (61, 47), (256, 256), (1, 1), (3, 90)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_center_crop_of_the_result_equals_that_of_pillow(size: tuple[int, int], mode: str, resample: int) -> None:
    image = pattern(*size).convert(mode)
    for target, crop in (((64, 64), (56, 56)), ((64, 86), (56, 56)), ((32, 32), (40, 20)), ((50, 30), (50, 30))):
        expected = center_crop(image.resize(target[::-1], resample), *crop)
        assert center_crop(resize_for_center_crop(image, target, crop, resample), *crop) == expected


def test_pixels_outside_the_crop_are_not_computed() -> None:
    assert resize_for_center_crop(pattern(512, 512), (256, 256), (224, 224), Image.Resampling.BICUBIC).size == (224, 224)


def test_unknown_pass_order_falls_back_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "_pass_order_is_known", lambda: False)
    image = pattern(512, 512)
    assert resize_for_center_crop(image, (256, 256), (224, 224), 3) == image.resize((256, 256), 3)


def test_tall_images_are_resized_vertically_first() -> None:
    assert vertical_first(100, 20, 10, 10)
    assert not vertical_first(20, 100, 10, 10)
    assert not vertical_first(10, 10, 20, 20)


def test_center_crop_rounds_down_and_pads_with_zeros() -> None:
    image = Image.fromarray(np.arange(1, 13, dtype=np.uint8).reshape(3, 4))
    assert np.asarray(center_crop(image, 2, 1)).tolist() == [[2], [6]]
    assert np.asarray(center_crop(image, 1, 6)).tolist() == [[0, 5, 6, 7, 8, 0]]
    assert center_crop(image, 3, 4) is image
