"""Tensor names of other projects in ``load_state_dict``: those that checkpoints may have, mapped to those of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deit.checkpoints.key_maps import canonical_slices

FACTORS = ".factors"  # suffix of the canonical name of a linear layer's factors of layer scale
TRUNK_MODULES = ("embeddings.", "layers.", "layernorm.", "pooler.")  # modules of the base model


def canonical_name(name: str, base_prefix: str) -> str:
    """Returns the canonical name of a tensor in the state dict of a model."""
    return name.removeprefix(f"{base_prefix}.")


def full_name(canonical: str, base_prefix: str) -> str:
    """Returns the name in the state dict of a model of a tensor with this canonical name.

    Args:
        canonical: canonical name.
        base_prefix: name of the base model within the model; empty for the base model itself.
    """
    return f"{base_prefix}.{canonical}" if base_prefix and canonical.startswith(TRUNK_MODULES) else canonical


def rename_state(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    _metadata: Mapping[str, Any],
    _strict: bool,  # always True, whatever the caller of load_state_dict passes
    missing: list[str],
    *_: object,
) -> None:
    """Renames tensors to the names of the model, in place; a hook that ``load_state_dict`` calls first.

    Tensors may have the names of any project that checkpoints are read from. Those that no project knows keep their names, so
    that they are reported as unexpected. A tensor that other projects store in slices may come in several calls, as from the
    shards of a checkpoint: each slice is written into the current value, and the rest is reported as missing.

    Args:
        module: the model that tensors are loaded into, also within another module.
        state: name -> tensor; only names with ``prefix`` belong to the model.
        prefix: prefix of the names.
        missing: names to report as missing.
    """
    own: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    foreign = given.keys() - own.keys()
    base_prefix: str = module.base_model_prefix if hasattr(module, str(module.base_model_prefix)) else ""  # type: ignore[assignment]
    slices: dict[str, dict[int, str]] = {}
    totals: dict[str, int] = {}
    two_heads = "cls_classifier.weight" in own
    for name, found in canonical_slices(foreign, two_heads).items() if foreign else ():
        target = full_name(found.canonical, base_prefix)
        if target in own or target.endswith(FACTORS):
            slices.setdefault(target, {})[found.position] = name
            totals[target] = found.total
    for target, names in slices.items():
        parts = [given[names[position]] if position in names else None for position in range(totals[target])]
        if (tensor := _join(parts, own.get(target))) is not None:
            for name in names.values():
                del state[prefix + name]
            state[prefix + target] = tensor
            if len(names) < len(parts):
                missing.append(prefix + target)
    _convert_layer_scale(state, prefix, own, slices.keys())


def _join(parts: list[Tensor | None], current: Tensor | None) -> Tensor | None:
    """Concatenates slices. Missing ones are taken from the current value; None if it has none, or is on the meta device."""
    given = [part for part in parts if part is not None]
    if len(given) == len(parts):
        return given[0] if len(given) == 1 else torch.cat(given)
    if current is None or current.is_meta:
        return None
    chunks = current.detach().chunk(len(parts))
    return torch.cat([chunk if part is None else part.to(chunk) for part, chunk in zip(parts, chunks, strict=True)])


def _convert_layer_scale(state: dict[str, Tensor], prefix: str, own: Mapping[str, Tensor], renamed: Collection[str]) -> None:
    """Converts the factors of layer scale, which saved models and most projects do not have.

    Factors of other projects are multiplied into the linear layers before them, as in saved models. A layer that is loaded
    without factors has ones.
    """
    for target in renamed:
        layer = prefix + target.removesuffix(FACTORS)
        if target.endswith(FACTORS) and f"{layer}.weight" in state and f"{layer}.bias" in state:
            factors = state.pop(prefix + target)
            state[f"{layer}.weight"] = state[f"{layer}.weight"] * factors[:, None]
            state[f"{layer}.bias"] = state[f"{layer}.bias"] * factors
    for name, tensor in own.items():
        layer, _, parameter = name.rpartition(".")
        if parameter == "layer_scale" and (
            f"{layer}.attention.qkv.weight" in renamed
            or (f"{prefix}{layer}.attention.qkv.weight" in state and prefix + name not in state)
        ):
            state[prefix + name] = torch.ones_like(tensor)
