"""Writing, reading and loading of tensors; corrupt files and mismatches are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from deit.checkpoints.weights import load_into, read_tensors, serialize_tensors, write_tensors
from deit.errors import CheckpointError
from tests.helpers import noise, randomized


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {
        "float": noise(3, 4),
        "half": noise(2).half(),
        "bfloat16": noise(2).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": noise(3, 4).T,
        "отлично": torch.ones(1),
    }
    write_tensors(tmp_path / "new" / "a.safetensors", tensors)
    restored = read_tensors(tmp_path / "new" / "a.safetensors")
    assert restored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert restored[name].dtype == tensor.dtype
        assert torch.equal(restored[name], tensor), name


def test_bytes_are_those_of_safetensors() -> None:
    dtypes = [torch.float64, torch.int64, torch.float32, torch.int32, torch.bfloat16, torch.float16]
    dtypes += [torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = {f"{name} {number}": torch.ones(number, 3).to(dtype) for number in range(3) for name, dtype in enumerate(dtypes)}
    tensors |= {"scalar": torch.tensor(7), "transposed": noise(3, 4).T, 'отлично "\\': torch.ones(1)}
    expected = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    assert serialize_tensors(tensors) == expected


def test_tensors_that_share_memory_are_written_separately(tmp_path: Path) -> None:
    tensor = noise(6)
    write_tensors(tmp_path / "a", {"first": tensor, "same": tensor, "slice": tensor[:3]})
    restored = read_tensors(tmp_path / "a")
    assert torch.equal(restored["first"], tensor)
    assert torch.equal(restored["same"], tensor)
    assert torch.equal(restored["slice"], tensor[:3])


def test_metadata_of_the_file_names_torch(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(1)})
    with safe_open(tmp_path / "a", "pt") as file:  # transformers requires it
        assert file.metadata() == {"format": "pt"}


def test_missing_or_corrupt_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        read_tensors(tmp_path / "none.safetensors")
    path = tmp_path / "cut.safetensors"
    write_tensors(path, {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a valid safetensors file"):
        read_tensors(path)


def test_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        read_tensors(path)


def test_file_without_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "optimizer.safetensors", {})  # as for an optimizer before its first step
    assert read_tensors(tmp_path / "optimizer.safetensors") == {}


def test_mismatches_are_counted_and_the_first_is_named() -> None:
    model = nn.Linear(2, 3)
    state = dict(model.state_dict())
    with pytest.raises(CheckpointError, match="model differ in 1 tensor: the checkpoint lacks bias"):
        load_into(model, {"weight": state["weight"]})
    with pytest.raises(CheckpointError, match="model differ in 2 tensors: the model does not have a"):
        load_into(model, {**state, "b": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"weight has shape \(3, 1\) in the checkpoint and \(3, 2\) in the model"):
        load_into(model, {**state, "weight": torch.ones(3, 1)})


def test_refused_checkpoint_leaves_the_model_unchanged() -> None:
    model = randomized(nn.Linear(2, 3))
    previous = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_into(model, {"bias": torch.zeros(3), "weight": torch.zeros(9, 9)})
    assert all(torch.equal(tensor, previous[name]) for name, tensor in model.state_dict().items())
