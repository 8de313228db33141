"""Tensors to a safetensors file and back, and into a model. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from deit.checkpoints.tensors import open_safetensors
from deit.errors import CheckpointError
from deit.system.files import WEIGHTS_NAME as WEIGHTS_NAME
from deit.system.files import write_bytes


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, in one step. Tensors may live on any device; shared memory is written out for each."""
    write_bytes(path, tensors_bytes(tensors))


def tensors_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file."""
    return save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: missing, or no valid safetensors file.
    """
    file = open_safetensors(path)
    return file.read(file.entries)


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy every tensor into the model.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; the message names the first.
    """
    own = model.state_dict()
    for what, names in (("lacks", own.keys() - state.keys()), ("has no place for", state.keys() - own.keys())):
        if names:
            raise CheckpointError(
                f"{len(names)} tensors do not fit: the {'checkpoint' if what == 'lacks' else 'model'} {what} {min(names)}",
                "the checkpoint belongs to another model",
            )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(state[name].shape)} in the checkpoint and {tuple(tensor.shape)} in the model",
                "the checkpoint belongs to another model",
            )
    model.load_state_dict(dict(state))
