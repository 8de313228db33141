"""Writes tensors to safetensors files, reads them back, and loads them into a module."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.checkpoints.state_dicts import anchor_of, unwrap_names
from deit.checkpoints.tensors import DTYPES, TensorFile, open_safetensors
from deit.errors import CheckpointError
from deit.system.distributed import whole
from deit.system.files import write_bytes
from deit.system.progress import plural

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The order in which the library writes tensors, of those of equal size.
DTYPE_ORDER = {
    DTYPES[name]: number for number, name in enumerate(("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"))
}
HEADER_ALIGNMENT = 8  # bytes


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically.

    Args:
        path: file to write.
        tensors: tensors on any device. Those that share memory are written separately.
    """
    write_bytes(path, serialize_tensors(tensors))


def serialize_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns the content of a safetensors file."""
    return b"".join(serialized_parts(copied_tensors(tensors)))


def copied_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors, contiguous and without shared memory, into the memory of the CPU; whole ones, if they are divided."""
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def serialized_parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yields the content of a safetensors file in parts: its header, and the memory of each tensor.

    The bytes are those of ``safetensors.torch.save``, which copies all tensors before they are written.

    Args:
        tensors: what :func:`copied_tensors` returned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), DTYPE_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield tensors[name].flatten().view(torch.uint8).numpy().data


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
