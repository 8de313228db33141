"""Writes models in the formats of transformers, timm, and the original DeiT code.

Each function takes a configuration and tensors by canonical name, and checks that they match before it writes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.checkpoints.key_maps import HEADS, to_layout
from deit.checkpoints.shapes import HEAD_WIDTH, check_shapes, find_architecture
from deit.checkpoints.timm_config import PREPROCESSING, TO_TIMM
from deit.checkpoints.weights import serialize_tensors
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError
from deit.hub import WEIGHT_FILES
from deit.system.files import CONFIG_NAME, WEIGHTS_NAME, json_bytes, write_bytes, write_files
from deit.variants import VARIANTS, Variant

State = Mapping[str, Tensor]

PICKLE_NAME = "pytorch_model.bin"
TIMM_EPS = (1e-6, 1e-12)  # of timm, and of the published Hugging Face files, where the difference is a rounding error


def write_transformers(
    directory: Path, config: ViTConfig, state: State, architecture: str, safe_serialization: bool = True
) -> None:
    """Writes a model directory that transformers 4 and 5 can load.

    Args:
        directory: created if missing; its other files are kept.
        config: configuration of the model.
        state: canonical name -> tensor.
        architecture: name of the class, such as ``DeiTModel``.
        safe_serialization: False writes ``pytorch_model.bin`` with torch.save instead of ``model.safetensors``.

    Raises:
        CheckpointError: the tensors do not match the configuration.
    """
    check_shapes(_shapes(state), config, "The model")
    trunk = "" if architecture.endswith("Model") else f"{config.model_type}."
    content = {**config.to_dict(), "architectures": [architecture]}
    _write_model(directory, content, to_layout(state, "transformers-4", trunk), safe_serialization)


def write_timm(directory: Path, config: ViTConfig, state: State, preprocessing: Mapping[str, Any]) -> None:
    """Writes a directory for the hub that ``timm.create_model("local-dir:DIRECTORY", pretrained=True)`` can load.

    Args:
        directory: created if missing; its other files are kept.
        config: configuration of the model.
        state: canonical name -> tensor.
        preprocessing: ``interpolation``, ``crop_pct``, ``crop_mode``, ``mean`` and ``std`` of timm. The input size is that of
            the model.

    Raises:
        CheckpointError: timm cannot represent this model; the message says why.
    """
    tensors = _timm_state(config, state)
    architecture, arguments = timm_architecture(config)
    classes = config.num_labels if _has_head(state) else 0
    if unknown := next((name for name in preprocessing if name not in PREPROCESSING), None):
        raise CheckpointError(f"timm's preprocessing has no {unknown!r}", f"use {', '.join(PREPROCESSING)}")
    settings: dict[str, Any] = {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in preprocessing.items()},
        "input_size": [config.num_channels, *config.image_hw],
        "fixed_input_size": True,
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if isinstance(config, DeiTConfig) else "head",
    }
    if classes:
        settings["label_names"] = list(config.classes)
    content = {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": config.hidden_size,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": settings,
    }
    _write_model(directory, content, tensors)


def write_authors(path: Path, config: ViTConfig, state: State) -> None:
    """Writes a ``.pth`` file for the original DeiT code: ``{"model": state}``, loadable by ``torch.load(weights_only=True)``.

    Args:
        path: file to write.
        config: configuration of the model. The file does not store it, so that an activation other than exact GELU is an error.
        state: canonical name -> tensor.

    Raises:
        CheckpointError: the original code cannot represent this model; the message says why.
    """
    if config.hidden_act != "gelu":
        raise CheckpointError(
            f"The authors' format does not store the activation, here {config.hidden_act}", "choose another format"
        )
    width, heads = config.hidden_size, config.num_attention_heads
    if width % HEAD_WIDTH == 0 and heads != width // HEAD_WIDTH:
        raise CheckpointError(
            f"The authors' format does not store the number of attention heads, here {heads} for a width of {width}",
            "choose another format",
        )
    write_bytes(path, _pickled({"model": _on_cpu(_timm_state(config, state))}))


def timm_architecture(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """Returns the timm architecture that is closest to a configuration, and the arguments that turn it into this model."""
    row = _closest_variant(config)
    values: dict[str, tuple[Any, Any]] = {  # argument -> value, and default of the architecture
        "img_size": (_size(config.image_hw), row.image_size),
        "patch_size": (_size(config.patch_hw), 16),
        "in_chans": (config.num_channels, 3),
        "embed_dim": (config.hidden_size, row.width),
        "depth": (config.num_hidden_layers, 12),
        "num_heads": (config.num_attention_heads, row.heads),
        "mlp_ratio": (_mlp_ratio(config), 4.0),
        "qkv_bias": (config.qkv_bias, True),
        "act_layer": (TO_TIMM[config.hidden_act], "gelu"),
    }
    return row.name.replace("-", "_"), {name: value for name, (value, default) in values.items() if value != default}


def _write_model(directory: Path, content: Mapping[str, Any], tensors: State, safe_serialization: bool = True) -> None:
    """Writes weights and configuration. Existing files are replaced only after both are written.

    Weights of an earlier model in the same directory are removed: readers might prefer them.
    """
    name = WEIGHTS_NAME if safe_serialization else PICKLE_NAME
    weights = serialize_tensors(tensors) if safe_serialization else _pickled(_on_cpu(tensors))
    write_files({directory / name: weights, directory / CONFIG_NAME: json_bytes(content, directory / CONFIG_NAME)})
    for other in WEIGHT_FILES:
        if other != name:
            (directory / other).unlink(missing_ok=True)


def _on_cpu(tensors: State) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _pickled(content: dict[str, Any]) -> bytes:
    """Returns the content of a file of torch.save, for ``torch.load(weights_only=True)``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _closest_variant(config: ViTConfig) -> Variant:
    rows = [row for row in VARIANTS.values() if row.distilled == isinstance(config, DeiTConfig)]
    return min(
        rows,
        key=lambda row: (
            (row.width, row.heads) != (config.hidden_size, config.num_attention_heads),
            abs(row.width - config.hidden_size),
            _size(config.image_hw) != row.image_size,
            row.image_size,
        ),
    )


def _timm_state(config: ViTConfig, state: State) -> dict[str, Tensor]:
    """Returns the tensors under timm's names, after checking that timm's model of them computes the same function."""
    if config.layer_norm_eps not in TIMM_EPS:
        raise CheckpointError(f"timm does not store layer_norm_eps, here {config.layer_norm_eps}", "choose another format")
    if any(config.pruned_heads.values()):
        raise CheckpointError("timm does not support pruned attention heads", "choose another format")
    distilled = isinstance(config, DeiTConfig)
    if distilled and "classifier.weight" in state:
        raise CheckpointError(
            "timm's distilled models have two heads, and this one has a single `classifier`", "choose another format"
        )
    check_shapes(_shapes(state), config, "The model")
    find_architecture(state.keys(), config, None, "The model")
    return to_layout(state, "timm-distilled" if distilled else "timm")


def _mlp_ratio(config: ViTConfig) -> float:
    """Returns a ratio for which int(width x ratio), the width of timm's MLP, is exact despite rounding."""
    ratio = config.intermediate_size / config.hidden_size
    return ratio if int(config.hidden_size * ratio) == config.intermediate_size else math.nextafter(ratio, math.inf)


def _has_head(state: State) -> bool:
    return any(f"{head}.weight" in state for head in HEADS)


def _size(sides: tuple[int, int]) -> int | list[int]:
    return sides[0] if sides[0] == sides[1] else list(sides)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
