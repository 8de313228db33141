"""Saved models of every published form: found by looking, known before a tensor is read, and read without running anything.

- Hugging Face directories: ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards with an
  index; under the names of transformers 4 or 5, with heads or without.
- timm's directories for the hub: a ``config.json`` with ``architecture``, and weights.
- Files of timm and of the authors: a state dict, bare or below ``model`` or ``state_dict``, as safetensors or from torch.save.
- Our runs: a run's directory stands for its ``best``; each of its checkpoints opens too.
- Weights alone: the configuration is inferred from the shapes of the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deit.checkpoints.key_maps import locate
from deit.checkpoints.shapes import check_shapes, find_architecture, infer_config
from deit.checkpoints.tensors import TensorFile, open_index, open_tensors
from deit.checkpoints.timm_config import read_timm_config
from deit.config import ViTConfig, config_from_dict
from deit.errors import CheckpointError, ConfigError
from deit.hub import WEIGHT_FILES
from deit.system.files import BEST_NAME, BUNDLE_NAME, CONFIG_NAME, EMA_NAME, RECIPE_NAME, read_json
from deit.variants import LAYER_NORM_EPS


@dataclass(frozen=True)
class Checkpoint:
    """A saved model, opened and checked, its tensors still on disk.

    Attributes:
        path: the file or directory that was opened.
        layout: whose names the tensors have there: ``transformers``, ``timm`` or ``deit``.
        config: as stored, or inferred from the tensors.
        architecture: the class of ours whose tensors these are, such as ``DeiTForImageClassificationWithTeacher``.
        shapes: canonical name -> shape.
        dtype: the narrowest type that holds all of the tensors' values.
        preprocessing: of timm's ``pretrained_cfg`` what is stored of ``input_size``, ``interpolation``, ``crop_pct``,
            ``crop_mode``, ``mean`` and ``std``; empty for the other forms.
    """

    path: Path
    layout: str
    config: ViTConfig
    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    preprocessing: Mapping[str, Any]
    _sources: Mapping[str, tuple[tuple[TensorFile, str], ...]] = field(repr=False, compare=False)

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Tensors by canonical name, on the CPU, in the types they are stored in; all when ``names`` is None.

        Raises:
            CheckpointError: the checkpoint has no tensor of such a name, or a file changed since it was opened.
        """
        wanted = self.shapes.keys() if names is None else names
        files: dict[int, tuple[TensorFile, list[str]]] = {}
        for name in wanted:
            if name not in self._sources:
                raise CheckpointError(f"{self.path} holds no {name}", "it belongs to another model")
            for file, theirs in self._sources[name]:
                files.setdefault(id(file), (file, []))[1].append(theirs)
        parts = {(key, name): part for key, (file, of) in files.items() for name, part in file.read(of).items()}
        found = {name: [parts[id(file), theirs] for file, theirs in self._sources[name]] for name in wanted}
        return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in found.items()}


def open_checkpoint(path: Path, *, ema: bool = False, fields: Mapping[str, Any] | None = None) -> Checkpoint:
    """Find out what a file or directory holds, and check every tensor's name and shape against its configuration.

    Args:
        path: a file of weights, a model directory, a checkpoint of a run, or a run's directory, which stands for its best.
        ema: take the moving average of the weights where a training checkpoint holds both.
        fields: what the caller knows of the configuration. Where none is stored, ``num_attention_heads`` is taken from here
            (needed where heads are not 64 wide), ``hidden_act``, ``layer_norm_eps``, and the ``image_size`` of a grid that
            is no square. Where they name classes, the heads may be of another number of them than a stored configuration
            says. Everything else is the caller's to change afterwards.

    Raises:
        CheckpointError: nothing there that can be read, or what is there does not fit together; the message says which file.
        ConfigError: a ``config.json`` that describes no model.
    """
    fields = fields or {}
    path = model_path(path)
    files, config_file = (_in_directory(path, ema), path / CONFIG_NAME) if path.is_dir() else _alone(path, ema)
    # A name that is there and no file (a dangling link, a directory) is an error, not an absence.
    content = read_json(config_file) if config_file and os.path.lexists(config_file) else None
    layout, places, shapes = _tensors(files, path)
    preprocessing: Mapping[str, Any] = {}
    if content is None or config_file is None:
        default = {} if layout == "transformers" else {"layer_norm_eps": LAYER_NORM_EPS}
        config = infer_config(shapes, {}, {**default, **fields}, str(path))
    elif "architecture" in content and "model_type" not in content:
        timm = read_timm_config(content, str(config_file))
        preprocessing = timm.preprocessing
        config = infer_config(shapes, timm.fields, fields, str(path))
    else:
        config = _stored_config(content, config_file)
    check_shapes(shapes, config, str(path), any_classes=bool({"num_labels", "id2label", "label2id"} & fields.keys()))
    dtypes = {name: file.entries[theirs].dtype for name, of in places.items() for file, theirs in of}
    if odd := next((name for name, dtype in dtypes.items() if not dtype.is_floating_point), None):
        raise CheckpointError(f"{odd} in {path} is of type {dtypes[odd]}", "float16, bfloat16, float32 and float64 are read")
    stored = (content or {}).get("architectures")
    architecture = find_architecture(shapes, config, stored, str(path))
    dtype = reduce(torch.promote_types, dtypes.values())
    return Checkpoint(path, layout, config, architecture, shapes, dtype, preprocessing, places)


def model_path(path: Path) -> Path:
    """The model that a path stands for: itself, or a run's best.

    Raises:
        CheckpointError: it does not exist, or is a run without a finished epoch.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "check the path of the model, checkpoint or run")
    if not path.is_dir() or (path / CONFIG_NAME).is_file():
        return path
    if (path / BEST_NAME / CONFIG_NAME).is_file():
        return path / BEST_NAME
    if (path / RECIPE_NAME).is_file():
        raise CheckpointError(f"The run {path} has no finished epoch", "go on with it: deit train --resume")
    return path


def _in_directory(path: Path, ema: bool) -> list[TensorFile]:
    if ema:
        if not (path / EMA_NAME).is_file():
            raise CheckpointError(f"{path} holds no {EMA_NAME}", "load it without ema: it holds one set of weights")
        return [open_tensors(path / EMA_NAME)]
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return open_index(path / name) if name.endswith(".index.json") else [open_tensors(path / name)]
    if (path / BUNDLE_NAME).is_file():
        raise CheckpointError(f"{path} is an exported model, which only answers", "pass the model that it was made of")
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{path} holds no weights: looked for {', '.join(WEIGHT_FILES)}, found {found}",
        "pass a model directory, a file of weights, or a run with a finished epoch",
    )


def _alone(path: Path, ema: bool) -> tuple[list[TensorFile], Path | None]:
    """A file, and the configuration beside it, which belongs to it where its name is that of a model directory's weights."""
    beside = path.with_name(CONFIG_NAME) if path.name in (*WEIGHT_FILES, EMA_NAME) else None
    if path.name in WEIGHT_FILES and path.name.endswith(".index.json"):
        if ema:
            raise CheckpointError(f"{path} holds one set of weights and no average", "load it without ema")
        return open_index(path), beside
    return [open_tensors(path, ema)], beside


def _stored_config(content: dict[str, Any], file: Path) -> ViTConfig:
    try:
        return config_from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.problem}", error.remedy) from error


def _tensors(
    files: list[TensorFile], path: Path
) -> tuple[str, dict[str, tuple[tuple[TensorFile, str], ...]], dict[str, tuple[int, ...]]]:
    """Whose names the tensors have; canonical name -> where its parts are; canonical name -> shape."""
    owner = {name: file for file in files for name in file.entries}
    try:
        layout, names = locate(owner)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem[0].lower()}{error.problem[1:]}", error.remedy) from error
    places = {ours: tuple((owner[name], name) for name in theirs) for ours, theirs in names.items()}
    shapes = {}
    for ours, of in places.items():
        parts = [file.entries[name].shape for file, name in of]
        if len(set(parts)) > 1 or (len(parts) > 1 and not parts[0]):
            raise CheckpointError(f"The parts of {ours} in {path} do not fit together", "the checkpoint is damaged")
        shapes[ours] = parts[0] if len(parts) == 1 else (len(parts) * parts[0][0], *parts[0][1:])
    return layout, places, shapes
