"""Settings of the image processor: the forms of sizes and statistics, and the errors of invalid ones."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

from deit.errors import ConfigError
from deit.images import processor_settings
from deit.images.processor import DeiTImageProcessor
from deit.images.processor_settings import target_size
from tests.helpers import pattern


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 3}}, "size: takes"),
        ({"size": {"longest_edge": 3}}, "size: takes"),
        ({"size": 0}, "size"),
        ({"size": "large"}, "size"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size: takes"),
        ({"pad_size": {"shortest_edge": 3}}, "pad_size: takes"),
        ({"pad_size": 10**9}, "pad_size"),
        ({"pad_size": 16_384}, "more than"),
        ({"size": (16_384, 16_000)}, "more than"),
        ({"size": [3, 4, 5]}, "size"),
        ({"size": {"min_pixels": 3, "max_pixels": 9}}, "size: takes"),
        ({"data_format": "last"}, "data_format"),
        ({"do_resize": "perhaps"}, "do_resize"),
        ({"image_mean": []}, "image_mean"),
        ({"image_mean": "gray"}, "image_mean"),
        ({"image_std": -1}, "image_std"),
        ({"crop_size": 10**9}, "crop_size"),
        ({"resample": 9}, "resample"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_std": [1, 1, 0]}, "image_std"),
        ({"rescale_factor": float("inf")}, "rescale_factor"),
        ({"self": 3, "size": []}, "size"),
    ],
)
def test_invalid_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeiTImageProcessor(**fields)


@pytest.mark.parametrize(
    ("size", "height_width", "expected"),
    [
        ({"height": 3, "width": 5}, (100, 10), (3, 5)),
        ({"shortest_edge": 10}, (1, 10**6), (10, 16_384)),
        ({"shortest_edge": 10, "longest_edge": 20}, (1000, 1), (20, 1)),
        ({"shortest_edge": 10, "longest_edge": 20}, (30, 15), (20, 10)),
        ({"shortest_edge": 15, "longest_edge": 100}, (30, 15), (30, 15)),
        ({"max_height": 10, "max_width": 20}, (1000, 1), (10, 1)),
        ({"max_height": 10, "max_width": 20}, (5, 5), (10, 10)),
    ],
)
def test_target_size_of_each_kind_of_size(size: Any, height_width: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(size, *height_width) == expected


def test_size_is_accepted_in_each_form() -> None:
    square = DeiTImageProcessor(size=256, crop_size=(224, 200))
    assert (square.size, square.crop_size) == ({"height": 256, "width": 256}, {"height": 224, "width": 200})
    assert DeiTImageProcessor(size=[2, 3]).size == {"height": 2, "width": 3}
    assert DeiTImageProcessor(size=np.int64(7), default_to_square=False).size == {"shortest_edge": 7}
    assert DeiTImageProcessor(size={"shortest_edge": 7, "longest_edge": None}).size == {"shortest_edge": 7}
    assert DeiTImageProcessor()(pattern(20, 30), size=10, default_to_square=False, do_center_crop=False).pixel_values.shape == (
        (1, 3, 15, 10)
    )


def test_settings_are_validated_on_assignment() -> None:
    processor = DeiTImageProcessor()
    processor.size = {"shortest_edge": 40}
    processor.crop_size = 32  # type: ignore[assignment]
    processor.image_mean = np.array([0.1, 0.2, 0.3])  # type: ignore[assignment]
    processor.do_resize = None  # type: ignore[assignment]
    assert (processor.crop_size, processor.do_resize) == ({"height": 32, "width": 32}, False)
    assert processor.image_mean == (0.1, 0.2, 0.3)
    for name, value in {"size": {"height": 3}, "resample": 17, "image_std": 0, "do_resise": True}.items():
        with pytest.raises(ConfigError, match=name):
            setattr(processor, name, value)
    assert processor.size == {"shortest_edge": 40}  # the rejected value was not kept
    assert processor.model_input_names == ["pixel_values"]


def test_examples_run() -> None:
    results = doctest.testmod(processor_settings)
    assert results.attempted >= 2
    assert results.failed == 0
