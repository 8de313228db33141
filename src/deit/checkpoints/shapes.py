"""The shape of every tensor from a configuration, and a configuration from the shapes of tensors. No tensor is needed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from deit.checkpoints.key_maps import shown
from deit.config import DeiTConfig, ViTConfig
from deit.errors import CheckpointError, ConfigError

Shapes = Mapping[str, tuple[int, ...]]

CLASS_HEADS = ("classifier", "cls_classifier", "distillation_classifier")
_HEADS = {
    "Model": frozenset[str](),
    "ForImageClassification": frozenset({"classifier"}),
    "ForImageClassificationWithTeacher": frozenset({"cls_classifier", "distillation_classifier"}),
    "ForMaskedImageModeling": frozenset({"decoder.0"}),
}
_UNTOLD = {"num_attention_heads", "hidden_act", "layer_norm_eps"}
HEAD_WIDTH = 64  # of every published DeiT, and of ViT up to large
_WIDEST = 1024  # from ViT-huge on, heads are wider
_HEADS_REMEDY = "give num_attention_heads (--heads of deit convert)"
_SIZE_REMEDY = "give image_size=(height, width) (--image-size of deit convert)"


def trunk_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of all that every model of this configuration has."""
    width, inner = config.hidden_size, config.intermediate_size
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
        attended = heads * (width // config.num_attention_heads)
        block: dict[str, tuple[int, ...]] = {
            "layernorm_before.weight": (width,),
            "layernorm_before.bias": (width,),
            "attention.qkv.weight": (3 * attended, width),
            "attention.o_proj.weight": (width, attended),
            "attention.o_proj.bias": (width,),
            "layernorm_after.weight": (width,),
            "layernorm_after.bias": (width,),
            "mlp.fc1.weight": (inner, width),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (width, inner),
            "mlp.fc2.bias": (width,),
        }
        if config.qkv_bias:
            block["attention.qkv.bias"] = (3 * attended,)
        if config.layer_scale is not None:
            block["layer_scale"] = (2, width)
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def other_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of what some models of this configuration have: heads, pooler, mask token, decoder."""
    width = config.hidden_size
    pooled, pixels = config.pooler_output_size or width, config.num_channels * config.encoder_stride**2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.mask_token": (1, 1, width),
        "pooler.dense.weight": (pooled, width),
        "pooler.dense.bias": (pooled,),
        "decoder.0.weight": (pixels, width, 1, 1),
        "decoder.0.bias": (pixels,),
    }
    for head in CLASS_HEADS:
        shapes |= {f"{head}.weight": (config.num_labels, width), f"{head}.bias": (config.num_labels,)}
    return shapes


def check_shapes(found: Shapes, config: ViTConfig, where: str, any_classes: bool = False) -> None:
    """Whether a checkpoint's tensors are those of its configuration.

    Args:
        found: canonical name -> shape.
        config: what they must fit.
        where: the checkpoint, for the message.
        any_classes: the heads may be of another number of classes than the configuration says, if all are of the same.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; the message names the first.
    """
    if any_classes:
        classes = {shape[0] for head in CLASS_HEADS if (shape := found.get(f"{head}.weight"))}
        config = config.replace(num_labels=max(classes)) if classes else config
    trunk, others = trunk_shapes(config), other_shapes(config)
    if missing := trunk.keys() - found.keys():
        raise CheckpointError(f"{where} lacks {min(missing)}", "the checkpoint is incomplete, or its config.json is another's")
    if over := found.keys() - trunk.keys() - others.keys():
        raise CheckpointError(
            f"{where} holds {shown(min(over))}, which a model of its configuration does not have",
            "the checkpoint and its config.json belong to different models",
        )
    for name, shape in found.items():
        if shape != (expected := trunk.get(name) or others[name]):
            raise CheckpointError(
                f"{name} in {where} is {shape}, and the configuration makes it {expected}",
                "the checkpoint and its configuration belong to different models",
            )
    for first, second in (("weight", "bias"), ("bias", "weight")):
        for name in found:
            if name.endswith(f".{first}") and name in others and (twin := f"{name.removesuffix(first)}{second}") not in found:
                raise CheckpointError(f"{where} lacks {twin}", "the checkpoint is incomplete")


def find_architecture(found: Collection[str], config: ViTConfig, stored: object, where: str) -> str:
    """Which of our classes these tensors are of.

    Args:
        found: canonical names.
        config: of the model.
        stored: ``architectures`` of ``config.json``; the first is taken where it is one of ours and agrees with the heads.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: these heads together are of no class.
    """
    family = "DeiT" if isinstance(config, DeiTConfig) else "ViT"
    heads = {
        name.removesuffix(".weight") for name in found if name.startswith((*CLASS_HEADS, "decoder")) and name.endswith("weight")
    }
    first = stored[0] if isinstance(stored, list) and stored else None
    classifiers = {f"{family}{suffix}" for suffix in _HEADS if "Classification" in suffix}
    if isinstance(first, str) and first in classifiers and not heads and config.num_labels == 0:
        return first
    for suffix, wanted in _HEADS.items():
        if heads == wanted and not (suffix.endswith("Teacher") and family == "ViT"):
            return f"{family}{suffix}"
    raise CheckpointError(
        f"{where} has a trunk of {family} and the heads {', '.join(sorted(heads))}",
        "a plain model has `classifier`, a distilled one `cls_classifier` and `distillation_classifier`",
    )


def infer_config(found: Shapes, known: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> ViTConfig:
    """The configuration of a model whose tensors have these shapes.

    Args:
        found: canonical name -> shape.
        known: fields that stand in a file beside the tensors.
        hints: fields from the user. Taken are those that shapes do not tell, and ``image_size`` for a grid that is no square.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: the number of attention heads or the image's sides cannot be told, or no such model can be.
    """
    width, channels, *patch = _shape(found, "embeddings.patch_embeddings.projection.weight", 4, where)
    _, tokens, _ = _shape(found, "embeddings.position_embeddings", 3, where)
    inner, _ = _shape(found, "layers.0.mlp.fc1.weight", 2, where)
    distilled = "embeddings.distillation_token" in found
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "intermediate_size": inner,
        "num_hidden_layers": len({name.split(".")[1] for name in found if name.startswith("layers.")}),
        "qkv_bias": "layers.0.attention.qkv.bias" in found,
        **{name: hints[name] for name in _UNTOLD & hints.keys()},
        **known,
    }
    if "num_attention_heads" not in fields:
        fields["num_attention_heads"] = _heads(width, where)
    if "image_size" not in fields:
        fields["image_size"] = _image_size(tokens - 1 - distilled, patch, hints.get("image_size"), where)
    if not {"num_labels", "id2label"} & fields.keys():
        fields["num_labels"] = next((found[name][0] for head in CLASS_HEADS if found.get(name := f"{head}.weight")), 0)
    if (pooler := found.get("pooler.dense.weight")) and pooler[0] != width:
        fields["pooler_output_size"] = pooler[0]
    if decoder := found.get("decoder.0.weight"):
        fields["encoder_stride"] = math.isqrt(decoder[0] // channels)
    try:
        return (DeiTConfig if distilled else ViTConfig)(**fields)
    except ConfigError as error:
        raise CheckpointError(
            f"{where} makes no model: {error.problem}", "the checkpoint is damaged, or of another kind"
        ) from error


def _shape(found: Shapes, name: str, dimensions: int, where: str) -> tuple[int, ...]:
    if name not in found:
        raise CheckpointError(f"{where} lacks {name}", "it is none of a DeiT or ViT, or incomplete")
    if len(found[name]) != dimensions or not all(found[name]):
        raise CheckpointError(f"{name} in {where} is {found[name]}", f"it has {dimensions} dimensions in a DeiT or ViT")
    return found[name]


def _image_size(patches: int, patch: list[int], hint: Any, where: str) -> Any:
    side = math.isqrt(max(patches, 0))
    if side and side * side == patches:
        return side * patch[0] if patch[0] == patch[1] else (side * patch[0], side * patch[1])
    if hint is None:
        raise CheckpointError(f"{where} has {patches} patches, which make no square", _SIZE_REMEDY)
    return hint


def _heads(width: int, where: str) -> int:
    if width % HEAD_WIDTH or width > _WIDEST:
        raise CheckpointError(f"{where} does not say how many attention heads share its width of {width}", _HEADS_REMEDY)
    return width // HEAD_WIDTH
