"""Reads LoRA adapters of PEFT, merges them into a model, and renames them between transformers' models and ours.

A LoRA adapter adds ``scale * up @ down`` to the weight of a linear layer. transformers has three layers for queries, keys and
values, and our models have one, so that an adapter of one of them concerns a third of the rows of our weight:

- *merged*, the product is added to these rows;
- *renamed for our models*, the factors of the three are combined into one adapter whose ``up`` is block diagonal;
- *renamed for transformers*, ``up`` is cut into three, which share ``down``.

None of this needs PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.checkpoints.key_maps import TensorSlice, locate_tensors, names_in_layout, printable
from deit.checkpoints.tensors import open_tensors
from deit.checkpoints.weights import serialize_tensors
from deit.errors import CheckpointError
from deit.system.files import json_text, read_json, write_files

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_WEIGHTS_NAME = "adapter_model.bin"
PREFIX = "base_model.model."  # of every tensor name in an adapter file

# Settings of PEFT that do not change what a trained adapter computes, or that are read here.
_KNOWN_SETTINGS = frozenset(
    {"r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "bias", "modules_to_save", "target_modules"}
) | frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
_NEUTRAL_INITS = (True, False, "gaussian", "eva", "orthogonal")  # others change the weights of the base model
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B)\.weight|(.+)\.(lora_magnitude_vector)(?:\.weight)?")


@dataclass(frozen=True)
class Lora:
    """Low-rank change of a weight, or of a third of its rows.

    Attributes:
        down: matrix (R, inputs), PEFT's ``lora_A``.
        up: matrix (outputs, R), PEFT's ``lora_B``.
        scale: factor of their product.
        magnitude: norm of each output's weights (outputs), of DoRA; None for LoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    def apply(self, weight: Tensor) -> Tensor:
        """Returns the changed weight (outputs, ...) in float32, or in float64 if it is that."""
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        changed = weight + (self.scale * (self.up.to(weight.dtype) @ self.down.to(weight.dtype))).view_as(weight)
        if self.magnitude is None:
            return changed
        norms: Tensor = changed.flatten(1).norm(dim=1)
        factors: Tensor = self.magnitude.to(weight.dtype) / norms
        return changed * factors.view(-1, *[1] * (changed.ndim - 1))


@dataclass(frozen=True)
class Adapter:
    """Opened adapter.

    Attributes:
        path: its directory.
        settings: content of ``adapter_config.json``.
        loras: place in a canonical weight -> change.
        replaced: place in a canonical tensor -> new values, of trained heads and biases.
        trunk: prefix of the names of the transformer, such as ``vit.``.
    """

    path: Path
    settings: Mapping[str, Any]
    loras: Mapping[TensorSlice, Lora]
    replaced: Mapping[TensorSlice, Tensor]
    trunk: str

    @property
    def base(self) -> str | None:
        """Path or hub name of the model that the adapter was trained on, if it is known."""
        name = self.settings.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def new_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the merged model, given those of its base; checks that the adapter fits.

        Raises:
            CheckpointError: it does not.
        """
        merged = dict(shapes)
        for (name, _, total), tensor in self.replaced.items():
            if total == 1 and (name.startswith(("classifier.", "cls_classifier.", "distillation_classifier."))):
                merged[name] = tuple(tensor.shape)
            elif shapes.get(name) != (total * tensor.shape[0], *tensor.shape[1:]):
                raise self._misfit(name)
        for (name, _, total), lora in self.loras.items():
            shape = merged.get(name, ())
            if not shape or shape[0] != total * lora.up.shape[0] or math.prod(shape[1:]) != lora.down.shape[1]:
                raise self._misfit(name)
        return merged

    def merge(self, name: str, tensor: Tensor | None) -> Tensor:
        """Returns a tensor of the merged model, given that of the base model; None if the base model does not have it."""
        result = tensor
        for (target, position, total), values in self.replaced.items():
            if target == name:
                result = values if total == 1 else _with_rows(result, position, total, values)
        for (target, position, total), lora in self.loras.items():
            if target == name:
                assert result is not None  # new_shapes
                rows = result.chunk(total)[position]
                result = _with_rows(result, position, total, lora.apply(rows))
        assert result is not None
        return result

    def changes(self, name: str) -> bool:
        """Whether the adapter changes a tensor, by canonical name."""
        return any(target.canonical == name for target in (*self.replaced, *self.loras))

    def _misfit(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"The adapter {self.path} does not fit {name} of the base model", "pass the model it was trained on"
        )


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter of PEFT."""
    return path.is_dir() and (path / ADAPTER_CONFIG_NAME).is_file()


def open_adapter(path: Path) -> Adapter:
    """Opens the directory of a LoRA adapter, as ``save_pretrained`` of PEFT writes it.

    Raises:
        CheckpointError: it is not a LoRA adapter, is incomplete, or has settings that are not supported.
    """
    settings = read_json(path / ADAPTER_CONFIG_NAME)
    _check_settings(settings, path)
    file = open_tensors(path / (ADAPTER_WEIGHTS_NAME if (path / ADAPTER_WEIGHTS_NAME).is_file() else PICKLED_WEIGHTS_NAME))
    factors: dict[str, dict[str, Tensor]] = {}
    other: dict[str, Tensor] = {}
    for stored_name, tensor in file.read(file.entries).items():
        name = stored_name.removeprefix(PREFIX)
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match[1] or match[3], {})[match[2] or match[4]] = tensor
        elif ".original_module." not in name:
            other[name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = tensor
    try:
        places = locate_tensors([*(f"{module}.weight" for module in factors), *other])
    except CheckpointError as error:
        raise CheckpointError(f"The adapter {path}: {error.problem[0].lower()}{error.problem[1:]}", error.remedy) from error
    loras = {places[f"{module}.weight"]: _lora(module, tensors, settings, path) for module, tensors in factors.items()}
    if not loras:
        raise CheckpointError(f"The adapter {path} changes no layer", "save the adapter again")
    trunk = next((prefix for prefix in ("deit.", "vit.") if any(name.startswith(prefix) for name in (*factors, *other))), "")
    return Adapter(path, settings, loras, {places[name]: tensor for name, tensor in other.items()}, trunk)


def rename_adapter(adapter: Adapter, directory: Path, layout: str) -> None:
    """Writes an adapter with the names and layers of another project's models.

    Args:
        adapter: the adapter.
        directory: created if missing.
        layout: ``deit``, ``transformers-4`` or ``transformers-5``.

    Raises:
        CheckpointError: the adapter cannot be expressed with these layers.
    """
    loras = _fused(adapter) if layout == "deit" else _split(adapter, layout)
    replaced = _regrouped(adapter, layout)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for place, lora in loras.items():
        module = names_in_layout(place, layout, adapter.trunk).removesuffix(".weight")
        convolution = place.canonical.endswith("projection.weight")
        if convolution:
            raise CheckpointError(
                "The adapter of a convolution, the patch embedding, is not renamed",
                "merge it: deit convert ADAPTER DST --base MODEL",
            )
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = lora.down, lora.up
        ranks[module], alphas[module] = len(lora.down), _as_integer(lora.scale * len(lora.down))
    for place, tensor in replaced.items():
        name = names_in_layout(place, layout, adapter.trunk)
        module, _, parameter = name.rpartition(".")
        tensors[PREFIX + (f"{module}.base_layer.{parameter}" if module in ranks else name)] = tensor
    rank, alpha = max(ranks.values()), max(alphas.values())
    settings = {
        **adapter.settings,
        "auto_mapping": None,
        "target_modules": sorted(ranks),
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "use_rslora": False,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
    }
    content = json_text(settings).encode()
    write_files({directory / ADAPTER_WEIGHTS_NAME: serialize_tensors(tensors), directory / ADAPTER_CONFIG_NAME: content})


def largest_difference(first: Adapter, second: Adapter) -> float:
    """Returns the largest difference of what two adapters add to any weight, or set any tensor to."""
    largest = 0.0
    for name in {place.canonical for adapter in (first, second) for place in (*adapter.loras, *adapter.replaced)}:
        changes = [_change(adapter, name) for adapter in (first, second)]
        shapes = [change.shape for change in changes if change is not None]
        values = [torch.zeros(shapes[0]) if change is None else change.float() for change in changes]
        largest = max(largest, (values[0] - values[1]).abs().max().item())
    return largest


def largest_change(adapter: Adapter) -> float:
    """Returns the largest absolute value that an adapter adds to a weight or sets a tensor to."""
    names = {place.canonical for place in (*adapter.loras, *adapter.replaced)}
    changes = [change for name in names if (change := _change(adapter, name)) is not None]
    return max(change.abs().max().item() for change in changes)


def _change(adapter: Adapter, name: str) -> Tensor | None:
    """Returns what an adapter adds to a weight or sets a tensor to; None if nothing."""
    result = None
    for place, tensor in adapter.replaced.items():
        if place.canonical == name:
            result = _with_rows(result, place.position, place.total, tensor)
    for place, lora in adapter.loras.items():
        if place.canonical == name:
            result = _with_rows(result, place.position, place.total, lora.scale * (lora.up.float() @ lora.down.float()))
    return result


def _with_rows(tensor: Tensor | None, position: int, total: int, rows: Tensor) -> Tensor:
    """Returns a tensor with other values in one of ``total`` equal blocks of rows; missing blocks are zero."""
    blocks = [torch.zeros_like(rows)] * total if tensor is None else list(tensor.to(rows.dtype).chunk(total))
    blocks[position] = rows
    return torch.cat(blocks)


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    if settings.get("peft_type") != "LORA":
        kind = printable(str(settings.get("peft_type")))
        raise CheckpointError(f"The adapter {path} is of type {kind}", "only LoRA is supported; merge it with PEFT")
    init = settings.get("init_lora_weights", True)
    if init not in _NEUTRAL_INITS:
        raise CheckpointError(
            f"The adapter {path} was initialized with {printable(str(init))}, which changes the base model",
            "merge it with PEFT, or save it with path_initial_model_for_weight_conversion",
        )
    for name, value in settings.items():
        if value and name not in _KNOWN_SETTINGS:
            raise CheckpointError(f"The adapter {path} has the setting {printable(name)}", "not supported; merge it with PEFT")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(name) or {}
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]{1,200}", key) for key in patterns):
            raise CheckpointError(f"{name} of the adapter {path} has a regular expression", "not supported; merge it with PEFT")


def _lora(module: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> Lora:
    down, up, magnitude = (tensors.get(name) for name in ("lora_A", "lora_B", "lora_magnitude_vector"))
    if down is None or up is None or (magnitude is None) == bool(settings.get("use_dora")):
        raise CheckpointError(f"The adapter {path} is incomplete for {printable(module)}", "save the adapter again")
    down, up = down.flatten(1), up.flatten(1)  # of a convolution: (R, C, height, width) and (outputs, R, 1, 1)
    rank = len(down)
    if not rank or up.shape[1:] != (rank,) or not all(tensor.is_floating_point() for tensor in (down, up)):
        raise CheckpointError(f"The shapes of {printable(module)} in the adapter {path} differ", "save the adapter again")
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if f".{module}".endswith(f".{key}")), settings.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"lora_alpha of the adapter {path} is {printable(str(alpha))}", "it must be a number")
    return Lora(down, up, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank), magnitude)


def _fused(adapter: Adapter) -> dict[TensorSlice, Lora]:
    """Combines the adapters of the slices of each weight into one, whose ``up`` is block diagonal."""
    groups: dict[str, dict[int, Lora]] = {}
    fused: dict[TensorSlice, Lora] = {}
    for place, lora in adapter.loras.items():
        _check_plain(lora)
        if place.total == 1:
            fused[place] = lora
        else:
            groups.setdefault(place.canonical, {})[place.position] = lora
    for name, slices in groups.items():
        total = next(place.total for place in adapter.loras if place.canonical == name)
        order = sorted(slices)
        scale = slices[order[0]].scale
        outputs, ranks = len(slices[order[0]].up), [len(slices[position].down) for position in order]
        up = slices[order[0]].up.new_zeros(total * outputs, sum(ranks))
        for position, start, rank in zip(order, [sum(ranks[:index]) for index in range(len(ranks))], ranks, strict=True):
            rows = slice(position * outputs, (position + 1) * outputs)
            up[rows, start : start + rank] = slices[position].up * (slices[position].scale / scale)
        fused[TensorSlice(name, 0, 1)] = Lora(torch.cat([slices[position].down for position in order]), up, scale)
    return fused


def _split(adapter: Adapter, layout: str) -> dict[TensorSlice, Lora]:
    """Cuts the adapter of a weight that other models have in several layers; parts that are zero are left out."""
    split: dict[TensorSlice, Lora] = {}
    for place, lora in adapter.loras.items():
        _check_plain(lora)
        total = _slices(place, layout)
        if place.total == total:
            split[place] = lora
            continue
        for position, up in enumerate(lora.up.chunk(total)):
            used = up.ne(0).any(dim=0)
            if used.any():
                kept = lora.down[used].contiguous(), up[:, used].contiguous()
                split[TensorSlice(place.canonical, position, total)] = Lora(*kept, lora.scale)
    if not split:
        raise CheckpointError(f"The adapter {adapter.path} changes nothing: all its products are zero", "train it first")
    return split


def _regrouped(adapter: Adapter, layout: str) -> dict[TensorSlice, Tensor]:
    """Cuts or combines the replaced tensors as another project's models have them."""
    regrouped: dict[TensorSlice, Tensor] = {}
    names = {place.canonical for place in adapter.replaced}
    for name in names:
        parts = {place.position: tensor for place, tensor in adapter.replaced.items() if place.canonical == name}
        total = next(place.total for place in adapter.replaced if place.canonical == name)
        wanted = _slices(TensorSlice(name, 0, total), layout)
        if wanted == total:
            regrouped |= {TensorSlice(name, position, total): tensor for position, tensor in parts.items()}
        elif len(parts) != total:
            raise CheckpointError(
                f"The adapter {adapter.path} has only some of the biases that make up {name}",
                "merge it: deit convert ADAPTER DST --base MODEL",
            )
        else:
            whole = torch.cat([parts[position] for position in sorted(parts)])
            for position, tensor in enumerate(whole.chunk(wanted)):
                regrouped[TensorSlice(name, position, wanted)] = tensor.contiguous()
    return regrouped


def _slices(place: TensorSlice, layout: str) -> int:
    """Returns the number of tensors that a canonical tensor is in another layout."""
    return 3 if layout != "deit" and ".attention.qkv." in place.canonical else 1


def _check_plain(lora: Lora) -> None:
    if lora.magnitude is not None:
        raise CheckpointError("A DoRA adapter is not renamed", "merge it: deit convert ADAPTER DST --base MODEL")


def _as_integer(value: float) -> float:
    return int(value) if value == int(value) else value
