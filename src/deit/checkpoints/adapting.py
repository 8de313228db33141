"""Saved tensors into a model of another shape: what is taken, made anew, resampled or left out, known before any is read.

The rules: a transformer's own tensors must all be there and none left over. Heads may be new or left out, as whole heads. The
step between plain and distilled models is taken only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deit.checkpoints.position_embeddings import resample
from deit.checkpoints.reading import Checkpoint
from deit.config import ViTConfig
from deit.errors import CheckpointError

Distilled = Literal["drop", "new"]
Shapes = Mapping[str, tuple[int, ...]]

TOKEN = "embeddings.distillation_token"
POSITIONS = "embeddings.position_embeddings"
CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")
# What stands beside the transformer: each is there as a whole or not at all.
PARTS = (*CLASSIFIERS, "pooler", "decoder", "embeddings.mask_token")


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint came into a model.

    Attributes:
        new: tensors with fresh weights, which the checkpoint had not, or had for another number of classes.
        resized: resampled tensors -> their shapes before and after.
        ignored: tensors of the checkpoint that have no place in the model.
        mismatched: those of ``new`` that the checkpoint had in another shape -> both shapes.
        notes: choices that were made, in words.
    """

    new: tuple[str, ...] = ()
    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        changes = [f"{name} {_words(old)} -> {_words(new)}" for name, (old, new) in self.resized.items()]
        parts = {"new": ", ".join(self.new), "resized": ", ".join(changes), "ignored": ", ".join(self.ignored)}
        said = [f"{what}: {names}" for what, names in parts.items() if names]
        return "; ".join([*said, *self.notes]) or "every tensor as it was saved"

    def __bool__(self) -> bool:
        return bool(self.new or self.resized or self.ignored or self.notes)

    def to_dict(self) -> dict[str, Any]:
        """In the words of transformers: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys``."""
        return {
            "missing_keys": {name for name in self.new if name not in self.mismatched},
            "unexpected_keys": set(self.ignored),
            "mismatched_keys": {(name, *shapes) for name, shapes in self.mismatched.items()},
            "error_msgs": [],
        }


@dataclass(frozen=True)
class BatchPlan:
    """What to read, and how it becomes the model's tensors.

    Attributes:
        sources: the model's tensor -> the checkpoint's.
    """

    checkpoint: Checkpoint
    target: ViTConfig
    sources: Mapping[str, str]
    report: LoadReport

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors that the checkpoint gives, under the model's canonical names."""
        stored = self.checkpoint.read(set(self.sources.values()))
        # Copies: tensors of a mapped file lie at odd addresses, where products are slower and round otherwise.
        tensors = {name: stored[source].to(dtype, copy=True) for name, source in self.sources.items()}
        tensors[POSITIONS] = self._positions(tensors[POSITIONS])
        return tensors

    def _positions(self, positions: Tensor) -> Tensor:
        """The position embeddings for the model's tokens and grid; a new distillation token takes the class token's."""
        old, new = self.checkpoint.config, self.target
        if old.PREFIX_TOKENS > new.PREFIX_TOKENS:
            positions = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        elif old.PREFIX_TOKENS < new.PREFIX_TOKENS:
            positions = torch.cat([positions[:, :1], positions], dim=1)
        if old.grid != new.grid:
            positions = resample(positions, new.PREFIX_TOKENS, old.grid, new.grid)
        return positions


def fit(checkpoint: Checkpoint, target: ViTConfig, wanted: Shapes, distillation: Distilled | None = None) -> BatchPlan:
    """How a checkpoint comes into a model.

    Args:
        checkpoint: opened, not read.
        target: the model's configuration.
        wanted: the model's canonical tensor names -> shapes.
        distillation: ``drop`` allows a distilled checkpoint into a plain model, ``new`` the reverse.

    Raises:
        CheckpointError: a step between plain and distilled that was not asked for, a tensor of the transformer that is missing,
            left over or of another shape, or a part of a head that is missing.
    """
    stored = checkpoint.shapes
    notes: list[str] = []
    renamed = _heads_between(stored, wanted, distillation, notes)
    sources: dict[str, str] = {}
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, shape in wanted.items():
        source = _renamed(name, renamed)
        if source not in stored:
            continue
        old = stored[source]
        if name == POSITIONS:
            if (checkpoint.config.grid, old) != (target.grid, shape):
                resized[name] = (old, shape)
        elif old != shape and _part(name) in CLASSIFIERS and checkpoint.config.num_labels != target.num_labels:
            mismatched[name] = (old, shape)
            continue
        elif old != shape:
            raise CheckpointError(
                f"{source} is {_words(old)} in {checkpoint.path} and {_words(shape)} in the model",
                "only position embeddings and heads may change their size",
            )
        sources[name] = source
    new = tuple(name for name in wanted if name not in sources)
    ignored = tuple(sorted(stored.keys() - set(sources.values()) - mismatched.keys()))
    _check_whole(checkpoint, wanted, new, ignored, distillation)
    return BatchPlan(checkpoint, target, sources, LoadReport(new, resized, ignored, mismatched, tuple(notes)))


def _heads_between(stored: Shapes, wanted: Shapes, distillation: Distilled | None, notes: list[str]) -> dict[str, str]:
    """Which of the model's heads take which of the checkpoint's, where a model goes from plain to distilled or back.

    Raises:
        CheckpointError: that step was not asked for.
    """
    had, has = "distillation_classifier.weight" in stored, "distillation_classifier.weight" in wanted
    classifies = "classifier.weight" in stored
    if TOKEN in stored and TOKEN not in wanted and distillation != "drop":
        raise CheckpointError(
            "The checkpoint is distilled and this model has no distillation token",
            "pass distillation='drop' to go on with the class token alone, or take a DeiT class",
        )
    if TOKEN in wanted and TOKEN not in stored and distillation != "new":
        raise CheckpointError(
            "The checkpoint is plain and this model has a distillation token",
            "pass distillation='new' for a fresh token and head, or take a ViT class",
        )
    if had and "classifier.weight" in wanted:
        if distillation == "drop":
            return {"classifier": "cls_classifier"}
        notes.append("the heads of a distilled checkpoint are not used: pass distillation='drop' to take its class head")
    if has and not had and classifies:
        if distillation != "new":
            raise CheckpointError(
                "The checkpoint has one head and this model two",
                "pass distillation='new' for a fresh distillation head, or take DeiTForImageClassification",
            )
        return {"cls_classifier": "classifier"}
    return {}


def _check_whole(
    checkpoint: Checkpoint, wanted: Shapes, new: tuple[str, ...], ignored: tuple[str, ...], distillation: Distilled | None
) -> None:
    """Nothing but whole parts may be new or left out.

    Raises:
        CheckpointError: something else is; the message names it.
    """
    for names, other, lacks in ((new, wanted, "lacks"), (ignored, checkpoint.shapes, "has no place for")):
        for name in names:
            whole = [sibling for sibling in other if _part(sibling) == _part(name)]
            allowed = _part(name) in PARTS or (name == TOKEN and distillation)
            if not allowed or any(sibling not in names for sibling in whole):
                subject = "The model" if lacks != "lacks" else str(checkpoint.path)
                raise CheckpointError(f"{subject} {lacks} {name}", "the checkpoint belongs to another model")


def _part(name: str) -> str:
    """``classifier.weight`` -> ``classifier``; other names stand for themselves."""
    head = name.split(".")[0]
    return head if head in PARTS else name


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    head, _, rest = name.partition(".")
    return f"{renamed[head]}.{rest}" if head in renamed else name


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
