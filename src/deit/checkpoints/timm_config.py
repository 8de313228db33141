"""Reads ``config.json`` as timm writes it for the hub: architecture, model arguments, and preprocessing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deit.checkpoints.key_maps import printable
from deit.errors import CheckpointError
from deit.variants import LAYER_NORM_EPS

# Sizes whose architectures share all that tensors do not determine: [CLS] classification, exact GELU, and this many heads.
_HEADS = {"tiny": 3, "small": 6, "medium": 8, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
_SUPPORTED = re.compile(rf"(?:deit3?|vit)_({'|'.join(_HEADS)})(?:_distilled)?_patch[0-9]+_[0-9]+(?:\.\w+)?")

# timm's name and the name here of the same activation. If a name occurs twice, its first row is used.
_ACTIVATIONS = (
    ("gelu", "gelu"),
    ("gelu_tanh", "gelu_pytorch_tanh"),
    ("gelu_tanh", "gelu_new"),
    ("relu", "relu"),
    ("silu", "silu"),
    ("silu", "swish"),
    ("swish", "silu"),
)
FROM_TIMM = dict(reversed(_ACTIVATIONS))
TO_TIMM = {name: timm_name for timm_name, name in reversed(_ACTIVATIONS)}
_FIELDS = {  # argument of timm -> configuration field
    "num_heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "in_chans": "num_channels",
    "img_size": "image_size",
    "patch_size": "patch_size",
    "qkv_bias": "qkv_bias",
    "num_classes": "num_labels",
}
# Arguments that only affect training or inputs of other sizes, or that the tensors determine.
_IGNORED = {
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "weight_init",
    "fix_init",
    "dynamic_img_size",
    "mlp_ratio",
    "init_values",
    "no_embed_class",
}
# Arguments that would change the function -> values with which the models here agree.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "global_pool": ("token",),
    "class_token": (True,),
    "pos_embed": ("learn",),
    "reg_tokens": (0,),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pre_norm": (False,),
    "final_norm": (True,),
    "fc_norm": (None, False),
    "pool_include_prefix": (False,),
    "dynamic_img_pad": (False,),
    "norm_layer": (None, "layernorm"),
    "embed_norm_layer": (None,),
}
PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


@dataclass(frozen=True)
class TimmConfig:
    """Content of a configuration file of timm.

    Attributes:
        fields: fields of :class:`deit.config.ViTConfig`.
        preprocessing: entries of ``pretrained_cfg``, with timm's names.
    """

    fields: dict[str, Any]
    preprocessing: dict[str, Any]


def is_transformer(architecture: str) -> bool:
    """Returns whether a timm architecture is a plain DeiT or ViT, which the models here implement."""
    return _SUPPORTED.fullmatch(architecture) is not None


def read_timm_config(content: Mapping[str, Any], source: str) -> TimmConfig:
    """Translates the content of a configuration file.

    Args:
        content: the JSON object.
        source: name of the file in error messages.

    Raises:
        CheckpointError: unsupported architecture or argument, or a value of a wrong type.
    """
    architecture, arguments = str(content.get("architecture")), content.get("model_args") or {}
    settings = content.get("pretrained_cfg", content)  # older files have a single level
    match = _SUPPORTED.fullmatch(architecture)
    if match is None:
        raise CheckpointError(
            f"{source} names the timm architecture {printable(architecture)}", "only plain DeiT and ViT are supported"
        )
    if not isinstance(arguments, dict) or not isinstance(settings, dict):
        raise CheckpointError(f"model_args or pretrained_cfg in {source} is not an object", "save the model again")
    fields: dict[str, Any] = {"num_attention_heads": _HEADS[match[1]], "layer_norm_eps": LAYER_NORM_EPS}
    count = content.get("num_classes", settings.get("num_classes"))
    if count is not None:
        fields["num_labels"] = count
    if pool := content.get("global_pool"):
        _check_argument("global_pool", pool, source)
    if size := _fixed_size(settings, source):
        fields["image_size"] = size
    for name, value in arguments.items():
        if name in _FIELDS:
            square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
            fields[_FIELDS[name]] = value[0] if square else value
        elif name == "act_layer":
            fields["hidden_act"] = _activation(value, source)
        elif name not in _IGNORED:
            _check_argument(name, value, source)
    if names := content.get("label_names") or settings.get("label_names"):
        fields["id2label"] = dict(enumerate(names)) if isinstance(names, list) else names
    return TimmConfig(fields, _preprocessing(settings, source))


def _check_argument(name: str, value: object, source: str) -> None:
    allowed = _REQUIRED.get(name, ())
    if not any(value is other or (value == other and type(value) is type(other)) for other in allowed):
        raise CheckpointError(f"{source} has the model argument {printable(name)} = {printable(str(value))}", "not supported")


def _activation(value: object, source: str) -> str:
    if value is None:
        return "gelu"
    if not isinstance(value, str) or value not in FROM_TIMM:
        raise CheckpointError(
            f"{source} has the activation {printable(str(value))}", f"supported are {', '.join(sorted(FROM_TIMM))}"
        )
    return FROM_TIMM[value]


def _fixed_size(settings: Mapping[str, Any], source: str) -> list[int] | None:
    """Returns the image size of a model with a fixed input size: an int if it is square, else [height, width]."""
    size = settings.get("input_size")
    if size is None or not settings.get("fixed_input_size"):
        return None
    if not isinstance(size, list) or len(size) != 3:
        raise CheckpointError(f"input_size in {source} is {printable(str(size))}", "it must be [channels, height, width]")
    return size[1:] if size[1] != size[2] else size[1]


def _preprocessing(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    preprocessing = {name: settings[name] for name in PREPROCESSING if settings.get(name) is not None}
    for name, value in preprocessing.items():
        numbers = value if isinstance(value, list) else [value]
        if name in ("interpolation", "crop_mode"):
            valid = isinstance(value, str)
        else:
            valid = all(_is_finite(number) for number in numbers) and len(numbers) <= 1024
        if not valid:
            raise CheckpointError(f"{name} in {source} is {printable(str(value))}", "save the model again")
    return preprocessing


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
