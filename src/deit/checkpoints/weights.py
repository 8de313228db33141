"""Writes tensors to safetensors files, reads them back, and loads them into a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from deit.checkpoints.state_dicts import anchor_of, unwrap_names
from deit.checkpoints.tensors import TensorFile, open_safetensors
from deit.errors import CheckpointError
from deit.system.files import write_bytes
from deit.system.progress import plural


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically.

    Args:
        path: file to write.
        tensors: tensors on any device. Those that share memory are written separately.
    """
    write_bytes(path, serialize_tensors(tensors))


def serialize_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns the content of a safetensors file."""
    return serialized_copies(copied_tensors(tensors))


def copied_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors, contiguous and without shared memory, into the memory of the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def serialized_copies(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns the content of a safetensors file with tensors from :func:`copied_tensors`, which are not copied again."""
    return save(dict(tensors), {"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is missing, or is not a valid safetensors file.
    """
    file = open_safetensors(path)
    return file.read(file.entries)


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies every tensor of a state dict into a module.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape; the message names the first.
    """
    own = model.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    for names, problem in ((missing, "the checkpoint lacks"), (unexpected, "the model does not have")):
        if names:
            raise CheckpointError(
                f"Checkpoint and model differ in {plural(len(names), 'tensor')}: {problem} {min(names)}",
                "the checkpoint belongs to another model",
            )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(state[name].shape)} in the checkpoint and {tuple(tensor.shape)} in the model",
                "the checkpoint belongs to another model",
            )
    model.load_state_dict(dict(state))


def load_network(network: nn.Module, files: Sequence[TensorFile], source: Path) -> tuple[str, ...]:
    """Loads given weights into a network, whatever prefix the names in the file have.

    Args:
        network: its tensor names say which of the file are its own.
        files: the file of weights, or its shards, opened with the anchor of the network
            (:func:`deit.checkpoints.state_dicts.anchor_of`).
        source: file or directory, for error messages.

    Returns:
        What else could have been loaded, and what was left out, one sentence each.

    Raises:
        CheckpointError: several models in the file fit, or a tensor is missing, left over, or of another shape.
    """
    known = network.state_dict().keys()
    file_of = {name: file for file in files for name in file.entries}
    names = unwrap_names(file_of, anchor_of(known), False, str(source), known)
    read = {name: tensor for file in files for name, tensor in file.read(file.entries).items()}
    load_into(network, {name: read[stored] for name, stored in names.stored.items()})
    return (*(note for file in files for note in file.notes), *names.notes)
