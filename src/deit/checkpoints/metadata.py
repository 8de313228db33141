"""Reads the metadata of a model from its directory, and from the run whose ``best`` or ``last`` the directory is.

The files may come from anyone. A file that is not valid JSON or TOML is an error. A value of an unexpected type counts as
unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.checkpoints.run_log import read_log
from deit.checkpoints.selection import best_epoch
from deit.checkpoints.shapes import trunk_shapes
from deit.checkpoints.tensors import TensorFile, open_index, open_safetensors
from deit.config import ViTConfig, config_from_dict, variant_config
from deit.errors import CheckpointError
from deit.system.files import (
    BEST_NAME,
    CONFIG_NAME,
    EVALUATION_NAME,
    INDEX_NAME,
    LAST_NAME,
    PROCESSOR_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    RUN_NAME,
    WEIGHTS_NAME,
    read_json,
    read_toml,
)
from deit.variants import VARIANTS

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # tensors of a convnet that are not parameters
EVALUATED_HEADS = ("class", "distillation", "both")  # the last one present is the prediction of the model
EVALUATED_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model. The content of a missing file is empty.

    Attributes:
        config: model configuration; None for a timm model.
        content: content of ``config.json``.
        processor: content of ``preprocessor_config.json``.
        record: content of ``training.json``.
        run: content of ``run.json``.
        recipe: content of ``recipe.toml``.
        log_row: row of ``log.jsonl`` for the epoch of the weights.
        evaluation: content of ``evaluation.json``; empty if it is of other weights.
        parameters: number of parameters.
    """

    config: ViTConfig | None
    content: dict[str, Any]
    processor: dict[str, Any]
    record: dict[str, Any]
    run: dict[str, Any]
    recipe: dict[str, Any]
    log_row: dict[str, Any]
    evaluation: dict[str, Any]
    parameters: int

    @property
    def architecture(self) -> str:
        """Class in transformers, or architecture in timm; empty if not stored."""
        if self.config is None:
            name = self.content.get("architecture")
        else:
            names = self.content.get("architectures")
            name = names[0] if isinstance(names, list) and names else ""
        return name if isinstance(name, str) else ""

    @property
    def shape(self) -> str:
        """Architecture in timm, or name of the model's shape; see :func:`shape_name`."""
        return self.architecture if self.config is None else shape_name(self.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits; empty for a model that is not a classifier."""
        if self.config is not None:
            return self.config.classes if not self.architecture or "Classification" in self.architecture else ()
        names = get_value(self.content, "pretrained_cfg.label_names")
        return tuple(str(name) if isinstance(name, str | int) else "?" for name in names) if isinstance(names, list) else ()

    @property
    def distilled(self) -> bool:
        """Whether the model has a class head and a distillation head."""
        return self.config is not None and self.architecture.endswith("WithTeacher")

    @property
    def split(self) -> str:
        """Evaluated split, ``test`` or ``validation``; empty without an evaluation."""
        return next((split for split in EVALUATED_SPLITS if self.evaluation.get("split") == split), "")

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """Metrics of each head, by name. The last head is the prediction of the model."""
        heads = {name: get_value(self.evaluation, f"heads.{name}") for name in EVALUATED_HEADS} if self.split else {}
        return {name: metrics for name, metrics in heads.items() if isinstance(metrics, dict)}


def read_metadata(directory: Path) -> ModelMetadata:
    """Reads the metadata in a model directory, and in its run if it has one.

    Raises:
        CheckpointError: a file is missing or corrupt.
        ConfigError: the model configuration is invalid.
    """
    directory = directory.resolve()
    content, run = read_json(directory / CONFIG_NAME), directory.parent
    in_run = directory.name in (BEST_NAME, LAST_NAME) and (run / RUN_NAME).is_file()
    log = read_log(run) if in_run else []
    log_row = _best_row(log) if directory.name == BEST_NAME else log[-1] if log else {}
    evaluation = _read_json(run / EVALUATION_NAME) if in_run else {}
    same_epoch = get_count(evaluation, "best_epoch") == get_count(log_row, "epoch") > 0
    return ModelMetadata(
        config=None if "architecture" in content else config_from_dict(content),
        content=content,
        processor=_read_json(directory / PROCESSOR_NAME),
        record=_read_json(directory / RECORD_NAME),
        run=_read_json(run / RUN_NAME) if in_run else {},
        recipe=read_toml(run / RECIPE_NAME) if (run / RECIPE_NAME).is_file() and in_run else {},
        log_row=log_row,
        evaluation=evaluation if directory.name == BEST_NAME or same_epoch else {},
        parameters=sum(
            math.prod(entry.shape)
            for file in open_weights(directory)
            for name, entry in file.entries.items()
            if not name.endswith(BUFFERS)
        ),
    )


def open_weights(directory: Path) -> list[TensorFile]:
    """Opens the safetensors weights of a model directory: one file, or the shards of an index.

    Raises:
        CheckpointError: the weights are missing or corrupt.
    """
    if (directory / WEIGHTS_NAME).is_file():
        return [open_safetensors(directory / WEIGHTS_NAME)]
    if (directory / INDEX_NAME).is_file():
        return open_index(directory / INDEX_NAME, open_safetensors)
    raise CheckpointError(f"{directory} has no {WEIGHTS_NAME}", "pass a model directory, or a run with a finished epoch")


def shape_name(config: ViTConfig) -> str:
    """Returns the name of the published variant with this shape, or else a name made up of model type, width and depth."""
    shape = _shape(config)
    names = (name for name in VARIANTS if _shape(variant_config(name)) == shape)
    return next(names, f"{config.model_type}-width{config.hidden_size}-depth{config.num_hidden_layers}")


def get_value(content: Any, path: str) -> Any:
    """Returns a value in nested mappings by a path such as ``optimizer.lr``; None if it does not exist."""
    for name in path.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def get_number(content: Any, path: str) -> float | None:
    """Returns a number in nested mappings by its path; None if it is not a finite number."""
    value = get_value(content, path)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    return float(value) if valid else None


def get_count(content: Any, path: str) -> int:
    """Returns a count in nested mappings by its path; 0 if it is not a positive integer."""
    value = get_number(content, path)
    return int(value) if value is not None and value >= 1 and value == int(value) else 0


def _shape(config: ViTConfig) -> object:
    """Returns what models of the same shape share. The shapes of tensors do not determine heads and image size."""
    return trunk_shapes(config), config.num_attention_heads, config.image_hw


def _best_row(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of the best epoch; values of another type count as missing."""
    metrics = [{name: get_number(row, f"validation.{name}") for name in ("top1", "loss", "images")} for row in log]
    best = best_epoch([{"validation": validation} for validation in metrics])
    return {} if best is None else log[best]


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
