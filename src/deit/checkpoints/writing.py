"""A model as files that others open: for transformers, for timm, and as the authors' code saves it.

Each function takes a configuration and tensors by canonical name, and checks that they fit before it writes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.checkpoints.key_maps import to_layout
from deit.checkpoints.shapes import CLASS_HEADS, HEAD_WIDTH, check_shapes, find_architecture
from deit.checkpoints.timm_config import PREPROCESSING, TO_TIMM
from deit.checkpoints.weights import tensors_bytes
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError
from deit.system.files import CONFIG_NAME, WEIGHTS_NAME, json_text, write_bytes, write_files
from deit.variants import VARIANTS, Variant

State = Mapping[str, Tensor]

TIMM_EPS = (1e-6, 1e-12)  # timm's, and that of the published Hugging Face files, which differs from it by rounding only


def write_transformers(directory: Path, config: ViTConfig, state: State, architecture: str) -> None:
    """A model directory that transformers 4 and 5 open.

    Args:
        directory: is made where it is missing; its other files stay.
        config: of the model.
        state: canonical name -> tensor.
        architecture: the class's name, such as ``DeiTModel``.

    Raises:
        CheckpointError: the tensors are not those of the configuration.
    """
    check_shapes(_shapes(state), config, "The model")
    trunk = "" if architecture.endswith("Model") else f"{config.model_type}."
    _write_model(directory, {**config.to_dict(), "architectures": [architecture]}, to_layout(state, "transformers-4", trunk))


def write_timm(directory: Path, config: ViTConfig, state: State, preprocessing: Mapping[str, Any]) -> None:
    """A directory that ``timm.create_model("local-dir:DIRECTORY", pretrained=True)`` opens, and timm's hub.

    Args:
        directory: is made where it is missing; its other files stay.
        config: of the model.
        state: canonical name -> tensor.
        preprocessing: ``interpolation``, ``crop_pct``, ``crop_mode``, ``mean`` and ``std`` as timm has them. The image's size
            is the model's.

    Raises:
        CheckpointError: timm has no such model; the message says what it lacks.
    """
    tensors = _timm_state(config, state)
    architecture, arguments = timm_architecture(config)
    classes = config.num_labels if _has_head(state) else 0
    if odd := next((name for name in preprocessing if name not in PREPROCESSING), None):
        raise CheckpointError(f"timm's preprocessing has no {odd!r}", f"known are {', '.join(PREPROCESSING)}")
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
    """A ``.pth`` file as the authors' code loads it: ``{"model": state}``, which ``torch.load(weights_only=True)`` reads.

    Args:
        path: the file.
        config: of the model; the file has no place for it, so that all but the exact GELU is an error.
        state: canonical name -> tensor.

    Raises:
        CheckpointError: the authors' code has no such model; the message says what it lacks.
    """
    if config.hidden_act != "gelu":
        raise CheckpointError(
            f"The authors' files cannot say that the activation is {config.hidden_act}", "choose another format"
        )
    width, heads = config.hidden_size, config.num_attention_heads
    if width % HEAD_WIDTH == 0 and heads != width // HEAD_WIDTH:
        raise CheckpointError(
            f"The authors' files cannot say that {heads} attention heads share a width of {width}: all theirs are 64 wide",
            "choose another format",
        )
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _timm_state(config, state).items()}
    buffer = io.BytesIO()
    torch.save({"model": tensors}, buffer)
    write_bytes(path, buffer.getvalue())


def timm_architecture(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """timm's name of the published model that is nearest to a configuration, and the arguments that make it this one."""
    row = _nearest(config)
    own: dict[str, tuple[Any, Any]] = {
        "img_size": (_side(config.image_hw), row.image_size),
        "patch_size": (_side(config.patch_hw), 16),
        "in_chans": (config.num_channels, 3),
        "embed_dim": (config.hidden_size, row.width),
        "depth": (config.num_hidden_layers, 12),
        "num_heads": (config.num_attention_heads, row.heads),
        "mlp_ratio": (_mlp_ratio(config), 4.0),
        "qkv_bias": (config.qkv_bias, True),
        "act_layer": (TO_TIMM[config.hidden_act], "gelu"),
    }
    return row.name.replace("-", "_"), {name: value for name, (value, default) in own.items() if value != default}


def _write_model(directory: Path, content: Mapping[str, Any], tensors: State) -> None:
    """Weights and configuration together: what stood there before stays whole until both are written."""
    text = json_text(content).encode()
    write_files({directory / WEIGHTS_NAME: tensors_bytes(tensors), directory / CONFIG_NAME: text})


def _nearest(config: ViTConfig) -> Variant:
    rows = [row for row in VARIANTS.values() if row.distilled == isinstance(config, DeiTConfig)]
    return min(
        rows,
        key=lambda row: (
            (row.width, row.heads) != (config.hidden_size, config.num_attention_heads),
            abs(row.width - config.hidden_size),
            _side(config.image_hw) != row.image_size,
            row.image_size,
        ),
    )


def _timm_state(config: ViTConfig, state: State) -> dict[str, Tensor]:
    """The tensors under timm's names, once it is sure that timm's model of these is the same function."""
    if config.layer_norm_eps not in TIMM_EPS:
        raise CheckpointError(f"timm has no argument for layer_norm_eps, here {config.layer_norm_eps}", "choose another format")
    if any(config.pruned_heads.values()):
        raise CheckpointError("timm has no models with pruned attention heads", "choose another format")
    distilled = isinstance(config, DeiTConfig)
    if distilled and "classifier.weight" in state:
        raise CheckpointError(
            "timm's distilled models have two heads, and this one has a single `classifier`", "choose another format"
        )
    check_shapes(_shapes(state), config, "The model")
    find_architecture(state.keys(), config, None, "The model")
    return to_layout(state, "timm-distilled" if distilled else "timm")


def _mlp_ratio(config: ViTConfig) -> float:
    """timm makes the MLP int(width x ratio) wide; rounding must not lose a neuron."""
    ratio = config.intermediate_size / config.hidden_size
    return ratio if int(config.hidden_size * ratio) == config.intermediate_size else math.nextafter(ratio, math.inf)


def _has_head(state: State) -> bool:
    return any(f"{head}.weight" in state for head in CLASS_HEADS)


def _side(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
