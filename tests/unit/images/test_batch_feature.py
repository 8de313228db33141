"""The processor's output: keys as attributes, conversion to tensors, devices and types."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from deit.errors import ImageError
from deit.images import batch_feature
from deit.images.batch_feature import BatchFeature


def test_output_is_moved_and_cast() -> None:
    output = BatchFeature({"pixel_values": torch.zeros(1, 3, 2, 2), "labels": torch.ones(1, dtype=torch.int64), "names": "a"})
    assert output.to(torch.float16) is output
    assert (output.pixel_values.dtype, output.labels.dtype, output.data["names"]) == (torch.float16, torch.int64, "a")
    assert output.to("meta", torch.float32).labels.device.type == "meta"
    assert output.pixel_values.dtype == torch.float32
    assert BatchFeature({"a": [torch.zeros(2)] * 3}).convert_to_tensors("pt").a.shape == (3, 2)
    with pytest.raises(ImageError, match="different sizes"):
        BatchFeature({"a": [np.zeros(2), np.zeros(3)]}, "np")


def test_keys_are_attributes() -> None:
    feature = BatchFeature({"pixel_values": [np.zeros((3, 2, 2))]})
    assert feature.pixel_values is feature["pixel_values"]
    with pytest.raises(AttributeError, match="labels"):
        _ = feature.labels


def test_examples_run() -> None:
    results = doctest.testmod(batch_feature)
    assert results.attempted >= 2
    assert results.failed == 0
