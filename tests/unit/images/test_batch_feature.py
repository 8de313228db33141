"""The processor's output: keys as attributes, conversion to tensors, devices and types."""

from __future__ import annotations

import copy
import doctest
import pickle

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


def test_numbers_are_converted_and_other_entries_are_not() -> None:
    entries = {"labels": [1, 2], "names": ["a", "b"], "tensor": torch.ones(2, dtype=torch.bfloat16), "kept": [3], "empty": []}
    feature = BatchFeature(entries, "pt", skip_tensor_conversion=["kept"])
    assert torch.equal(feature.labels, torch.tensor([1, 2]))
    assert (feature.names, feature.kept, feature.empty) == (["a", "b"], [3], [])
    assert feature.tensor.dtype == torch.bfloat16
    moved = BatchFeature({"a": [torch.ones(1), torch.ones(2)], "b": (torch.ones(1, dtype=torch.int32),)}).to(torch.float16)
    assert ([item.dtype for item in moved.a], moved.b[0].dtype) == ([torch.float16] * 2, torch.int32)
    with pytest.raises(TypeError):
        moved.to(torch.float16, "cpu")


def test_output_can_be_copied_pickled_and_collated() -> None:
    feature = BatchFeature({"pixel_values": torch.ones(3, 2, 2)})
    for other in (copy.deepcopy(feature), pickle.loads(pickle.dumps(feature))):  # noqa: S301
        assert torch.equal(other.pixel_values, feature.pixel_values)
    batch = torch.utils.data.default_collate([feature, feature])
    assert batch["pixel_values"].shape == (2, 3, 2, 2)


def test_keys_are_attributes() -> None:
    feature = BatchFeature({"pixel_values": [np.zeros((3, 2, 2))]})
    assert feature.pixel_values is feature["pixel_values"]
    with pytest.raises(AttributeError, match="labels"):
        _ = feature.labels


def test_examples_run() -> None:
    results = doctest.testmod(batch_feature)
    assert results.attempted >= 2
    assert results.failed == 0
