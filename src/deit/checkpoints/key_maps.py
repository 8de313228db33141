"""The names that other projects give to the same tensors: pure data, and the functions that apply it.

A *canonical* name is what a tensor is called in our own models without the trunk's prefix (``deit.`` or ``vit.``). On disk
stand the names of transformers 4, which both 4.x and 5.x read, and which 5.x writes too unless it is told to write its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from deit.errors import CheckpointError

Rows = tuple[tuple[str, str], ...]

# (canonical, theirs) as whole-name patterns: {n} stands for a layer's number, {p} for weight or bias. On their side
# "a|b|c" are three tensors that stand one below the other in ours.
_HEADS: Rows = tuple(
    (f"{head}.{{p}}",) * 2 for head in ("classifier", "cls_classifier", "distillation_classifier", "decoder.0")
)
_OUTSIDE: Rows = tuple(
    (name,) * 2
    for name in (
        "embeddings.cls_token",
        "embeddings.distillation_token",
        "embeddings.mask_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.{p}",
        "layernorm.{p}",
        "pooler.dense.{p}",
    )
)
_TRANSFORMERS_4: Rows = (
    *_OUTSIDE,
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
)
_SAME_IN_5: Rows = tuple(
    (f"layers.{{n}}.{part}.{{p}}",) * 2
    for part in ("layernorm_before", "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
)
_TRANSFORMERS_5: Rows = (
    *_OUTSIDE,
    *_SAME_IN_5,
    (
        "layers.{n}.attention.qkv.{p}",
        "layers.{n}.attention.q_proj.{p}|layers.{n}.attention.k_proj.{p}|layers.{n}.attention.v_proj.{p}",
    ),
)
_OURS: Rows = (*_OUTSIDE, *_SAME_IN_5, ("layers.{n}.attention.qkv.{p}",) * 2, ("layers.{n}.layer_scale",) * 2)
_TIMM: Rows = (
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
_HEAD_TIMM: Rows = (("classifier.{p}", "head.{p}"),)
_HEADS_TIMM: Rows = (("cls_classifier.{p}", "head.{p}"), ("distillation_classifier.{p}", "head_dist.{p}"))

TRUNKS = ("deit.", "vit.")
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile put these before every name
LAYER = re.compile(r"((?:deit\.|vit\.)?(?:encoder\.layer|layers|blocks)\.)(0|[1-9][0-9]{0,2})(\..+)")
MAX_NAME = 200  # characters


class Part(NamedTuple):
    """Where a tensor of theirs goes: to the place-th of so many parts of ours, whose name may hold {n}."""

    ours: str
    place: int
    parts: int


Table = Mapping[str, Part]


def _table(trunk: Rows, heads: Rows, prefixes: Iterable[str] = ("",)) -> Table:
    """Their name, with {n} for a layer's number -> where it goes."""
    rows = [(ours, theirs, prefix) for ours, theirs in trunk for prefix in prefixes]
    rows += [(ours, theirs, "") for ours, theirs in heads]
    table = {}
    for ours, theirs, prefix in rows:
        names = theirs.split("|")
        for ending in ("weight", "bias") if "{p}" in ours else ("",):
            for place, name in enumerate(names):
                table[(prefix + name).replace("{p}", ending)] = Part(ours.replace("{p}", ending), place, len(names))
    return table


_TABLES: Mapping[str, tuple[str, Table]] = {
    "transformers-4": ("transformers", _table(_TRANSFORMERS_4, _HEADS, ("", *TRUNKS))),
    "transformers-5": ("transformers", _table(_TRANSFORMERS_5, _HEADS, ("", *TRUNKS))),
    "deit": ("deit", _table(_OURS, _HEADS, ("", *TRUNKS))),
    "timm": ("timm", _table(_TIMM, _HEAD_TIMM)),
    "timm-distilled": ("timm", _table(_TIMM, _HEADS_TIMM)),
}


def _inverse(table: Table) -> Mapping[str, tuple[str, ...]]:
    """Canonical name, with {n} -> their names, without a trunk's prefix, from the top of the joined tensor to its end."""
    found: dict[str, dict[int, str]] = {}
    for theirs, (ours, place, _) in table.items():
        if not theirs.startswith(TRUNKS):
            found.setdefault(ours, {})[place] = theirs
    return {ours: tuple(names[place] for place in sorted(names)) for ours, names in found.items()}


_INVERSES = {name: _inverse(table) for name, (_, table) in _TABLES.items()}


def locate(names: Collection[str]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Whose names these are, and which of them make up each tensor of ours.

    Returns:
        ``transformers``, ``timm`` or ``deit``; and canonical name -> their names, whose tensors are to be joined along the
        first axis in that order.

    Raises:
        CheckpointError: a tensor that no table knows or that stands there twice, or a part of a joined one that is missing.
    """
    keys = {name: _key(name) for name in names}
    distilled = any(key == "dist_token" or key.startswith("head_dist.") for key, _ in keys.values())
    candidates = [name for name in _TABLES if name != ("timm" if distilled else "timm-distilled")]
    best = max(candidates, key=lambda name: sum(key in _TABLES[name][1] for key, _ in keys.values()))
    layout, table = _TABLES[best]
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name, (key, layer) in keys.items():
        if key not in table:
            raise CheckpointError(
                f"The checkpoint holds an unknown tensor, {shown(name)}", "it is none of a DeiT or ViT classifier"
            )
        pattern, place, count = table[key]
        ours = pattern.replace("{n}", layer)
        if place in parts.setdefault(ours, {}):
            raise CheckpointError(f"The checkpoint holds {ours} twice, once as {name}", "remove one of the two")
        parts[ours][place] = name
        counts[ours] = count
    for ours, count in counts.items():
        if len(parts[ours]) != count:
            raise CheckpointError(f"A part of {ours} is missing", "the checkpoint is incomplete")
    return layout, {ours: tuple(found[place] for place in sorted(found)) for ours, found in parts.items()}


def to_layout(state: Mapping[str, Tensor], layout: str, trunk: str = "") -> dict[str, Tensor]:
    """Canonical tensors under the names of another format.

    Args:
        state: canonical name -> tensor.
        layout: ``transformers-4``, ``transformers-5``, ``deit``, ``timm`` or ``timm-distilled``.
        trunk: what stands before every name but the heads'.

    Raises:
        CheckpointError: a tensor that has no name in that format.
    """
    inverse = _INVERSES[layout]
    heads = {ours for ours, _ in _HEADS}
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key, layer = _key(name)
        if key not in inverse:
            raise CheckpointError(f"The tensor {shown(name)} has no name in that format", "choose another format")
        prefix = "" if re.sub(r"\.(weight|bias)$", ".{p}", key) in heads else trunk
        names = [prefix + part.replace("{n}", layer) for part in inverse[key]]
        theirs.update(zip(names, tensor.chunk(len(names)), strict=True))
    return theirs


def shown(name: str) -> str:
    """A name from a file, fit for an error message."""
    short = name if len(name) <= 100 else f"{name[:97]}..."
    return short if short.isprintable() and short else repr(short)


def _key(name: str) -> tuple[str, str]:
    """A name without wrappers and with {n} for the layer's number; and that number."""
    if len(name) > MAX_NAME or "{" in name:
        return "{", ""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    match = LAYER.fullmatch(name)
    return (f"{match[1]}{{n}}{match[3]}", match[2]) if match else (name, "")
