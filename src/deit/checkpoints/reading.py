"""Opens saved models in all published formats. Nothing that a file contains is executed.

- Hugging Face directories: ``config.json`` with ``model.safetensors`` or ``pytorch_model.bin``, in one file or in shards with
  an index; with the tensor names of transformers 4 or 5, with or without heads.
- Directories that timm saves for the hub: ``config.json`` with ``architecture``, and weights.
- Files of weights with the names of timm, the original DeiT and DeiT III code, MMPretrain or torchvision, saved as safetensors
  or with torch.save: a state dict in any container and with any prefix (:mod:`deit.checkpoints.state_dicts`).
- LoRA adapters of PEFT, merged into the model that they name (:mod:`deit.checkpoints.adapters`).
- Training runs: the directory of a run refers to its ``best`` model. Each training checkpoint can be opened too.
- Weights without configuration: it is inferred from the shapes of the tensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.checkpoints.adapters import Adapter, is_adapter, open_adapter
from deit.checkpoints.key_maps import HEADS, identify_layout
from deit.checkpoints.shapes import check_shapes, find_architecture, infer_config
from deit.checkpoints.state_dicts import MODEL_ANCHORS, no_average, unwrap_names
from deit.checkpoints.tensors import TensorFile, open_index, open_tensors
from deit.checkpoints.timm_config import read_timm_config
from deit.config import ViTConfig, config_from_dict
from deit.errors import CheckpointError, ConfigError
from deit.hub import WEIGHT_FILES, directory_of, fetch, model_path
from deit.system.files import BUNDLE_NAME, CONFIG_NAME, EMA_NAME, read_json
from deit.variants import LAYER_NORM_EPS

# canonical name -> file and name in it, of each slice to concatenate
Sources = Mapping[str, tuple[tuple[TensorFile, str], ...]]
Shapes = dict[str, tuple[int, ...]]

POSITION_EMBEDDINGS = "embeddings.position_embeddings"
FACTORS = ".factors"  # canonical name of the LayerScale factors of a linear layer, which are folded into it


@dataclass(frozen=True)
class Checkpoint:
    """Saved model, opened and checked. Its tensors are still on disk.

    Attributes:
        path: file or directory that was opened.
        layout: project whose tensor names are used: ``transformers``, ``timm``, ``mmpretrain``, ``torchvision`` or ``deit``.
        config: stored configuration, or the one inferred from the tensors.
        architecture: model class with these tensors, such as ``DeiTForImageClassificationWithTeacher``.
        shapes: canonical name -> shape.
        dtype: narrowest dtype that represents the values of all tensors.
        preprocessing: of timm's ``pretrained_cfg``, those of ``input_size``, ``interpolation``, ``crop_pct``, ``crop_mode``,
            ``mean`` and ``std`` that are stored; empty for other formats.
        notes: how the stored tensors were changed or selected, one sentence each.
        adapter: adapter that is merged into the tensors when they are read, if any.
        base_path: path of the model that the adapter is merged into; otherwise ``path``.
    """

    path: Path
    layout: str
    config: ViTConfig
    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    preprocessing: Mapping[str, Any]
    notes: tuple[str, ...]
    _sources: Sources = field(repr=False, compare=False)
    adapter: Adapter | None = field(default=None, repr=False, compare=False)
    base_path: Path | None = None

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Reads tensors by canonical name, on the CPU. None means all tensors.

        They have their stored dtypes, except for those that LayerScale factors of a 16-bit checkpoint are folded into: float32.

        Raises:
            CheckpointError: the checkpoint has no tensor of this name, or a file changed since it was opened.
        """
        names = self.shapes.keys() if names is None else names
        for name in names:
            if name not in self.shapes:
                raise CheckpointError(f"{self.path} has no {name}", "it belongs to another model")
        factors = {name: f"{name.rpartition('.')[0]}{FACTORS}" for name in names}
        stored = self._read_stored({*names, *factors.values()} & self._sources.keys())
        tensors = {name: _folded(stored[name], stored.get(factors[name])) for name in names if name in stored}
        if POSITION_EMBEDDINGS in tensors:
            tensors[POSITION_EMBEDDINGS] = self._with_prefix_positions(tensors[POSITION_EMBEDDINGS])
        if self.adapter is not None:
            for name in names:
                if self.adapter.changes(name):
                    tensors[name] = self.adapter.merge(name, tensors.get(name))
        return {name: tensors[name] for name in names}

    def _read_stored(self, names: Collection[str]) -> dict[str, Tensor]:
        requests: dict[Path, tuple[TensorFile, list[str]]] = {}
        for name in names:
            for file, stored_name in self._sources[name]:
                requests.setdefault(file.path, (file, []))[1].append(stored_name)
        slices = {
            (path, stored_name): tensor
            for path, (file, stored_names) in requests.items()
            for stored_name, tensor in file.read(stored_names).items()
        }
        tensors = {name: [slices[file.path, stored_name] for file, stored_name in self._sources[name]] for name in names}
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in tensors.items()}

    def _with_prefix_positions(self, embeddings: Tensor) -> Tensor:
        """Adds zeros for the tokens before the patches, if only the patches have position embeddings."""
        missing = self.shapes[POSITION_EMBEDDINGS][1] - embeddings.shape[1]
        return torch.cat([embeddings.new_zeros(1, missing, embeddings.shape[2]), embeddings], dim=1) if missing else embeddings


def open_checkpoint(
    path: Path, *, ema: bool = False, fields: Mapping[str, Any] | None = None, base: str | Path | None = None
) -> Checkpoint:
    """Opens a saved model and checks the name and shape of each tensor against its configuration.

    Args:
        path: file of weights, model directory, training checkpoint, or directory of a run, which refers to its best model.
        ema: read the exponential moving average of the weights, if a training checkpoint has both.
        fields: configuration fields that the caller knows. Without a stored configuration, these are used:
            ``num_attention_heads`` (required if attention heads are not 64 wide), ``hidden_act``, ``layer_norm_eps``, and
            ``image_size`` if the grid of patches is not square. If they set classes, the heads may have another number of
            classes than a stored configuration. All other fields are left to the caller.
        base: model that an adapter is merged into; None means the one that the adapter names.

    Raises:
        CheckpointError: there is no readable model, or its files are inconsistent; the message names the file.
        ConfigError: ``config.json`` does not describe a model.
    """
    fields = fields or {}
    path = model_path(path)
    if is_adapter(path) and not any((path / name).is_file() for name in WEIGHT_FILES):
        return _open_adapted(path, base, ema, fields)
    if base is not None:
        raise CheckpointError(f"{path} is not an adapter", "only an adapter has a base model")
    files, config_file = (open_directory(path, ema), path / CONFIG_NAME) if path.is_dir() else _open_file(path, ema)
    # lexists: a dangling link or a directory of this name is an error, not a missing configuration.
    content = read_json(config_file) if config_file and os.path.lexists(config_file) else None
    layout, sources, shapes, notes = _match_tensors(files, path, ema)
    notes += _fold_factors(shapes, path)
    preprocessing: Mapping[str, Any] = {}
    if content is None or config_file is None:
        defaults = {} if layout == "transformers" else {"layer_norm_eps": LAYER_NORM_EPS}
        notes += _add_prefix_positions(shapes, fields.get("image_size"))
        config = infer_config(shapes, {}, {**defaults, **fields}, str(path))
    elif "architecture" in content and "model_type" not in content:
        timm_config = read_timm_config(content, str(config_file))
        preprocessing = timm_config.preprocessing
        notes += _add_prefix_positions(shapes, timm_config.fields.get("image_size", fields.get("image_size")))
        config = infer_config(shapes, timm_config.fields, fields, str(path))
    else:
        config = _read_config(content, config_file)
    check_shapes(shapes, config, str(path), any_classes=bool({"num_labels", "id2label", "label2id"} & fields.keys()))
    dtype = _common_dtype(sources, path)
    architecture = find_architecture(shapes, config, (content or {}).get("architectures"), str(path))
    return Checkpoint(path, layout, config, architecture, shapes, dtype, preprocessing, notes, sources)


def _open_adapted(path: Path, base: str | Path | None, ema: bool, fields: Mapping[str, Any]) -> Checkpoint:
    """Opens the model that an adapter was trained on, with the adapter to merge into it."""
    adapter = open_adapter(path)
    if ema:
        raise no_average(path)
    name = base or adapter.base
    if name is None:
        raise CheckpointError(
            f"The adapter {path} does not name the model that it was trained on",
            "merge it first: deit convert ADAPTER DST --base MODEL",
        )
    location = model_path(fetch(name))
    if is_adapter(location):
        raise CheckpointError(f"The base model {location} is an adapter, too", "merge that one first: deit convert")
    model = open_checkpoint(location, fields=fields)
    shapes = adapter.new_shapes(model.shapes)
    if "classifier.weight" in shapes and "classifier.weight" not in model.shapes:  # trained with one head on a distilled model
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(HEADS[1:])}
    config = _adapted_config(path, model.config, shapes)
    check_shapes(shapes, config, str(path))
    return replace(
        model,
        path=path,
        config=config,
        architecture=find_architecture(shapes, config, None, str(path)),
        shapes=shapes,
        dtype=torch.promote_types(model.dtype, torch.float32),  # of the products
        notes=(*model.notes, f"The adapter is merged into {location}"),
        adapter=adapter,
        base_path=location,
    )


def _adapted_config(path: Path, config: ViTConfig, shapes: Mapping[str, tuple[int, ...]]) -> ViTConfig:
    """Returns the configuration of the base model with the classes of the adapter's head."""
    count = next((shapes[f"{head}.weight"][0] for head in HEADS if f"{head}.weight" in shapes), config.num_labels)
    if (path / CONFIG_NAME).is_file():  # beside the adapter if the user saved it, with the names of the classes
        stored = _read_config(read_json(path / CONFIG_NAME), path / CONFIG_NAME)
        if stored.num_labels == count:
            return config.replace(id2label=stored.id2label)
    return config if config.num_labels == count else config.replace(num_labels=count)


def open_directory(path: Path, ema: bool = False, anchors: Sequence[str] = MODEL_ANCHORS) -> list[TensorFile]:
    """Opens the weights in a model directory.

    Args:
        path: the directory.
        ema: open the moving average of the weights in the directory of a training checkpoint.
        anchors: see :func:`deit.checkpoints.tensors.open_tensors`.

    Raises:
        CheckpointError: it has no weights, or they cannot be opened.
    """
    if ema:
        if not (path / EMA_NAME).is_file():
            raise CheckpointError(f"{path} has no {EMA_NAME}", "load it without ema")
        return [replace(open_tensors(path / EMA_NAME), averaged=True)]
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            open_file = partial(open_tensors, anchors=anchors)
            return open_index(path / name, open_file) if name.endswith(".index.json") else [open_file(path / name)]
    if (path / BUNDLE_NAME).is_file():
        raise CheckpointError(
            f"{path} is an exported model, which supports only inference", "pass the model that it was exported from"
        )
    present = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{path} has no weights: looked for {', '.join(WEIGHT_FILES)}, found {present}",
        "pass a model directory, a file of weights, or a run with a finished epoch",
    )


def _open_file(path: Path, ema: bool) -> tuple[list[TensorFile], Path | None]:
    """Opens a file of weights. The configuration beside it belongs to it only if the file has a name of a model directory."""
    directory = directory_of(path)
    config_file = None if directory is None else directory / CONFIG_NAME
    if path.name in WEIGHT_FILES and path.name.endswith(".index.json"):
        if ema:
            raise CheckpointError(f"{path} has no moving average of the weights", "load it without ema")
        return open_index(path), config_file
    return [open_tensors(path, ema)], config_file


def _read_config(content: dict[str, Any], file: Path) -> ViTConfig:
    try:
        return config_from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.problem}", error.remedy) from error


def _match_tensors(files: list[TensorFile], path: Path, ema: bool) -> tuple[str, Sources, Shapes, tuple[str, ...]]:
    """Returns the layout of the tensor names, the sources and the shape of each canonical tensor, and notes."""
    file_of = {name: file for file in files for name in file.entries}
    model = unwrap_names(file_of, MODEL_ANCHORS, ema, str(path))
    if ema and not (model.averaged or any(file.averaged for file in files)):
        raise no_average(path)
    try:
        layout, names = identify_layout(model.stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem[0].lower()}{error.problem[1:]}", error.remedy) from error
    stored = {canonical: [model.stored[name] for name in slices] for canonical, slices in names.items()}
    sources = {canonical: tuple((file_of[name], name) for name in slices) for canonical, slices in stored.items()}
    shapes = {}
    for canonical, slices in sources.items():
        slice_shapes = [file.entries[name].shape for file, name in slices]
        first, count = slice_shapes[0], len(slice_shapes)
        if len(set(slice_shapes)) > 1 or (count > 1 and not first):
            raise CheckpointError(f"The slices of {canonical} in {path} have different shapes", "the checkpoint is corrupt")
        shapes[canonical] = first if count == 1 else (count * first[0], *first[1:])
    return layout, sources, shapes, (*(note for file in files for note in file.notes), *model.notes)


def _fold_factors(shapes: Shapes, path: Path) -> tuple[str, ...]:
    """Removes LayerScale factors from the shapes after checking them, since :meth:`Checkpoint.read` folds them into weights."""
    factors = {name: shapes.pop(name) for name in list(shapes) if name.endswith(FACTORS)}
    if not factors:
        return ()
    linears = [name.removesuffix(".weight") for name in shapes if name.endswith(("attention.o_proj.weight", "mlp.fc2.weight"))]
    for name in linears:
        shape = factors.pop(f"{name}{FACTORS}", None)
        if shape is None or shape != shapes[f"{name}.weight"][:1]:
            problem = "lacks the LayerScale factors" if shape is None else f"has LayerScale factors of shape {shape}"
            raise CheckpointError(f"{path} {problem} of {name}", "the checkpoint is incomplete or of another model")
    if factors:
        raise CheckpointError(f"{path} has {min(factors)} without its layer", "the checkpoint is incomplete")
    return ("LayerScale factors are folded into the weights",)


def _folded(tensor: Tensor, factors: Tensor | None) -> Tensor:
    """Multiplies each output of a linear layer, weight (D, ...) or bias (D), by its factor (D)."""
    if factors is None:
        return tensor
    dtype = torch.promote_types(torch.promote_types(tensor.dtype, factors.dtype), torch.float32)
    return tensor.to(dtype) * factors.to(dtype).view(-1, *[1] * (tensor.ndim - 1))


def _add_prefix_positions(shapes: Shapes, image_size: Any) -> tuple[str, ...]:
    """Adds the tokens before the patches to the shape of position embeddings that only the patches have, as in DeiT III."""
    shape, patch = shapes.get(POSITION_EMBEDDINGS, ()), shapes.get("embeddings.patch_embeddings.projection.weight", ())
    if len(shape) != 3 or len(patch) != 4 or not all(patch):
        return ()
    prefix = 1 + ("embeddings.distillation_token" in shapes)
    if isinstance(image_size, list | tuple) and len(image_size) == 2 and all(isinstance(side, int) for side in image_size):
        only_patches = shape[1] == (image_size[0] // patch[2]) * (image_size[1] // patch[3])
    else:
        only_patches = _is_square(shape[1]) and not _is_square(shape[1] - prefix)
    if not only_patches:
        return ()
    shapes[POSITION_EMBEDDINGS] = (shape[0], shape[1] + prefix, shape[2])
    return ("Only the patches have position embeddings; those of the other tokens are zero",)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _common_dtype(sources: Sources, path: Path) -> torch.dtype:
    dtypes = {canonical: file.entries[name].dtype for canonical, slices in sources.items() for file, name in slices}
    for canonical, dtype in dtypes.items():
        if not dtype.is_floating_point:
            raise CheckpointError(f"{canonical} in {path} has dtype {dtype}", "use float16, bfloat16, float32 or float64")
    common = reduce(torch.promote_types, dtypes.values())
    folds = any(name.endswith(FACTORS) for name in sources)  # products of 16-bit values have more digits
    return torch.promote_types(common, torch.float32) if folds else common
