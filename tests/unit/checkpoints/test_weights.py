"""Files of tensors that we wrote, and models that take them: what is damaged, missing or of another shape is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from deit.checkpoints.weights import load_into, read_tensors, write_tensors
from deit.errors import CheckpointError
from tests.helpers import noise, randomized


def test_tensors_come_back_with_their_types(tmp_path: Path) -> None:
    tensors = {
        "float": noise(3, 4),
        "half": noise(2).half(),
        "brain": noise(2).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "turned": noise(3, 4).T,
        "отлично": torch.ones(1),
    }
    write_tensors(tmp_path / "new" / "a.safetensors", tensors)
    back = read_tensors(tmp_path / "new" / "a.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_tensors_that_share_memory_are_written_out_for_each(tmp_path: Path) -> None:
    whole = noise(6)
    write_tensors(tmp_path / "a", {"one": whole, "same": whole, "part": whole[:3]})
    back = read_tensors(tmp_path / "a")
    assert torch.equal(back["one"], whole)
    assert torch.equal(back["same"], whole)
    assert torch.equal(back["part"], whole[:3])


def test_the_file_says_that_torch_wrote_it(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(1)})
    with safe_open(tmp_path / "a", "pt") as file:  # transformers refuses a file without this
        assert file.metadata() == {"format": "pt"}


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        read_tensors(tmp_path / "none.safetensors")
    path = tmp_path / "cut.safetensors"
    write_tensors(path, {"x": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is no valid safetensors file"):
        read_tensors(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no valid safetensors file"):
        read_tensors(path)


def test_no_tensors_are_tensors_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "optimizer.safetensors", {})  # as an optimizer is saved before its first step
    assert read_tensors(tmp_path / "optimizer.safetensors") == {}


def test_what_does_not_fit_is_counted_and_the_first_is_named() -> None:
    model = nn.Linear(2, 3)
    state = dict(model.state_dict())
    with pytest.raises(CheckpointError, match="1 tensors do not fit: the checkpoint lacks bias"):
        load_into(model, {"weight": state["weight"]})
    with pytest.raises(CheckpointError, match="2 tensors do not fit: the model has no place for a"):
        load_into(model, {**state, "b": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"weight is \(3, 1\) in the checkpoint and \(3, 2\) in the model"):
        load_into(model, {**state, "weight": torch.ones(3, 1)})


def test_a_refused_checkpoint_leaves_the_model_as_it_was() -> None:
    model = randomized(nn.Linear(2, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_into(model, {"bias": torch.zeros(3), "weight": torch.zeros(9, 9)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
