"""``config.json`` as timm writes it for the hub: an architecture's name, its arguments, and how images are prepared."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deit.checkpoints.key_maps import shown
from deit.errors import CheckpointError
from deit.variants import LAYER_NORM_EPS

# Architectures whose names say all that their tensors do not: [CLS] is read, exact GELU, and this many heads.
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
_PLAIN = re.compile(rf"(?:deit|vit)_({'|'.join(_HEADS)})(?:_distilled)?_patch[0-9]+_[0-9]+(?:\.\w+)?")

# timm's name and ours of the same function; where a name stands twice, its first row is the translation.
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
TO_TIMM = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS)}
_FIELDS = {
    "num_heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "in_chans": "num_channels",
    "img_size": "image_size",
    "patch_size": "patch_size",
    "qkv_bias": "qkv_bias",
    "num_classes": "num_labels",
}
# What only matters while training, where the image's size may change, or what the tensors' shapes say as well.
_HARMLESS = {
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
}
# What would change the function, and the values with which it does not.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "global_pool": ("token",),
    "class_token": (True,),
    "pos_embed": ("learn",),
    "no_embed_class": (False,),
    "reg_tokens": (0,),
    "init_values": (None,),
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
    """What such a file says.

    Attributes:
        fields: of our configuration.
        preprocessing: of ``pretrained_cfg``, under timm's names.
    """

    fields: dict[str, Any]
    preprocessing: dict[str, Any]


def is_transformer(architecture: str) -> bool:
    """Whether timm's architecture of this name is one of our models."""
    return _PLAIN.fullmatch(architecture) is not None


def read_timm_config(content: Mapping[str, Any], where: str) -> TimmConfig:
    """Translate a file's content.

    Args:
        content: the JSON object.
        where: the file, for the message.

    Raises:
        CheckpointError: an architecture or an argument that our models do not have, or a value of a wrong type.
    """
    architecture, arguments = str(content.get("architecture")), content.get("model_args") or {}
    settings = content.get("pretrained_cfg", content)  # older files hold everything on one level
    plain = _PLAIN.fullmatch(architecture)
    if plain is None:
        raise CheckpointError(f"{where} names timm's {shown(architecture)}", "only plain DeiT and ViT are read as such")
    if not isinstance(arguments, dict) or not isinstance(settings, dict):
        raise CheckpointError(f"model_args or pretrained_cfg in {where} is no object", "save the model again")
    fields: dict[str, Any] = {"num_attention_heads": _HEADS[plain[1]], "layer_norm_eps": LAYER_NORM_EPS}
    count = content.get("num_classes", settings.get("num_classes"))
    if count is not None:
        fields["num_labels"] = count
    if pool := content.get("global_pool"):
        _check_argument("global_pool", pool, where)
    if size := _fixed_size(settings, where):
        fields["image_size"] = size
    for name, value in arguments.items():
        if name in _FIELDS:
            square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
            fields[_FIELDS[name]] = value[0] if square else value
        elif name == "act_layer":
            fields["hidden_act"] = _activation(value, where)
        elif name not in _HARMLESS:
            _check_argument(name, value, where)
    if names := content.get("label_names") or settings.get("label_names"):
        fields["id2label"] = dict(enumerate(names)) if isinstance(names, list) else names
    return TimmConfig(fields, _preprocessing(settings, where))


def _check_argument(name: str, value: object, where: str) -> None:
    if not any(value is allowed or (value == allowed and type(value) is type(allowed)) for allowed in _FIXED.get(name, ())):
        raise CheckpointError(f"{where} gives timm's model {shown(name)} = {shown(str(value))}", "our models have no such part")


def _activation(value: object, where: str) -> str:
    if value is None:
        return "gelu"
    if not isinstance(value, str) or value not in FROM_TIMM:
        raise CheckpointError(f"{where} names the activation {shown(str(value))}", f"known are {', '.join(sorted(FROM_TIMM))}")
    return FROM_TIMM[value]


def _fixed_size(settings: Mapping[str, Any], where: str) -> list[int] | None:
    """Height and width of the images, where the model takes no others; timm builds it for these."""
    size = settings.get("input_size")
    if size is None or not settings.get("fixed_input_size"):
        return None
    if not isinstance(size, list) or len(size) != 3:
        raise CheckpointError(f"input_size in {where} is {shown(str(size))}", "it is [channels, height, width]")
    return size[1:] if size[1] != size[2] else size[1]


def _preprocessing(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = {name: settings[name] for name in PREPROCESSING if settings.get(name) is not None}
    for name, value in found.items():
        numbers = value if isinstance(value, list) else [value]
        text = name in ("interpolation", "crop_mode")
        fits = isinstance(value, str) if text else all(_is_finite(number) for number in numbers) and len(numbers) <= 1024
        if not fits:
            raise CheckpointError(f"{name} in {where} is {shown(str(value))}", "save the model again")
    return found


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
