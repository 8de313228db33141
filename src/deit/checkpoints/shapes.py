"""Tensor shapes from a configuration, and a configuration from tensor shapes. No tensor is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from deit.checkpoints.key_maps import HEADS, printable
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError, ConfigError

Shapes = Mapping[str, tuple[int, ...]]

# suffix of the class -> heads of the model
_CLASSES = {
    "Model": frozenset[str](),
    "ForImageClassification": frozenset({"classifier"}),
    "ForImageClassificationWithTeacher": frozenset({"cls_classifier", "distillation_classifier"}),
    "ForMaskedImageModeling": frozenset({"decoder.0"}),
}
_NOT_IN_SHAPES = {"num_attention_heads", "hidden_act", "layer_norm_eps"}  # fields that shapes do not determine
HEAD_WIDTH = 64  # width of an attention head in every published DeiT, and in ViT up to large
_MAX_WIDTH = 1024  # from ViT-huge on, attention heads are wider
_HEADS_REMEDY = "pass num_attention_heads (--heads of deit convert)"
_SIZE_REMEDY = "pass image_size=(height, width) (--image-size of deit convert)"


def trunk_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that every model of this configuration has, by canonical name."""
    width, mlp_width = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, config.tokens, width),
        "embeddings.patch_embeddings.projection.weight": (width, config.num_channels, *config.patch_hw),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    if isinstance(config, DeiTConfig):
        shapes["embeddings.distillation_token"] = (1, 1, width)
    for layer in range(config.num_hidden_layers):
        heads = config.num_attention_heads - len(set(config.pruned_heads.get(layer, ())))
        attention_width = heads * (width // config.num_attention_heads)
        block: dict[str, tuple[int, ...]] = {
            "layernorm_before.weight": (width,),
            "layernorm_before.bias": (width,),
            "attention.qkv.weight": (3 * attention_width, width),
            "attention.o_proj.weight": (width, attention_width),
            "attention.o_proj.bias": (width,),
            "layernorm_after.weight": (width,),
            "layernorm_after.bias": (width,),
            "mlp.fc1.weight": (mlp_width, width),
            "mlp.fc1.bias": (mlp_width,),
            "mlp.fc2.weight": (width, mlp_width),
            "mlp.fc2.bias": (width,),
        }
        if config.qkv_bias:
            block["attention.qkv.bias"] = (3 * attention_width,)
        if config.layer_scale is not None:
            block["layer_scale"] = (2, width)
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def other_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that only some models of this configuration have, by canonical name.

    They are heads, pooler, mask token and decoder.
    """
    width = config.hidden_size
    pooler_width, pixels = config.pooler_output_size or width, config.num_channels * config.encoder_stride**2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.mask_token": (1, 1, width),
        "pooler.dense.weight": (pooler_width, width),
        "pooler.dense.bias": (pooler_width,),
        "decoder.0.weight": (pixels, width, 1, 1),
        "decoder.0.bias": (pixels,),
    }
    for head in HEADS:
        shapes |= {f"{head}.weight": (config.num_labels, width), f"{head}.bias": (config.num_labels,)}
    return shapes


def check_shapes(shapes: Shapes, config: ViTConfig, source: str, any_classes: bool = False) -> None:
    """Checks that a checkpoint has the tensors of its configuration.

    Args:
        shapes: canonical name -> shape.
        config: configuration to check against.
        source: name of the checkpoint in error messages.
        any_classes: accept heads with another number of classes than the configuration, as long as they agree.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; the message names the first.
    """
    if any_classes:
        classes = {shape[0] for head in HEADS if (shape := shapes.get(f"{head}.weight"))}
        config = config.replace(num_labels=max(classes)) if classes else config
    required, optional = trunk_shapes(config), other_shapes(config)
    if missing := required.keys() - shapes.keys():
        raise CheckpointError(
            f"{source} lacks {min(missing)}", "the checkpoint is incomplete, or its config.json belongs to another model"
        )
    if unexpected := shapes.keys() - required.keys() - optional.keys():
        raise CheckpointError(
            f"{source} has {printable(min(unexpected))}, which a model of its configuration does not have",
            "the checkpoint and its config.json belong to different models",
        )
    for name, shape in shapes.items():
        if shape != (expected := required.get(name) or optional[name]):
            raise CheckpointError(
                f"{name} in {source} has shape {shape}, but the configuration gives {expected}",
                "the checkpoint and its configuration belong to different models",
            )
    for first, second in (("weight", "bias"), ("bias", "weight")):
        for name in shapes:
            partner = f"{name.removesuffix(first)}{second}"
            if name.endswith(f".{first}") and name in optional and partner not in shapes:
                raise CheckpointError(f"{source} lacks {partner}", "the checkpoint is incomplete")


def find_architecture(names: Collection[str], config: ViTConfig, stored: object, source: str) -> str:
    """Returns the model class that has these tensors, such as ``DeiTForImageClassification``.

    Args:
        names: canonical names of the tensors.
        config: configuration of the model.
        stored: ``architectures`` of ``config.json``. Its first entry decides for a classifier without classes, which has no
            head.
        source: name of the checkpoint in error messages.

    Raises:
        CheckpointError: no class has this combination of heads.
    """
    family = "DeiT" if isinstance(config, DeiTConfig) else "ViT"
    heads = {name.removesuffix(".weight") for name in names if name.startswith((*HEADS, "decoder")) and name.endswith("weight")}
    first = stored[0] if isinstance(stored, list) and stored else None
    classifiers = {f"{family}{suffix}" for suffix in _CLASSES if "Classification" in suffix}
    if isinstance(first, str) and first in classifiers and not heads and config.num_labels == 0:
        return first
    for suffix, class_heads in _CLASSES.items():
        if heads == class_heads and not (suffix.endswith("Teacher") and family == "ViT"):
            return f"{family}{suffix}"
    raise CheckpointError(
        f"{source} has a {family} trunk and the heads {', '.join(sorted(heads))}",
        "a plain model has `classifier`, a distilled one `cls_classifier` and `distillation_classifier`",
    )


def infer_config(shapes: Shapes, known: Mapping[str, Any], hints: Mapping[str, Any], source: str) -> ViTConfig:
    """Infers the configuration of a model from the shapes of its tensors.

    Args:
        shapes: canonical name -> shape.
        known: fields stored in a file beside the tensors.
        hints: fields from the user. Only those that shapes do not determine are used, and ``image_size`` for a grid of patches
            that is not square.
        source: name of the checkpoint in error messages.

    Raises:
        CheckpointError: the number of attention heads or the image size cannot be inferred, or the shapes are inconsistent.
    """
    width, channels, *patch = _shape(shapes, "embeddings.patch_embeddings.projection.weight", 4, source)
    _, tokens, _ = _shape(shapes, "embeddings.position_embeddings", 3, source)
    mlp_width, _ = _shape(shapes, "layers.0.mlp.fc1.weight", 2, source)
    distilled = "embeddings.distillation_token" in shapes
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "intermediate_size": mlp_width,
        "num_hidden_layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        "qkv_bias": "layers.0.attention.qkv.bias" in shapes,
        **{name: hints[name] for name in _NOT_IN_SHAPES & hints.keys()},
        **known,
    }
    if "num_attention_heads" not in fields:
        fields["num_attention_heads"] = _attention_heads(width, source)
    if "image_size" not in fields:
        fields["image_size"] = _image_size(tokens - 1 - distilled, patch, hints.get("image_size"), source)
    if not {"num_labels", "id2label"} & fields.keys():
        fields["num_labels"] = next((shapes[name][0] for head in HEADS if shapes.get(name := f"{head}.weight")), 0)
    if (pooler := shapes.get("pooler.dense.weight")) and pooler[0] != width:
        fields["pooler_output_size"] = pooler[0]
    if decoder := shapes.get("decoder.0.weight"):
        fields["encoder_stride"] = math.isqrt(decoder[0] // channels)
    try:
        return (DeiTConfig if distilled else ViTConfig)(**fields)
    except ConfigError as error:
        raise CheckpointError(
            f"The tensors of {source} do not make up a model: {error.problem}", "the checkpoint is corrupt or of another model"
        ) from error


def _shape(shapes: Shapes, name: str, dimensions: int, source: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"{source} lacks {name}", "it is not a DeiT or ViT, or it is incomplete")
    if len(shapes[name]) != dimensions or not all(shapes[name]):
        raise CheckpointError(
            f"{name} in {source} has shape {shapes[name]}", f"it has {dimensions} dimensions in a DeiT or ViT"
        )
    return shapes[name]


def _image_size(patches: int, patch: list[int], hint: Any, source: str) -> Any:
    side = math.isqrt(max(patches, 0))
    if side and side * side == patches:
        return side * patch[0] if patch[0] == patch[1] else (side * patch[0], side * patch[1])
    if hint is None:
        raise CheckpointError(f"{source} has {patches} patches, which is not a square grid", _SIZE_REMEDY)
    return hint


def _attention_heads(width: int, source: str) -> int:
    if width % HEAD_WIDTH or width > _MAX_WIDTH:
        raise CheckpointError(f"{source} does not store the number of attention heads for a width of {width}", _HEADS_REMEDY)
    return width // HEAD_WIDTH
