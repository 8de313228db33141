"""The names that other projects give to the same tensors: pure data, and the two functions that apply it.

Our own names are those of transformers 5 with queries, keys and values in one tensor. On disk stand the names of
transformers 4, which both 4.x and 5.x read, and which 5.x writes too unless it is told to write its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deit.errors import CheckpointError

Rows = tuple[tuple[str, str], ...]

# (ours, theirs) as whole-name patterns: {n} stands for a layer's number, {p} for weight or bias. On their side
# "a|b|c" are three tensors that stand one below the other in ours.
_TRUNK_TRANSFORMERS: Rows = (
    ("embeddings.cls_token", "embeddings.cls_token"),
    ("embeddings.distillation_token", "embeddings.distillation_token"),
    ("embeddings.position_embeddings", "embeddings.position_embeddings"),
    ("embeddings.patch_embeddings.projection.{p}", "embeddings.patch_embeddings.projection.{p}"),
    ("layers.{n}.layernorm_before.{p}", "encoder.layer.{n}.layernorm_before.{p}"),
    (
        "layers.{n}.attention.qkv.{p}",
        "encoder.layer.{n}.attention.attention.query.{p}"
        "|encoder.layer.{n}.attention.attention.key.{p}"
        "|encoder.layer.{n}.attention.attention.value.{p}",
    ),
    ("layers.{n}.attention.o_proj.{p}", "encoder.layer.{n}.attention.output.dense.{p}"),
    ("layers.{n}.layernorm_after.{p}", "encoder.layer.{n}.layernorm_after.{p}"),
    ("layers.{n}.mlp.fc1.{p}", "encoder.layer.{n}.intermediate.dense.{p}"),
    ("layers.{n}.mlp.fc2.{p}", "encoder.layer.{n}.output.dense.{p}"),
    ("layernorm.{p}", "layernorm.{p}"),
    ("pooler.dense.{p}", "pooler.dense.{p}"),
)
_TRUNK_TRANSFORMERS_5: Rows = (
    (
        "layers.{n}.attention.qkv.{p}",
        "layers.{n}.attention.q_proj.{p}|layers.{n}.attention.k_proj.{p}|layers.{n}.attention.v_proj.{p}",
    ),
    *(
        (f"layers.{{n}}.{part}.{{p}}",) * 2
        for part in ("layernorm_before", "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
    ),
)
_TRUNK_TIMM: Rows = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    ("layers.{n}.layernorm_before.{p}", "blocks.{n}.norm1.{p}"),
    ("layers.{n}.attention.qkv.{p}", "blocks.{n}.attn.qkv.{p}"),
    ("layers.{n}.attention.o_proj.{p}", "blocks.{n}.attn.proj.{p}"),
    ("layers.{n}.layernorm_after.{p}", "blocks.{n}.norm2.{p}"),
    ("layers.{n}.mlp.fc1.{p}", "blocks.{n}.mlp.fc1.{p}"),
    ("layers.{n}.mlp.fc2.{p}", "blocks.{n}.mlp.fc2.{p}"),
    ("layernorm.{p}", "norm.{p}"),
)


def _below(prefix: str, rows: Rows, same: bool) -> Rows:
    """The trunk's rows as they stand inside a classifier, on our side or on both."""
    return tuple(
        (prefix + ours, "|".join(prefix + part for part in theirs.split("|")) if same else theirs) for ours, theirs in rows
    )


_HEADS: Rows = tuple((f"{head}.{{p}}",) * 2 for head in ("classifier", "cls_classifier", "distillation_classifier"))

# Both generations of names are read; the first that fits, the older, is written.
_TRUNKS_TRANSFORMERS = (*_TRUNK_TRANSFORMERS, *_TRUNK_TRANSFORMERS_5)
TRANSFORMERS: Rows = (
    *_TRUNKS_TRANSFORMERS,
    *_below("deit.", _TRUNKS_TRANSFORMERS, same=True),
    *_below("vit.", _TRUNKS_TRANSFORMERS, same=True),
    *_HEADS,
)
TIMM_VIT: Rows = (*_below("vit.", _TRUNK_TIMM, same=False), ("classifier.{p}", "head.{p}"))
TIMM_DEIT: Rows = (
    *_below("deit.", _TRUNK_TIMM, same=False),
    ("cls_classifier.{p}", "head.{p}"),
    ("distillation_classifier.{p}", "head_dist.{p}"),
)


def to_ours(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Their tensors under our names.

    Raises:
        CheckpointError: a tensor that the table does not know or that stands there twice, or a part of a joined one that is
            missing or does not fit.
    """
    parts: dict[str, dict[int, Tensor]] = {}
    wanted: dict[str, int] = {}
    for name, tensor in state.items():
        ours, place, count = _find_theirs(name, rows)
        if place in parts.setdefault(ours, {}):
            raise CheckpointError(f"The checkpoint holds {ours} twice, once as {name}", "remove one of the two")
        parts[ours][place] = tensor
        wanted[ours] = count
    return {name: _joined(name, parts[name], count) for name, count in wanted.items()}


def from_ours(state: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Our tensors under their names; the inverse of :func:`to_ours`."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for ours, pattern in rows:
            match = _match(ours, name)
            if match:
                names = [_fill(part, match) for part in pattern.split("|")]
                theirs.update(zip(names, tensor.chunk(len(names)), strict=True))
                break
        else:
            raise CheckpointError(f"The tensor {name} has no name in that format", "choose another format")
    return theirs


def _joined(name: str, parts: Mapping[int, Tensor], count: int) -> Tensor:
    if len(parts) != count:
        raise CheckpointError(f"A part of {name} is missing", "the checkpoint is incomplete")
    if count == 1:
        return parts[0]
    if len({part.shape for part in parts.values()}) > 1 or not parts[0].ndim:
        raise CheckpointError(f"The parts of {name} do not fit together", "the checkpoint is damaged")
    return torch.cat([parts[place] for place in range(count)])


def _find_theirs(name: str, rows: Rows) -> tuple[str, int, int]:
    for ours, pattern in rows:
        names = pattern.split("|")
        for place, part in enumerate(names):
            match = _match(part, name)
            if match:
                return _fill(ours, match), place, len(names)
    raise CheckpointError(f"The checkpoint holds an unknown tensor, {name}", "it is none of a DeiT or ViT classifier")


def _match(pattern: str, name: str) -> re.Match[str] | None:
    expression = re.escape(pattern).replace(r"\{n\}", r"(?P<n>\d{1,4})").replace(r"\{p\}", "(?P<p>weight|bias)")
    return re.fullmatch(expression, name)


def _fill(pattern: str, match: re.Match[str]) -> str:
    for key, value in match.groupdict().items():
        pattern = pattern.replace(f"{{{key}}}", value)
    return pattern
