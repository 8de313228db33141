"""A model directory: ``config.json`` and ``model.safetensors``. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor, nn

from deit.checkpoints.layouts import TRANSFORMERS, from_ours, to_ours
from deit.config import CONFIG_NAME, ViTConfig
from deit.errors import CheckpointError
from deit.files import read_json, write_bytes, write_json

WEIGHTS_NAME = "model.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, in one step. Tensors may live on any device; shared memory is written out for each."""
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, {"format": "pt"})
    write_bytes(path, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: missing, or no valid safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "check the path")
    try:
        return dict(load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no valid safetensors file ({error})", "copy or save it again") from error


def write_model(directory: Path, config: ViTConfig, state: Mapping[str, Tensor], architecture: str) -> None:
    """Write a model directory that transformers opens. The weights come first: a directory with a config is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / WEIGHTS_NAME, from_ours(state, TRANSFORMERS))
    write_json(directory / CONFIG_NAME, {**config.to_dict(), "architectures": [architecture]})


def read_model(directory: Path, config: ViTConfig) -> dict[str, Tensor]:
    """The weights of a model directory under our names.

    Raises:
        CheckpointError: missing, damaged, or larger than the configuration can explain.
    """
    path = directory / WEIGHTS_NAME
    _check_size(path, config)
    return to_ours(read_tensors(path), TRANSFORMERS)


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


def architecture(directory: Path, known: Collection[str]) -> str:
    """Which class a model directory was saved from.

    Raises:
        CheckpointError: ``config.json`` is missing or names none of ``known``.
    """
    names = read_json(directory / CONFIG_NAME).get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(f"{directory} holds a model of class {name!r}", f"known are {', '.join(sorted(known))}")
    return name


def _check_size(path: Path, config: ViTConfig) -> None:
    """Refuse a file that is far larger than the model it claims to hold, before it is read."""
    width, inner = config.hidden_size, config.intermediate_size
    block = 4 * width * width + 2 * width * inner + 9 * width + inner
    patch = config.num_channels * config.patch_hw[0] * config.patch_hw[1] * width
    values = config.num_hidden_layers * block + patch + (config.tokens + width + 8) * width
    values += 2 * (width + 1) * (config.num_labels + 1)
    if path.is_file() and path.stat().st_size > 8 * values + 2**20:
        raise CheckpointError(f"{path} is larger than the model of its config.json", "the two do not belong together")
