"""What is known of a model: read from its directory, and from the run that the directory is the ``best`` or ``last`` of.

Files from elsewhere may hold anything. What is no JSON or TOML is an error; a value of another kind than expected is unknown.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    LOG_NAME,
    MAX_JSON_BYTES,
    PROCESSOR_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    RUN_NAME,
    WEIGHTS_NAME,
    read_json,
)
from deit.variants import VARIANTS

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # a convnet saves them, and they are no parameters
HEADS = ("class", "distillation", "both")
PARTS = ("validation", "test")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model; a mapping is empty where its file is not there.

    Attributes:
        config: None for a network of timm.
        content: of ``config.json``; ``record`` is that of ``training.json``, and the others are of the files of their names.
        row: of the run's log, for the epoch that the weights are from.
        parameters: number of parameters.
    """

    config: ViTConfig | None
    content: dict[str, Any]
    processor: dict[str, Any]
    record: dict[str, Any]
    run: dict[str, Any]
    recipe: dict[str, Any]
    row: dict[str, Any]
    evaluation: dict[str, Any]
    parameters: int

    @property
    def architecture(self) -> str:
        """The class in transformers, or timm's name of the network; empty where it is not said."""
        names = self.content.get("architectures")
        name = (
            self.content.get("architecture") if self.config is None else names[0] if isinstance(names, list) and names else ""
        )
        return name if isinstance(name, str) else ""

    @property
    def shape(self) -> str:
        """The published model of this shape, or else the kind of model and its size."""
        return self.architecture if self.config is None else shape_name(self.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the logits; none for a model that is no classifier."""
        if self.config is not None:
            return self.config.classes if not self.architecture or "Classification" in self.architecture else ()
        names = at(self.content, "pretrained_cfg.label_names")
        return tuple(str(name) if isinstance(name, str | int) else "?" for name in names) if isinstance(names, list) else ()

    @property
    def distilled(self) -> bool:
        """Whether it has two heads, one of which learned from a teacher."""
        return self.config is not None and self.architecture.endswith("WithTeacher")

    @property
    def part(self) -> str:
        """What the evaluation was on, ``test`` or ``validation``; empty without one."""
        return next((part for part in PARTS if self.evaluation.get("part") == part), "")

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """The evaluation of each head, by name; the last is the model's answer."""
        heads = {name: at(self.evaluation, f"heads.{name}") for name in HEADS} if self.part else {}
        return {name: head for name, head in heads.items() if isinstance(head, dict)}


def read_facts(directory: Path) -> ModelFacts:
    """Read what a model directory, and its run if it has one, say of a model.

    Raises:
        CheckpointError: a file that is missing or damaged.
        ConfigError: a model that cannot be.
    """
    directory = directory.resolve()
    content, run = read_json(directory / CONFIG_NAME), directory.parent
    in_run = directory.name in (BEST_NAME, LAST_NAME) and (run / RUN_NAME).is_file()
    log = list(_log(run / LOG_NAME)) if in_run else []
    row = max(log, key=_merit, default={}) if directory.name == BEST_NAME else log[-1] if log else {}
    evaluation = _json(run / EVALUATION_NAME) if in_run else {}
    of_best = directory.name == BEST_NAME or count(evaluation, "best_epoch") == count(row, "epoch") > 0
    return ModelFacts(
        config=None if "architecture" in content else config_from_dict(content),
        content=content,
        processor=_json(directory / PROCESSOR_NAME),
        record=_json(directory / RECORD_NAME),
        run=_json(run / RUN_NAME) if in_run else {},
        recipe=_toml(run / RECIPE_NAME) if in_run else {},
        row=row,
        evaluation=evaluation if of_best else {},
        parameters=sum(
            math.prod(entry.shape)
            for file in open_weights(directory)
            for name, entry in file.entries.items()
            if not name.endswith(BUFFERS)
        ),
    )


def open_weights(directory: Path) -> list[TensorFile]:
    """A model directory's weights, in safetensors: one file, or the shards that an index names.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    if (directory / WEIGHTS_NAME).is_file():
        return [open_safetensors(directory / WEIGHTS_NAME)]
    if (directory / INDEX_NAME).is_file():
        return open_index(directory / INDEX_NAME, open_safetensors)
    raise CheckpointError(f"{directory} holds no {WEIGHTS_NAME}", "pass a model directory, or a run with a finished epoch")


def shape_name(config: ViTConfig) -> str:
    """The published model of this shape, or else the kind of model and its size."""
    mine = _shape(config)
    names = (name for name in VARIANTS if _shape(variant_config(name)) == mine)
    return next(names, f"{config.model_type}-width{config.hidden_size}-depth{config.num_hidden_layers}")


def at(content: Any, place: str) -> Any:
    """A value within mappings by its path, such as ``optimizer.lr``; None where there is none."""
    for name in place.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def number(content: Any, place: str) -> float | None:
    """As :func:`at`, if it is a finite number."""
    value = at(content, place)
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    return float(value) if known else None


def count(content: Any, place: str) -> int:
    """As :func:`at`, if it is a whole number from 1 on; 0 otherwise."""
    value = number(content, place)
    return int(value) if value is not None and value >= 1 and value == int(value) else 0


def _shape(config: ViTConfig) -> object:
    """What two models of the same shape have in common; heads and sides of the image are not told by the tensors' shapes."""
    return trunk_shapes(config), config.num_attention_heads, config.image_hw


def _merit(row: dict[str, Any]) -> tuple[float, float]:
    """By which a run chooses its best epoch."""
    top1, loss = number(row, "validation.top1"), number(row, "validation.loss")
    return (-math.inf, 0.0) if loss is None else (0.0 if top1 is None else top1, -loss)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _toml(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid TOML", "the file is damaged; remove it or train again") from error


def _log(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} holds no valid JSON", "the file is damaged; remove it or train again") from error
        if isinstance(row, dict):
            yield row


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MAX_JSON_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read", "the file is damaged; remove it or train again") from error
