"""Cached teacher logits on disk: a few bytes per sample and view, read in place of running the teacher.

A cache is a directory with ``cache.json``, which identifies the teacher, the data and the settings, and one binary file per
view: ``view-000000.bin`` and so on. A view is the set of random draws of one epoch: order, augmentation and mixing. The file
of a view has one row per sample, at index step x batch size + position in the global batch. A row holds little-endian 16-bit
words:

- hard labels: the class index;
- top-k: k class indices, most likely first, then k half-precision floats: the mean of all other classes, and the second to the
  k-th. Each is a log-probability relative to the most likely class, at most 0. (Probabilities would be lost where the teacher
  is confident: half precision has no value between 0.9995 and 1.)

A row of 0xFFFF words marks a sample that was unreadable when the cache was built.
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

from deit.data.class_names import Matching
from deit.data.sampler import BatchPlan
from deit.errors import TeacherError, validation_problem
from deit.system.files import CACHE_NAME, read_json, sha256

FORMAT = 1  # of cache.json
WORD = 2  # bytes
MISSING = 0xFFFF
MAX_CACHED_CLASSES = MISSING  # so that no class index equals MISSING
MIN_LOG_PROBABILITY = -60_000.0  # within the range of half precision

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=2**40)]


class _Section(BaseModel):
    """Base of the sections of ``cache.json``: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CachedData(_Section):
    """The data set: its fingerprint, its split, and the number of readable training images."""

    fingerprint: str
    split_seed: int
    validation_fraction: float
    images: Count


class CachedModel(_Section):
    """The teacher.

    Its name, location (and ``weights`` file of a timm architecture), how its classes match the data's, and a hash of everything
    that it computes with.
    """

    name: str
    location: str
    weights: str | None = None
    match: Matching = "name"
    sha256: Sha256


class UnfinishedView(_Section):
    """The view in progress: the number of steps written, and the hash of its file."""

    steps: Count
    sha256: Sha256


class CacheManifest(_Section):
    """The content of ``cache.json``.

    Attributes:
        format: version of the format.
        teacher: the teacher that was run.
        data: the data set.
        pixel_settings: recipe settings that determine the samples' pixels, ``path.of.setting`` -> value.
        reduced_images: whether the samples were made from images of reduced size, see :mod:`deit.data.image_cache`.
        software: versions of the libraries that determine them, name -> version.
        pixel_probe: a few of the pixels, see :mod:`deit.distillation.cached_teacher`.
        classes: class names; a cached class index refers to this order.
        top_k: number of classes per sample; None for hard labels.
        views: number of views that the finished cache has.
        batch_size: global batch size of a step.
        steps: steps per view.
        sha256: hash of the file of each finished view, in order.
        unfinished: the view in progress, if any.
        seconds: time that building took.
    """

    format: Literal[1] = 1
    teacher: CachedModel
    data: CachedData
    pixel_settings: dict[str, Any]
    reduced_images: bool = False
    software: dict[str, str]
    pixel_probe: str
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CACHED_CLASSES)]
    top_k: Annotated[int, Field(ge=1, le=MAX_CACHED_CLASSES)] | None
    views: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Count
    steps: Count
    sha256: tuple[Sha256, ...] = ()
    unfinished: UnfinishedView | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0

    @property
    def words_per_sample(self) -> int:
        """16-bit words per row."""
        return 1 if self.top_k is None else 2 * self.top_k

    @property
    def samples_per_view(self) -> int:
        """Rows per view."""
        return self.steps * self.batch_size

    @property
    def bytes_per_view(self) -> int:
        """Size of the file of a view."""
        return self.samples_per_view * self.words_per_sample * WORD

    @property
    def is_complete(self) -> bool:
        """Whether every view is finished."""
        return len(self.sha256) == self.views


def is_logit_cache(path: str | Path) -> bool:
    """Whether a directory holds cached logits."""
    return (Path(path) / CACHE_NAME).is_file()


def view_path(directory: Path, view: int) -> Path:
    """Returns the path of the file of a view."""
    return directory / f"view-{view:06d}.bin"


def read_manifest(directory: Path) -> CacheManifest:
    """Reads and validates ``cache.json``.

    Raises:
        TeacherError: it holds invalid values, or is of another version of the format.
        CheckpointError: it cannot be read, or is not JSON.
    """
    content = read_json(directory / CACHE_NAME)
    if content.get("format") != FORMAT:
        raise TeacherError(f"{directory} has cache format {str(content.get('format'))[:20]}", f"this version reads {FORMAT}")
    try:
        manifest = CacheManifest(**content)
    except ValidationError as error:
        problem = f"{directory / CACHE_NAME} is corrupt ({validation_problem(error)})"
        raise TeacherError(problem, "build the cache again") from error
    if len(manifest.sha256) > manifest.views or (manifest.top_k or 1) > len(manifest.classes):
        raise TeacherError(f"{directory / CACHE_NAME} is corrupt", "build the cache again")
    return manifest


def check_views(directory: Path, manifest: CacheManifest) -> None:
    """Checks size and hash of the file of every finished view.

    Raises:
        TeacherError: a file is missing or damaged.
    """
    for view, expected in enumerate(manifest.sha256):
        path = view_path(directory, view)
        if not path.is_file() or path.stat().st_size != manifest.bytes_per_view or sha256(path) != expected:
            raise TeacherError(f"{path} is missing or damaged", "copy it again, or rebuild the cache")


def encode(logits: Tensor, top_k: int | None) -> np.ndarray:
    """Encodes teacher logits as rows.

    Args:
        logits: (B, K), finite.
        top_k: number of classes to keep, at most K; None keeps only the index of the most likely class.

    Returns:
        (B, words) uint16.
    """
    logits = logits.float()
    top = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
    if top_k is None:
        return top.cpu().numpy().astype("<u2")
    relative = logits - logits.gather(1, top)  # (B, K), at most 0
    # The argmax comes first, even among equals, so that hard distillation from the cache equals that from the teacher.
    indices = relative.scatter(1, top, math.inf).topk(top_k, dim=-1).indices  # (B, k)
    values = relative.gather(1, indices)
    others = logits.shape[-1] - top_k
    if others:
        values[:, :1] = relative.scatter(1, indices, -math.inf).logsumexp(dim=-1, keepdim=True) - math.log(others)
    halves = values.clamp(MIN_LOG_PROBABILITY, 0).half().cpu().numpy().astype("<f2")
    return np.concatenate([indices.cpu().numpy().astype("<u2"), halves.view("<u2")], axis=1)


def decode_labels(rows: np.ndarray) -> Tensor:
    """Decodes rows of either kind to the most likely classes, (B,) int64."""
    return torch.from_numpy(rows[:, 0].astype(np.int64))


def decode_logits(rows: np.ndarray, num_classes: int) -> Tensor:
    """Decodes top-k rows to logits, (B, K) float32, up to an additive constant.

    Error bound. Let R be the range of the teacher's logits of a sample, rho the range of the classes left out (0 if
    k >= K - 1), and u = 2**-11 the rounding unit of half precision. A kept logit is off by at most u R, another one by at most
    rho + u R, and all errors lie in one interval of length e = rho + 2 u R. Then tau^2 KL of soft distillation is off by at
    most e (R + e + S) / 2 for that sample, where S is the range of the student's logits, for any tau: the derivative of KL with
    respect to a softened teacher logit is t_i (log(t_i / s_i) - KL); these sum to 0, and their absolute values sum to at most
    the range of log(t / s), which is at most (R + e + S) / tau; tau cancels in tau^2 (e / tau) (R + e + S) / tau.
    """
    k = rows.shape[1] // 2
    indices = torch.from_numpy(rows[:, :k].astype(np.int64))  # (B, k)
    values = torch.from_numpy(np.ascontiguousarray(rows[:, k:]).view("<f2").astype(np.float32))  # (B, k)
    logits = values[:, :1].repeat(1, num_classes)  # (B, K)
    values[:, 0] = 0
    return logits.scatter_(1, indices, values)


@dataclass(frozen=True)
class CachedTargets:
    """The cached targets of training batches, read from disk as they are needed.

    Attributes:
        directory: the cache.
        manifest: its manifest; the files have been checked.
        soft: return logits (B, K) instead of class indices (B,).
    """

    directory: Path
    manifest: CacheManifest
    soft: bool

    def read(self, plan: BatchPlan, kept: np.ndarray) -> Tensor:
        """Returns the targets of the samples of a batch.

        Args:
            plan: the batch; its epoch is the view.
            kept: positions within the plan of the samples that are readable.

        Returns:
            (B,) int64 class indices, or (B, K) float32 logits.

        Raises:
            TeacherError: a sample is readable now and was not when the cache was built, or the reverse; or the file has
                changed since it was checked.
        """
        manifest = self.manifest
        path = view_path(self.directory, plan.epoch)
        try:
            view = np.memmap(path, "<u2", "r", shape=(manifest.samples_per_view, manifest.words_per_sample))
        except (OSError, ValueError) as error:
            raise TeacherError(f"{path} is missing or damaged", "copy it again, or rebuild the cache") from error
        rows = np.asarray(view[plan.step * manifest.batch_size + plan.samples[:, 2]])
        readable = np.zeros(len(rows), bool)
        readable[kept] = True
        changed = np.flatnonzero((rows != MISSING).any(axis=1) != readable)
        if len(changed):
            index, now, before = plan.samples[changed[0], 0], "is", "was not"
            if not readable[changed[0]]:
                now, before = "is not", "was"
            raise TeacherError(
                f"Training image {index} {now} readable, and {before} when {self.directory} was built",
                "restore the images, or rebuild the cache",
            )
        rows = rows[kept]
        self._check(rows, path)
        return decode_logits(rows, len(manifest.classes)) if self.soft else decode_labels(rows)

    def _check(self, rows: np.ndarray, path: Path) -> None:
        """Rejects values that :func:`encode` cannot produce: the hashes detect damage, not a forged file."""
        k = self.manifest.top_k or 1
        values = np.ascontiguousarray(rows[:, k:]).view("<f2")
        if (rows[:, :k] >= len(self.manifest.classes)).any() or not (values <= 0).all() or np.isinf(values).any():
            raise TeacherError(f"{path} holds invalid targets", "rebuild the cache")
