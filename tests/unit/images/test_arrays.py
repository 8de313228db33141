"""Images of every kind converted to arrays: layouts, channels, value ranges, errors."""

from __future__ import annotations

import doctest
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deit.errors import ConfigError, ImageError
from deit.images import arrays
from deit.images.processor import DeiTImageProcessor
from tests.helpers import pattern

UNRESIZED = DeiTImageProcessor(do_resize=False, do_center_crop=False)


def test_center_crop() -> None:
    image = Image.new("RGB", (10, 6))
    image.paste((255, 255, 255), (3, 1, 7, 5))  # 4 x 4 in the center
    processor = DeiTImageProcessor(do_resize=False, crop_size=4, do_normalize=False)
    assert (processor(image).pixel_values == 1).all()


def test_crop_larger_than_the_image_is_padded_with_black() -> None:
    processor = DeiTImageProcessor(do_resize=False, crop_size={"height": 4, "width": 3}, do_normalize=False)
    values = processor(Image.new("RGB", (1, 2), "white")).pixel_values[0, 0]
    assert values.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_arrays_and_tensors_equal_the_image() -> None:
    image = pattern(19, 13)
    array = np.asarray(image)
    expected = DeiTImageProcessor()(image).pixel_values
    inputs: list[Any] = [
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array.copy()).float().requires_grad_(),
        array.astype(np.int64),
        [image],
        (array,),
        array[None],
    ]
    for value in inputs:
        assert torch.equal(DeiTImageProcessor()(value).pixel_values, expected)


def test_gray_and_transparent_arrays_are_converted_to_rgb() -> None:
    gray = np.full((6, 5), 128, np.uint8)
    expected = UNRESIZED(Image.new("RGB", (5, 6), (128, 128, 128))).pixel_values
    clear = np.dstack([gray, gray, gray, np.zeros_like(gray)])
    for value in (gray, gray[..., None], gray[None], Image.fromarray(gray), [[gray]]):
        assert torch.equal(UNRESIZED(value).pixel_values, expected)
    assert torch.equal(UNRESIZED(clear).pixel_values, torch.ones(1, 3, 6, 5))  # composited onto white


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"bytes",
        [b"bytes"],
        torch.zeros(3, 4, 4, dtype=torch.complex64),
        Image.new("RGB", (0, 3)),
        3,
        [],
        {},
        [None],
        np.zeros(3),
        np.zeros((2, 3, 4, 5, 6)),
        np.zeros((5, 6, 7)),
        np.zeros((0, 5, 3)),
    ],
)
def test_other_input_is_an_error(value: Any) -> None:
    with pytest.raises(ImageError, match="not an image"):
        DeiTImageProcessor()(value)


def test_floats_in_0_to_1_stay_in_range_and_raise_a_warning() -> None:
    array = np.asarray(pattern(9, 8))
    expected = DeiTImageProcessor()(array).pixel_values
    assert torch.allclose(DeiTImageProcessor()(array / 255, do_rescale=False).pixel_values.float(), expected, atol=0.01)
    with pytest.warns(UserWarning, match="do_rescale=False"):
        dark = DeiTImageProcessor()(array / 255).pixel_values
    assert torch.all(dark < -0.99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeiTImageProcessor()(array.astype(np.float32))


@pytest.mark.parametrize("array", [np.full((3, 4, 4), -0.5), np.full((3, 4, 4), 256), np.full((3, 4, 4), np.nan)])
def test_values_outside_8_bits_cannot_be_resized(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="has values from"):
        DeiTImageProcessor()(array)
    DeiTImageProcessor(do_resize=False)(array)


def test_other_numbers_of_channels_with_matching_statistics() -> None:
    for channels in (1, 2, 4, 5):
        processor = DeiTImageProcessor(image_mean=[0.5] * channels, image_std=[0.5] * channels)
        array = np.random.default_rng(0).integers(0, 256, (30, 40, channels), dtype=np.uint8)
        values = processor(array).pixel_values
        assert values.shape == (1, channels, 224, 224)
        assert torch.equal(values, processor(array.transpose(2, 0, 1)).pixel_values)
        single = DeiTImageProcessor(image_mean=0.5, image_std=0.5, do_convert_rgb=False)
        if channels in (1, 5):  # of two and four, Pillow takes the last for alpha
            first = single(array[..., :1]).pixel_values
            assert torch.equal(values[:, :1], first)
    with pytest.raises(ConfigError, match="image_mean"):
        DeiTImageProcessor(do_convert_rgb=False)(Image.new("L", (3, 3)))
    with pytest.raises(ImageError, match="input_data_format"):
        DeiTImageProcessor()(np.zeros((6, 7, 2), np.uint8))


def test_path_is_opened(tmp_path: Path) -> None:
    pattern(9, 8).save(tmp_path / "a.png")
    expected = UNRESIZED(pattern(9, 8)).pixel_values
    assert torch.equal(UNRESIZED(str(tmp_path / "a.png")).pixel_values, expected)
    assert torch.equal(UNRESIZED([tmp_path / "a.png"]).pixel_values, expected)
    with pytest.raises(ImageError, match="does not exist"):
        UNRESIZED("b.png")


def test_damaged_pillow_image_is_an_error(tmp_path: Path) -> None:
    pattern(90, 80).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with Image.open(tmp_path / "b.jpg") as image, pytest.raises(ImageError, match="cannot be read"):
        UNRESIZED(image)


@pytest.mark.parametrize(
    ("factor", "mean", "std"), [(1 / 255, 0.485, 0.229), (1 / 127.5, 0.5, 0.25), (None, 7.0, 3.0), (0.1, 0.3, 0.7)]
)
def test_normalizing_uint8_into_a_buffer_is_exact(factor: float | None, mean: float, std: float) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    out = np.empty((1, 16, 16), np.float32)
    arrays.rescale_and_normalize_into(out, pixels, factor, ((mean,), (std,)))
    assert np.array_equal(out[0], arrays.rescale_and_normalize(pixels, factor, ((mean,), (std,)))[..., 0])


def test_examples_run() -> None:
    results = doctest.testmod(arrays)
    assert results.attempted >= 2
    assert results.failed == 0
