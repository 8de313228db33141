"""Adapts a checkpoint to another model: other heads, input size or channels, with or without a distillation token.

What is loaded, newly initialized, resampled or ignored is decided from shapes, before any tensor is read. All tensors of the
transformer must be present, and none may be left over. Heads may be newly initialized or ignored, but only as a whole. A change
between plain and distilled models must be requested.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from deit.checkpoints.key_maps import HEADS
from deit.checkpoints.position_embeddings import resample_position_embeddings
from deit.checkpoints.reading import Checkpoint
from deit.config import ViTConfig
from deit.errors import CheckpointError

DistillationChange = Literal["drop", "new"]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

DISTILLATION_TOKEN = "embeddings.distillation_token"
POSITION_EMBEDDINGS = "embeddings.position_embeddings"
PATCH_EMBEDDING = "embeddings.patch_embeddings.projection.weight"
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a gray image (ITU-R BT.601), as Pillow converts
# Modules beside the transformer. Each may be newly initialized or ignored, but only as a whole.
OPTIONAL_MODULES = (*HEADS, "pooler", "decoder", "embeddings.mask_token")


@dataclass(frozen=True)
class LoadReport:
    """Differences between a checkpoint and the model it was loaded into.

    Attributes:
        new: newly initialized tensors, which the checkpoint lacks or has for another number of classes.
        resized: resampled tensors -> shapes in the checkpoint and in the model.
        ignored: tensors of the checkpoint that the model does not have.
        mismatched: tensors of ``new`` that the checkpoint has in another shape -> shapes in the checkpoint and in the model.
        notes: further remarks.
    """

    new: tuple[str, ...] = ()
    resized: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mismatched: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        resized = [f"{name} {_format(old)} -> {_format(new)}" for name, (old, new) in self.resized.items()]
        tensors = {"new": self.new, "resized": resized, "ignored": self.ignored}
        differences = [f"{kind}: {', '.join(names)}" for kind, names in tensors.items() if names]
        return "; ".join([*differences, *self.notes]) or "all tensors loaded unchanged"

    def __bool__(self) -> bool:
        return bool(self.new or self.resized or self.ignored or self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the loading info of transformers: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``."""
        return {
            "missing_keys": {name for name in self.new if name not in self.mismatched},
            "unexpected_keys": set(self.ignored),
            "mismatched_keys": {(name, *shapes) for name, shapes in self.mismatched.items()},
            "error_msgs": [],
        }


@dataclass(frozen=True)
class AdaptedCheckpoint:
    """View of a checkpoint as the tensors of another model. Nothing is read before :meth:`tensors`.

    Attributes:
        checkpoint: checkpoint to read from.
        target: configuration of the model.
        sources: tensor of the model -> tensor of the checkpoint.
        report: differences between the checkpoint and the model.
    """

    checkpoint: Checkpoint
    target: ViTConfig
    sources: Mapping[str, str]
    report: LoadReport

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Reads the tensors that the checkpoint has, under the canonical names of the model."""
        stored = self.checkpoint.read(set(self.sources.values()))
        # Copies: tensors of a memory-mapped file are unaligned, which makes products slower and changes their rounding.
        tensors = {name: stored[source].to(dtype, copy=True) for name, source in self.sources.items()}
        tensors[POSITION_EMBEDDINGS] = self._adapt_position_embeddings(tensors[POSITION_EMBEDDINGS])
        tensors[PATCH_EMBEDDING] = _adapt_channels(tensors[PATCH_EMBEDDING], self.target.num_channels)
        return tensors

    def _adapt_position_embeddings(self, embeddings: Tensor) -> Tensor:
        """Fits position embeddings to the tokens of the model. A new distillation token copies that of the class token."""
        old, new = self.checkpoint.config, self.target
        if old.PREFIX_TOKENS > new.PREFIX_TOKENS:
            embeddings = torch.cat([embeddings[:, :1], embeddings[:, 2:]], dim=1)
        elif old.PREFIX_TOKENS < new.PREFIX_TOKENS:
            embeddings = torch.cat([embeddings[:, :1], embeddings], dim=1)
        return resample_position_embeddings(embeddings, new.PREFIX_TOKENS, old.grid, new.grid)


def adapt_checkpoint(
    checkpoint: Checkpoint, target: ViTConfig, shapes: Shapes, distillation: DistillationChange | None = None
) -> AdaptedCheckpoint:
    """Decides how a checkpoint is loaded into a model.

    Args:
        checkpoint: opened checkpoint; no tensor is read.
        target: configuration of the model.
        shapes: canonical names of the model's tensors -> shapes.
        distillation: ``drop`` allows a distilled checkpoint in a plain model, ``new`` a plain checkpoint in a distilled model.

    Raises:
        CheckpointError: a change between plain and distilled that was not requested; a tensor of the transformer that is
            missing, left over or of another shape; or an incomplete head.
    """
    stored = checkpoint.shapes
    renamed_heads, head_notes = _rename_heads(stored, shapes, distillation)
    sources: dict[str, str] = {}
    mismatched: dict[str, tuple[Shape, Shape]] = {}
    resized: dict[str, tuple[Shape, Shape]] = {}
    for name, shape in shapes.items():
        source = _source_name(name, renamed_heads)
        if source not in stored:
            continue
        stored_shape = stored[source]
        if name == POSITION_EMBEDDINGS:
            if (checkpoint.config.grid, stored_shape) != (target.grid, shape):
                resized[name] = (stored_shape, shape)
        elif name == PATCH_EMBEDDING and _is_gray_and_rgb(stored_shape, shape):
            resized[name] = (stored_shape, shape)
        elif stored_shape != shape and _module(name) in HEADS and checkpoint.config.num_labels != target.num_labels:
            mismatched[name] = (stored_shape, shape)
            continue
        elif stored_shape != shape:
            raise CheckpointError(
                f"{source} is {_format(stored_shape)} in {checkpoint.path} and {_format(shape)} in the model",
                "only position embeddings and heads may change their size, and the input may be gray or RGB",
            )
        sources[name] = source
    new = tuple(name for name in shapes if name not in sources)
    ignored = tuple(sorted(stored.keys() - set(sources.values()) - mismatched.keys()))
    _check_complete(new, shapes, f"{checkpoint.path} lacks", distillation)
    _check_complete(ignored, stored, "The model does not have", distillation)
    report = LoadReport(new, resized, ignored, mismatched, (*checkpoint.notes, *head_notes))
    return AdaptedCheckpoint(checkpoint, target, sources, report)


def _rename_heads(
    stored: Shapes, shapes: Shapes, distillation: DistillationChange | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns heads of the model -> heads of the checkpoint, where the names differ, and notes for the report.

    Raises:
        CheckpointError: a change between plain and distilled that was not requested.
    """
    stored_distilled, distilled = "distillation_classifier.weight" in stored, "distillation_classifier.weight" in shapes
    if DISTILLATION_TOKEN in stored and DISTILLATION_TOKEN not in shapes and distillation != "drop":
        raise CheckpointError(
            "The checkpoint is distilled and this model has no distillation token",
            "pass distillation='drop' to keep only the class token, or use a DeiT class",
        )
    if DISTILLATION_TOKEN in shapes and DISTILLATION_TOKEN not in stored and distillation != "new":
        raise CheckpointError(
            "The checkpoint is plain and this model has a distillation token",
            "pass distillation='new' to initialize a new token and head, or use a ViT class",
        )
    if stored_distilled and "classifier.weight" in shapes:
        if distillation == "drop":
            return {"classifier": "cls_classifier"}, ()
        return {}, ("the heads of the distilled checkpoint are not used: pass distillation='drop' to load its class head",)
    if distilled and not stored_distilled and "classifier.weight" in stored:
        if distillation != "new":
            raise CheckpointError(
                "The checkpoint has one head and this model has two",
                "pass distillation='new' to initialize a new distillation head, or use DeiTForImageClassification",
            )
        return {"cls_classifier": "classifier"}, ()
    return {}, ()


def _is_gray_and_rgb(first: Shape, second: Shape) -> bool:
    """Returns whether two shapes (D, C, rows, columns) of a patch embedding differ only by one channel and three."""
    return {first[1:2], second[1:2]} == {(1,), (3,)} and (first[0], *first[2:]) == (second[0], *second[2:])


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Fits a patch embedding (D, C, rows, columns) to gray or RGB images.

    From RGB to gray, the weights are summed, as timm does: a gray image gives what it gave as RGB. From gray to RGB, each
    channel gets its share of the luma, so that an image gives what its gray version gave.
    """
    if weight.shape[1] == channels:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    shares = torch.tensor(LUMA, dtype=torch.promote_types(weight.dtype, torch.float32))[:, None, None]
    return (weight * shares).to(weight.dtype)


def _check_complete(
    names: tuple[str, ...], shapes: Collection[str], problem: str, distillation: DistillationChange | None
) -> None:
    """Checks that the tensors which are new or ignored make up whole optional modules.

    Raises:
        CheckpointError: they do not; the message names the first.
    """
    for name in names:
        module = [other for other in shapes if _module(other) == _module(name)]
        optional = _module(name) in OPTIONAL_MODULES or (name == DISTILLATION_TOKEN and distillation)
        if not optional or any(other not in names for other in module):
            raise CheckpointError(f"{problem} {name}", "the checkpoint belongs to another model")


def _module(name: str) -> str:
    """Returns the optional module of a tensor, such as ``classifier`` for ``classifier.weight``; other names unchanged."""
    module = name.split(".")[0]
    return module if module in OPTIONAL_MODULES else name


def _source_name(name: str, renamed_heads: Mapping[str, str]) -> str:
    head, _, parameter = name.partition(".")
    return f"{renamed_heads[head]}.{parameter}" if head in renamed_heads else name


def _format(shape: Shape) -> str:
    return " x ".join(map(str, shape))
