"""The settings of a run that are not part of its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deit.data.cache_request import DEFAULT_LIMIT, CacheMode
from deit.data.class_names import Matching
from deit.data.splits import VALIDATION_FRACTION

CHECKPOINT_MINUTES = 5.0


@dataclass(frozen=True)
class RunSettings:
    """What a run needs besides its recipe. Saved in ``run.json``, so that resuming needs only the directory.

    Attributes:
        data: the data set, as :func:`deit.data.opening.absolute_name` writes it.
        init: checkpoint that training starts from, or None.
        teacher: the teacher, as :func:`deit.distillation.loading.load_teacher` takes it, or None.
        teacher_weights: file with the weights of a timm teacher, or None.
        teacher_sha256: its fingerprint; None until it is loaded.
        teacher_classes: whether the teacher's classes are matched with the data's by ``name`` or by ``order``.
        split_seed: seed of the split, where a split of the data set is missing.
        validation_fraction: fraction of each class that is then set aside for validation.
        skip_unreadable: leave out unreadable images and count them.
        cache: whether and where decoded images are kept, see :class:`deit.data.cache_request.CacheRequest`.
        cache_limit: gigabytes of them that are kept at most.
        reduced_images: whether training samples are made from reduced images, as they are kept; None until it is decided.
        checkpoint_minutes: a checkpoint is written after this time at the latest, also within an epoch.
        track: write event files for TensorBoard.
        compiled: compile the model.
        shard: divide the model among the processes of the run, instead of a copy in each.
        extended: the extensions of the run: finished epochs, and the number of epochs that were planned until then.
    """

    data: str
    init: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_sha256: str | None = None
    teacher_classes: Matching = "name"
    split_seed: int = 0
    validation_fraction: float = VALIDATION_FRACTION
    skip_unreadable: bool = False
    cache: CacheMode = "auto"
    cache_limit: float = DEFAULT_LIMIT
    reduced_images: bool | None = None
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    track: bool = False
    compiled: bool = False
    shard: bool = False
    extended: tuple[tuple[int, int], ...] = ()


def absolute(name: str | Path) -> str:
    """Makes an existing path absolute; a name that is not a path is returned unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
