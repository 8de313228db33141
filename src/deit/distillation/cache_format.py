"""What a teacher said of each sample, on disk: a few bytes a sample and view, read in place of the teacher.

A store is a directory with ``cache.json``, which says whose answers these are and what they belong to, and one plain file a
view, ``view-000000.bin`` and so on. A view is the draws of one epoch: order, augmentation, mixing. A view's file has one row a
sample, at the place step x batch size + position in the global batch. A row is of little-endian words of 16 bits:

- hard labels: the class's number;
- top-k: the k class numbers, the likeliest first, then k numbers in half precision: the mean of all other classes, and the
  second to the k-th. Each is a logarithm of the probability relative to the likeliest class's, 0 or below. (Probabilities
  themselves would be lost where the teacher is sure: half precision has nothing between 0.9995 and 1.)

A row of ones alone (0xFFFF) stands for a sample that could not be read when the store was built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from deit.data.sampler import BatchPlan
from deit.errors import TeacherError, validation_problem
from deit.system.files import CACHE_NAME, read_json, sha256

FORMAT = 1  # of store.json
WORD = 2  # bytes
NO_ANSWER = 0xFFFF
MAX_CACHED_CLASSES = NO_ANSWER  # so that no class's number is that of a missing answer
FARTHEST = -60_000.0  # what half precision holds of a logarithm

Sum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(ge=1, lt=2**40)]


class Part(BaseModel):
    """What the parts of ``cache.json`` share: unknown names are errors, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataPart(Part):
    """The data set: its fingerprint, how it was split, and how many training images it has that can be opened."""

    fingerprint: str
    split_seed: int
    validation_fraction: float
    images: Whole


class TeacherPart(Part):
    """The teacher: what it is called, where it was (``weights`` for a timm architecture from a file), a hash of it all."""

    name: str
    location: str
    weights: str | None = None
    sha256: Sum


class Unfinished(Part):
    """The view that is being built: how many of its steps are written, and the hash of the file."""

    steps: Whole
    sha256: Sum


class Manifest(Part):
    """``cache.json``.

    Attributes:
        pixels: the settings that decide the samples' pixels, ``path.of.setting`` -> value.
        software: the versions that do, name -> version.
        probe: a few of the pixels themselves; see :mod:`deit.distillation.cached_teacher`.
        classes: names, in the order in which a stored class number counts them.
        top_k: None for hard labels.
        views: how many there are to be.
        batch_size: of a step, all machines together; likewise ``steps`` of a view.
        sha256: of the file of each view that is whole, from the first on.
        seconds: that building took.
    """

    format: Literal[1] = 1
    teacher: TeacherPart
    data: DataPart
    pixels: dict[str, Any]
    software: dict[str, str]
    probe: str
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CACHED_CLASSES)]
    top_k: Annotated[int, Field(ge=1, le=MAX_CACHED_CLASSES)] | None
    views: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Whole
    steps: Whole
    sha256: tuple[Sum, ...] = ()
    unfinished: Unfinished | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0

    @property
    def words(self) -> int:
        """In a row."""
        return 1 if self.top_k is None else 2 * self.top_k

    @property
    def samples(self) -> int:
        """In a view."""
        return self.steps * self.batch_size

    @property
    def whole(self) -> bool:
        """Whether every view is there."""
        return len(self.sha256) == self.views


def is_logit_cache(path: str | Path) -> bool:
    """Whether a directory holds stored answers, and not a model."""
    return (Path(path) / CACHE_NAME).is_file()


def view_path(directory: Path, view: int) -> Path:
    """The file of a view."""
    return directory / f"view-{view:06d}.bin"


def read_manifest(directory: Path) -> Manifest:
    """``cache.json``, checked for what it may be.

    Raises:
        TeacherError: values that cannot be, or of another version of this package.
        CheckpointError: it cannot be read, or is no JSON.
    """
    content = read_json(directory / CACHE_NAME)
    if content.get("format") != FORMAT:
        raise TeacherError(f"{directory} has store format {str(content.get('format'))[:20]}", f"this version reads {FORMAT}")
    try:
        manifest = Manifest(**content)
    except ValidationError as error:
        raise TeacherError(f"{directory / CACHE_NAME} is garbled ({validation_problem(error)})", "build it anew") from error
    if len(manifest.sha256) > manifest.views or (manifest.top_k or 1) > len(manifest.classes):
        raise TeacherError(f"{directory / CACHE_NAME} is garbled", "build it anew")
    return manifest


def check_views(directory: Path, manifest: Manifest) -> None:
    """Read every file of a view, and compare its size and hash.

    Raises:
        TeacherError: one is missing or damaged.
    """
    for view, expected in enumerate(manifest.sha256):
        path = view_path(directory, view)
        size = manifest.samples * manifest.words * WORD
        if not path.is_file() or path.stat().st_size != size or sha256(path) != expected:
            raise TeacherError(f"{path} is missing or damaged", "copy it again, or build the store anew")


def encode(logits: Tensor, top_k: int | None) -> np.ndarray:
    """A teacher's logits -> rows.

    Args:
        logits: (B, K), finite.
        top_k: how many classes are kept, at most K; None for the likeliest class's number alone.

    Returns:
        (B, words) of uint16.
    """
    logits = logits.float()
    top = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
    if top_k is None:
        return top.cpu().numpy().astype("<u2")
    relative = logits - logits.gather(1, top)  # (B, K), 0 or below
    # The class that argmax chose stands first, even among equals: hard distillation from here is that from the teacher.
    chosen = relative.scatter(1, top, math.inf).topk(top_k, dim=-1).indices  # (B, k)
    values = relative.gather(1, chosen)
    others = logits.shape[-1] - top_k
    if others:
        values[:, :1] = relative.scatter(1, chosen, -math.inf).logsumexp(dim=-1, keepdim=True) - math.log(others)
    halves = values.clamp(FARTHEST, 0).half().cpu().numpy().astype("<f2")
    return np.concatenate([chosen.cpu().numpy().astype("<u2"), halves.view("<u2")], axis=1)


def decode_labels(rows: np.ndarray) -> Tensor:
    """Rows of either kind -> (B,) int64, the likeliest class."""
    return torch.from_numpy(rows[:, 0].astype(np.int64))


def decode_logits(rows: np.ndarray, classes: int) -> Tensor:
    """Rows of top-k -> (B, K) float32, logits up to a constant.

    With R the range of the teacher's logits of a sample, rho the range of those left out (0 where k >= K - 1), and u = 2**-11
    the rounding of half precision, a kept class's logit is off by at most u R and another one's by at most rho + u R, and all
    these errors lie in one interval of length e = rho + 2 u R. So soft distillation's tau^2 KL of that sample is off by at most
    e (R + e + S) / 2, S being the range of the student's logits, whatever tau is: the derivative of KL with respect to a
    softened logit of the teacher is t_i (log(t_i / s_i) - KL); these sum to 0; their absolute values sum to at most the range
    of log(t / s), which is at most (R + e + S) / tau; and of tau^2 (e / tau) (R + e + S) / tau no tau is left.
    """
    count = rows.shape[1] // 2
    numbers = torch.from_numpy(rows[:, :count].astype(np.int64))  # (B, k)
    values = torch.from_numpy(np.ascontiguousarray(rows[:, count:]).view("<f2").astype(np.float32))  # (B, k)
    logits = values[:, :1].repeat(1, classes)  # (B, K)
    values[:, 0] = 0
    return logits.scatter_(1, numbers, values)


@dataclass(frozen=True)
class CachedTargets:
    """The answers to training batches, read from a store's files as they are needed.

    Attributes:
        directory: of the store.
        manifest: of the store, whose files were checked.
        soft: answer with logits (B, K), not with labels (B,).
    """

    directory: Path
    manifest: Manifest
    soft: bool

    def read(self, plan: BatchPlan, kept: np.ndarray) -> Tensor:
        """The answers to the samples of a plan.

        Args:
            plan: whose epoch is the view.
            kept: positions within the plan of the samples that could be read.

        Returns:
            (B,) int64 class numbers, or (B, K) float32 logits.

        Raises:
            TeacherError: a sample could be read now and not when the store was built, or the other way round; or the file
                changed since it was checked.
        """
        manifest = self.manifest
        path = view_path(self.directory, plan.epoch)
        try:
            view = np.memmap(path, "<u2", "r", shape=(manifest.samples, manifest.words))
        except (OSError, ValueError) as error:
            raise TeacherError(f"{path} is missing or damaged", "copy it again, or build the store anew") from error
        rows = np.asarray(view[plan.step * manifest.batch_size + plan.samples[:, 2]])
        readable = np.zeros(len(rows), bool)
        readable[kept] = True
        changed = np.flatnonzero((rows != NO_ANSWER).any(axis=1) != readable)
        if len(changed):
            index, state = plan.samples[changed[0], 0], ("is", "was not") if readable[changed[0]] else ("is not", "was")
            raise TeacherError(
                f"Training image {index} {state[0]} readable, and {state[1]} when {self.directory} was built",
                "put the images back as they were, or build the store anew",
            )
        rows = rows[kept]
        self._check(rows, path)
        return decode_logits(rows, len(manifest.classes)) if self.soft else decode_labels(rows)

    def _check(self, rows: np.ndarray, path: Path) -> None:
        """Refuse what no teacher says: the hashes tell of damage, not of a file that was made up."""
        count = self.manifest.top_k or 1
        values = np.ascontiguousarray(rows[:, count:]).view("<f2")
        if (rows[:, :count] >= len(self.manifest.classes)).any() or not (values <= 0).all() or np.isinf(values).any():
            raise TeacherError(f"{path} holds what is no answer", "build the store anew")
