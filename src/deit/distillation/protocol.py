"""What training needs of a teacher, whether it runs live or its logits are cached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from deit.data.loader import Batch, TeacherTargets, TrainSamples
from deit.distillation.feature_reduction import FeatureReduction
from deit.models.auto import LoadedClassifier


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher predicts for a batch.

    Attributes:
        targets: logits (B, K), or class indices (B,) from a cache of hard labels, in the data set's class order.
        feature_maps: feature maps (B, C, h, w), first to last; empty unless they were requested.
    """

    targets: Tensor
    feature_maps: Sequence[Tensor] = ()


class DistillationTeacher(Protocol):
    """A live :class:`deit.distillation.teacher.Teacher` or a :class:`deit.distillation.cached_teacher.CachedTeacher`.

    Attributes:
        name: name for log lines and reports.
        notes: what the user should know about the teacher, one sentence each.
        views: number of views that its targets cover; None for any number.
        sample_targets: targets that training batches carry; None if they are computed from the batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def views(self) -> int | None: ...

    @property
    def sample_targets(self) -> TeacherTargets | None: ...

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that its targets depend on, wherever it is stored."""

    def feature_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Returns the shape (C, h, w) of each feature map for an image of a size; empty if the teacher has none."""

    def feature_reduction(self, batches: Iterable[Batch], settings: str) -> FeatureReduction | None:
        """Returns a reduction that is fitted to the feature maps of some batches; None if they are reduced already.

        Args:
            batches: training batches; not read if a reduction was fitted with the same settings before.
            settings: what decides the pixels of the batches.
        """

    def to(self, device: torch.device) -> Self:
        """Moves the teacher to a device, in place."""

    def check(self, samples: TrainSamples) -> None:
        """Checks that the targets belong to these samples.

        Raises:
            TeacherError: they do not.
        """

    def targets(self, batch: Batch, features: bool = False) -> TeacherOutput:
        """Returns the targets of a batch, with feature maps if ``features``."""

    def for_evaluation(self) -> LoadedClassifier | None:
        """Returns the teacher as a classifier with the data set's classes; None if it cannot be loaded."""
