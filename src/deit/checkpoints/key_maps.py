"""Tensor names of other projects: tables of keys, and the functions that apply them.

A *canonical* name is the name of a tensor in the models of this package without the trunk's prefix (``deit.`` or ``vit.``).
Saved models use the names of transformers 4, which 4.x and 5.x can load, and which 5.x also writes by default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from deit.errors import CheckpointError

Rows = tuple[tuple[str, str], ...]

CLASS_HEADS = ("classifier", "cls_classifier")  # linear heads on the class token: of models with one head, and with two
HEADS = (*CLASS_HEADS, "distillation_classifier")  # all linear heads

# Rows of (canonical name, name in the other project). {n} stands for the index of a layer, {p} for weight or bias. "a|b|c" are
# three tensors that are concatenated along the first axis in the canonical tensor.
_HEAD_ROWS: Rows = tuple((f"{head}.{{p}}",) * 2 for head in (*HEADS, "decoder.0"))
_OUTER_ROWS: Rows = tuple(
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
    *_OUTER_ROWS,
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
_LAYER_ROWS: Rows = tuple(  # the same in transformers 5 as here
    (f"layers.{{n}}.{module}.{{p}}",) * 2
    for module in ("layernorm_before", "attention.o_proj", "layernorm_after", "mlp.fc1", "mlp.fc2")
)
_TRANSFORMERS_5: Rows = (
    *_OUTER_ROWS,
    *_LAYER_ROWS,
    (
        "layers.{n}.attention.qkv.{p}",
        "layers.{n}.attention.q_proj.{p}|layers.{n}.attention.k_proj.{p}|layers.{n}.attention.v_proj.{p}",
    ),
)
_CANONICAL: Rows = (*_OUTER_ROWS, *_LAYER_ROWS, ("layers.{n}.attention.qkv.{p}",) * 2, ("layers.{n}.layer_scale",) * 2)
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
    # Factors that the readers fold into the linear layer: of timm, and of the authors' DeiT III.
    ("layers.{n}.attention.o_proj.factors", "blocks.{n}.ls1.gamma"),
    ("layers.{n}.attention.o_proj.factors", "blocks.{n}.gamma_1"),
    ("layers.{n}.mlp.fc2.factors", "blocks.{n}.ls2.gamma"),
    ("layers.{n}.mlp.fc2.factors", "blocks.{n}.gamma_2"),
)
_TIMM_HEAD: Rows = (("classifier.{p}", "head.{p}"),)
_TIMM_DISTILLED_HEADS: Rows = (("cls_classifier.{p}", "head.{p}"), ("distillation_classifier.{p}", "head_dist.{p}"))
_MMPRETRAIN: Rows = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.{p}", "patch_embed.projection.{p}"),
    ("layers.{n}.layernorm_before.{p}", "layers.{n}.ln1.{p}"),
    ("layers.{n}.attention.qkv.{p}", "layers.{n}.attn.qkv.{p}"),
    ("layers.{n}.attention.o_proj.{p}", "layers.{n}.attn.proj.{p}"),
    ("layers.{n}.attention.o_proj.factors", "layers.{n}.attn.gamma1.weight"),
    ("layers.{n}.layernorm_after.{p}", "layers.{n}.ln2.{p}"),
    ("layers.{n}.mlp.fc1.{p}", "layers.{n}.ffn.layers.0.0.{p}"),
    ("layers.{n}.mlp.fc2.{p}", "layers.{n}.ffn.layers.1.{p}"),
    ("layers.{n}.mlp.fc2.factors", "layers.{n}.ffn.gamma2.weight"),
    ("layernorm.{p}", "ln1.{p}"),
)
_MMPRETRAIN_HEAD: Rows = (("classifier.{p}", "head.layers.head.{p}"),)
_MMPRETRAIN_DISTILLED_HEADS: Rows = (
    ("cls_classifier.{p}", "head.layers.head.{p}"),
    ("distillation_classifier.{p}", "head.layers.head_dist.{p}"),
)
_TORCHVISION: Rows = (
    ("embeddings.cls_token", "class_token"),
    ("embeddings.position_embeddings", "encoder.pos_embedding"),
    ("embeddings.patch_embeddings.projection.{p}", "conv_proj.{p}"),
    ("layers.{n}.layernorm_before.{p}", "encoder.layers.encoder_layer_{n}.ln_1.{p}"),
    ("layers.{n}.attention.qkv.{p}", "encoder.layers.encoder_layer_{n}.self_attention.in_proj_{p}"),
    ("layers.{n}.attention.o_proj.{p}", "encoder.layers.encoder_layer_{n}.self_attention.out_proj.{p}"),
    ("layers.{n}.layernorm_after.{p}", "encoder.layers.encoder_layer_{n}.ln_2.{p}"),
    ("layers.{n}.mlp.fc1.{p}", "encoder.layers.encoder_layer_{n}.mlp.0.{p}"),
    ("layers.{n}.mlp.fc1.{p}", "encoder.layers.encoder_layer_{n}.mlp.linear_1.{p}"),  # of files before torchvision 0.14
    ("layers.{n}.mlp.fc2.{p}", "encoder.layers.encoder_layer_{n}.mlp.3.{p}"),
    ("layers.{n}.mlp.fc2.{p}", "encoder.layers.encoder_layer_{n}.mlp.linear_2.{p}"),
    ("layernorm.{p}", "encoder.ln.{p}"),
)
_TORCHVISION_HEAD: Rows = (("classifier.{p}", "heads.head.{p}"),)

# What other transformers have and the models here do not -> how to call it. The first pattern that a tensor name has decides.
_OTHER_MODELS = tuple(
    (re.compile(pattern), problem, remedy or "use a DeiT or plain ViT; timm's own model of it can be a teacher")
    for pattern, problem, remedy in (
        (
            r"lora_|\.base_layer\.|modules_to_save",
            "is a PEFT model whose adapter is not merged",
            "merge it first, model.merge_and_unload(), or save the adapter alone with save_pretrained",
        ),
        (r"_flat_param", "is one shard of an FSDP model", "save the full state dict"),
        (
            r"_packed_params|weight_(packed|scale|zero_point)|qweight|qzeros|absmax|quant_(map|state)|weight_format|\.SCB|_observer",
            "is quantized",
            "save the weights in floating point",
        ),
        (r"relative_position|rel_pos|\bq_bias|\bv_bias", "has relative positions or no bias of keys, as BEiT", ""),
        (r"token_only|attn\.proj_[lw]|class_attn", "has class attention or talking heads, as CaiT", ""),
        (r"reg_token|register_tokens|storage_tokens", "has register tokens", ""),
        (r"\b[qk]_norm\b", "normalizes queries and keys", ""),
        (r"norm_pre|ln_pre|pre_layrnorm", "has a layer norm before its first layer, as CLIP", ""),
        (r"fc_norm", "classifies the mean of the patches instead of the class token", ""),
        (r"attn_pool", "pools with attention instead of the class token", ""),
        (r"pre_logits", "has a representation layer before its head", ""),
        (r"w12|\bw3\b|fc1_g|weights_in", "has gated MLPs", ""),
        (r"rope|freqs_cis", "has rotary position embeddings", ""),
    )
)

TRUNK_PREFIXES = ("deit.", "vit.")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
MAX_NAME_LENGTH = 200
_LAYER = re.compile(
    r"((?:deit\.|vit\.)?(?:encoder\.layer\.|layers\.|blocks\.|encoder\.layers\.encoder_layer_))(0|[1-9][0-9]{0,2})(\..+)"
)


class TensorSlice(NamedTuple):
    """Slice of a canonical tensor that one tensor of another project holds.

    Attributes:
        canonical: name of the canonical tensor, with {n} for the index of a layer.
        position: position of the slice along the first axis.
        total: number of equal slices of the canonical tensor.
    """

    canonical: str
    position: int
    total: int


Table = Mapping[str, TensorSlice]


def _table(trunk: Rows, heads: Rows, prefixes: Iterable[str] = ("",)) -> Table:
    """Returns a map from the other project's names, with {n} for the index of a layer, to slices of canonical tensors."""
    rows = [(canonical, other, prefix) for canonical, other in trunk for prefix in prefixes]
    rows += [(canonical, other, "") for canonical, other in heads]
    table = {}
    for canonical, other, prefix in rows:
        names = other.split("|")
        for parameter in ("weight", "bias") if "{p}" in canonical else ("",):
            for position, name in enumerate(names):
                key = (prefix + name).replace("{p}", parameter)
                table[key] = TensorSlice(canonical.replace("{p}", parameter), position, len(names))
    return table


# layout of a file -> project, and table
_TABLES: Mapping[str, tuple[str, Table]] = {
    "transformers-4": ("transformers", _table(_TRANSFORMERS_4, _HEAD_ROWS, ("", *TRUNK_PREFIXES))),
    "transformers-5": ("transformers", _table(_TRANSFORMERS_5, _HEAD_ROWS, ("", *TRUNK_PREFIXES))),
    "deit": ("deit", _table(_CANONICAL, _HEAD_ROWS, ("", *TRUNK_PREFIXES))),
    "timm": ("timm", _table(_TIMM, _TIMM_HEAD)),
    "timm-distilled": ("timm", _table(_TIMM, _TIMM_DISTILLED_HEADS)),
    "mmpretrain": ("mmpretrain", _table(_MMPRETRAIN, _MMPRETRAIN_HEAD)),
    "mmpretrain-distilled": ("mmpretrain", _table(_MMPRETRAIN, _MMPRETRAIN_DISTILLED_HEADS)),
    "torchvision": ("torchvision", _table(_TORCHVISION, _TORCHVISION_HEAD)),
}


def _inverse(table: Table) -> Mapping[str, tuple[str, ...]]:
    """Returns a map from canonical names, with {n}, to the other project's names without prefix, in the order of the slices."""
    slices: dict[str, dict[int, str]] = {}
    for name, (canonical, position, _) in table.items():
        if not name.startswith(TRUNK_PREFIXES):
            slices.setdefault(canonical, {})[position] = name
    return {canonical: _in_order(names) for canonical, names in slices.items()}


def _in_order(names: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(names[position] for position in sorted(names))


_INVERSES = {layout: _inverse(table) for layout, (_, table) in _TABLES.items()}


def identify_layout(names: Collection[str]) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Identifies the project that tensor names come from, and maps canonical names to them.

    Returns:
        ``transformers``, ``timm``, ``mmpretrain``, ``torchvision`` or ``deit``; and canonical name -> names of the tensors to
        concatenate along the first axis, in that order.

    Raises:
        CheckpointError: unknown or duplicate tensor, or missing slice of a concatenated tensor.
    """
    layout = _best_layout(names)
    project, table = _TABLES[layout]
    keys = {name: _split_layer(name) for name in names}
    slices: dict[str, dict[int, str]] = {}
    totals: dict[str, int] = {}
    for name, (key, layer) in keys.items():
        if key not in table:
            raise _unknown_tensor(names, table)
        pattern, position, total = table[key]
        canonical = pattern.replace("{n}", layer)
        if position in slices.setdefault(canonical, {}):
            raise CheckpointError(f"The checkpoint has {canonical} twice, once as {name}", "remove one of the two")
        slices[canonical][position] = name
        totals[canonical] = total
    for canonical, total in totals.items():
        if len(slices[canonical]) != total:
            raise CheckpointError(f"A slice of {canonical} is missing", "the checkpoint is incomplete")
    return project, {canonical: _in_order(slice_names) for canonical, slice_names in slices.items()}


def locate_tensors(names: Collection[str]) -> dict[str, TensorSlice]:
    """Returns the place of each tensor of another project in the canonical tensors.

    Raises:
        CheckpointError: unknown tensor, or two with the same place.
    """
    _, table = _TABLES[_best_layout(names)]
    places: dict[str, TensorSlice] = {}
    for name in names:
        key, layer = _split_layer(name)
        if key not in table:
            raise _unknown_tensor(names, table)
        place = table[key]
        places[name] = place._replace(canonical=place.canonical.replace("{n}", layer))
    if len(set(places.values())) != len(places):
        raise CheckpointError("Two of its tensors have the same place in a model", "save it again")
    return places


def names_in_layout(place: TensorSlice, layout: str, trunk: str = "") -> str:
    """Returns the name of a slice of a canonical tensor in another project; ``trunk`` precedes all names but those of heads.

    Raises:
        CheckpointError: it has no name in this layout.
    """
    key, layer = _split_layer(place.canonical)
    names = _INVERSES[layout].get(key, ())
    if len(names) != place.total:
        raise CheckpointError(f"The tensor {printable(place.canonical)} has no name in that format", "choose another format")
    return ("" if key.startswith(HEADS) else trunk) + names[place.position].replace("{n}", layer)


def _best_layout(names: Collection[str], two_heads: bool = False) -> str:
    """Returns the layout that has the most of the names; of those with two heads if ``two_heads``, or if a name says so."""
    keys = {name: _split_layer(name) for name in names}
    second_head = ("head_dist.", "head.layers.head_dist.")
    distilled = two_heads or any(key == "dist_token" or key.startswith(second_head) for key, _ in keys.values())
    candidates = [name for name in _TABLES if f"{name}-distilled" not in _TABLES or not distilled]
    candidates = [name for name in candidates if not name.endswith("-distilled") or distilled]
    return max(candidates, key=lambda layout: sum(key in _TABLES[layout][1] for key, _ in keys.values()))


def _unknown_tensor(names: Collection[str], table: Table) -> CheckpointError:
    """Returns the error for names of which at least one is not in a table; it says what the model is, if that is known."""
    unknown = [name for name in names if _split_layer(name)[0] not in table]
    for pattern, problem, remedy in _OTHER_MODELS:
        if name := next((name for name in unknown if len(name) <= MAX_NAME_LENGTH and pattern.search(name)), None):
            return CheckpointError(f"The checkpoint {problem} ({printable(name)})", remedy)
    return CheckpointError(
        f"The checkpoint has an unknown tensor, {printable(unknown[0])}",
        "it is not a DeiT or ViT classifier, or has more than the model: save the model's own state dict",
    )


def canonical_slices(names: Collection[str], two_heads: bool) -> dict[str, TensorSlice]:
    """Maps those names that the closest known layout has to slices of canonical tensors, and leaves out all others.

    The layer of a canonical name is filled in.

    Args:
        names: tensor names, possibly of a part of a model.
        two_heads: whether the model that the tensors are for has two heads; some projects call one of them as a single head.
    """
    keys = {name: _split_layer(name) for name in names}
    _, table = _TABLES[_best_layout(names, two_heads)]
    return {
        name: table[key]._replace(canonical=table[key].canonical.replace("{n}", layer))
        for name, (key, layer) in keys.items()
        if key in table
    }


def to_layout(state: Mapping[str, Tensor], layout: str, trunk: str = "") -> dict[str, Tensor]:
    """Renames canonical tensors to the names of another project.

    Args:
        state: canonical name -> tensor.
        layout: ``transformers-4``, ``transformers-5``, ``deit``, ``timm`` or ``timm-distilled``.
        trunk: prefix of all names except those of heads.

    Raises:
        CheckpointError: a tensor has no name in this layout.
    """
    inverse = _INVERSES[layout]
    head_rows = {canonical for canonical, _ in _HEAD_ROWS}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key, layer = _split_layer(name)
        if key not in inverse:
            raise CheckpointError(f"The tensor {printable(name)} has no name in that format", "choose another format")
        prefix = "" if re.sub(r"\.(weight|bias)$", ".{p}", key) in head_rows else trunk
        names = [prefix + pattern.replace("{n}", layer) for pattern in inverse[key]]
        renamed.update(zip(names, tensor.chunk(len(names)), strict=True))
    return renamed


def printable(name: str) -> str:
    """Returns a name from a file in a form that is safe in an error message."""
    short = name if len(name) <= 100 else f"{name[:97]}..."
    return short if short.isprintable() and short else repr(short)


def _split_layer(name: str) -> tuple[str, str]:
    """Returns a name without wrapper prefixes and with {n} for the index of its layer, and that index."""
    if len(name) > MAX_NAME_LENGTH or "{" in name:
        return "{", ""  # in no table
    while name.startswith(WRAPPER_PREFIXES):
        name = name.partition(".")[2]
    match = _LAYER.fullmatch(name)
    return (f"{match[1]}{{n}}{match[3]}", match[2]) if match else (name, "")
