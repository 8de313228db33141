"""Cached teacher logits and feature maps on disk, read in place of running the teacher.

A cache is a directory with ``cache.json``, which identifies the teacher, the data and the settings, and one binary file per
view: ``view-000000.bin`` and so on. A view is the set of random draws of one epoch: order, augmentation and mixing. The file
of a view has one row per sample, at index step x batch size + position in the global batch. A row holds little-endian 16-bit
words:

- hard labels: the class index;
- top-k: k class indices, most likely first, then k half-precision floats: the mean of all other classes, and the second to the
  k-th. Each is a log-probability relative to the most likely class, at most 0. (Probabilities would be lost where the teacher
  is confident: half precision has no value between 0.9995 and 1.)

A row of 0xFFFF words marks a sample that was unreadable when the cache was built.

A cache with feature maps has another file per view, ``features-000000.bin`` and so on, with rows at the same index: the feature
maps as :meth:`FeatureReduction.encode` reduces them to bytes. ``features.safetensors`` holds the reduction. The row of an
unreadable sample is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from deit.data.class_names import Matching
from deit.data.sampler import BatchPlan
from deit.distillation.feature_reduction import row_bytes
from deit.errors import TeacherError, validation_problem
from deit.system.files import CACHE_NAME, read_json, sha256
from deit.system.progress import print_status

FORMAT = 1  # of cache.json
WORD = 2  # bytes
MISSING = 0xFFFF
MAX_CACHED_CLASSES = MISSING  # so that no class index equals MISSING
MIN_LOG_PROBABILITY = -60_000.0  # within the range of half precision
MAX_FEATURE_MAPS = 100
REDUCTION_NAME = "features.safetensors"
LARGE_CACHE = 2 * 10**9  # bytes; verifying takes seconds

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=2**40)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Side = Annotated[int, Field(ge=1, le=1024)]


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


class CachedFeatures(_Section):
    """The reduced feature maps.

    The shape (r, h, w) of each, and the hashes of the file of the reduction and of the file of each finished view, in order.
    """

    shapes: Annotated[tuple[tuple[Channels, Side, Side], ...], Field(min_length=1, max_length=MAX_FEATURE_MAPS)]
    reduction: Sha256
    sha256: tuple[Sha256, ...] = ()

    @property
    def bytes_per_sample(self) -> int:
        """Bytes per row."""
        return row_bytes(self.shapes)


class UnfinishedView(_Section):
    """The view in progress: the number of steps written, and the hashes of its files."""

    steps: Count
    sha256: Sha256
    features: Sha256 | None = None


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
        features: the feature maps; None if only logits are cached.
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
    features: CachedFeatures | None = None
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
        """Size of the file of logits of a view."""
        return self.samples_per_view * self.words_per_sample * WORD

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one sample in one view, with its feature maps."""
        return self.words_per_sample * WORD + (0 if self.features is None else self.features.bytes_per_sample)

    @property
    def is_complete(self) -> bool:
        """Whether every view is finished."""
        return len(self.sha256) == self.views


def is_logit_cache(path: str | Path) -> bool:
    """Whether a directory is a cache."""
    return (Path(path) / CACHE_NAME).is_file()


def view_path(directory: Path, view: int) -> Path:
    """Returns the path of the file of logits of a view."""
    return directory / f"view-{view:06d}.bin"


def features_path(directory: Path, view: int) -> Path:
    """Returns the path of the file of feature maps of a view."""
    return directory / f"features-{view:06d}.bin"


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
    has_all_features = manifest.features is None or len(manifest.features.sha256) == len(manifest.sha256)
    if len(manifest.sha256) > manifest.views or (manifest.top_k or 1) > len(manifest.classes) or not has_all_features:
        raise TeacherError(f"{directory / CACHE_NAME} is corrupt", "build the cache again")
    return manifest


def check_views(directory: Path, manifest: CacheManifest) -> None:
    """Checks size and hash of the files of every finished view.

    Raises:
        TeacherError: a file is missing or damaged.
    """
    size = len(manifest.sha256) * manifest.samples_per_view * manifest.bytes_per_sample
    if size > LARGE_CACHE:
        print_status(f"Verifying {directory} ({size / 1e9:,.1f} GB)")
    for view, expected in enumerate(manifest.sha256):
        _check_file(view_path(directory, view), manifest.bytes_per_view, expected)
    features = manifest.features
    if features is not None:
        _check_file(directory / REDUCTION_NAME, None, features.reduction)
        for view, expected in enumerate(features.sha256):
            _check_file(features_path(directory, view), manifest.samples_per_view * features.bytes_per_sample, expected)


def _check_file(path: Path, size: int | None, expected: str) -> None:
    if not path.is_file() or size not in (None, path.stat().st_size) or sha256(path) != expected:
        raise _damaged(path)


def _damaged(path: Path) -> TeacherError:
    return TeacherError(f"{path} is missing or damaged", "copy it again, or rebuild the cache")


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
        with_features: read the feature maps, too; the manifest has them.
        is_measuring: other images stand for those of a plan, see :meth:`for_measuring`.
    """

    directory: Path
    manifest: CacheManifest
    soft: bool
    with_features: bool = False
    is_measuring: bool = False

    def for_measuring(self) -> CachedTargets:
        """Returns targets that are valid for any images, whichever of them are readable, to measure the speed of training."""
        return replace(self, is_measuring=True)

    @property
    def feature_bytes(self) -> int:
        """Bytes per sample of the feature maps that are read."""
        return self.manifest.features.bytes_per_sample if self.with_features and self.manifest.features else 0

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
        path = view_path(self.directory, plan.epoch)
        rows = self._rows(path, "<u2", self.manifest.words_per_sample, plan.step, plan.samples[:, 2])
        if self.is_measuring:
            rows[(rows == MISSING).all(axis=1)] = 0  # class 0
        else:
            self._check_readable(rows, plan, kept)
        rows = rows[kept]
        self._check(rows, path)
        return decode_logits(rows, len(self.manifest.classes)) if self.soft else decode_labels(rows)

    def read_features(self, plan: BatchPlan, kept: np.ndarray) -> Tensor | None:
        """Returns the reduced feature maps of the samples of a batch.

        Args:
            plan: the batch; its epoch is the view.
            kept: positions within the plan of the samples that are readable.

        Returns:
            (B, feature_bytes) int8; None if none are read.

        Raises:
            TeacherError: the file has changed since it was checked.
        """
        if not self.feature_bytes:
            return None
        path = features_path(self.directory, plan.epoch)
        return torch.from_numpy(self._rows(path, "i1", self.feature_bytes, plan.step, plan.samples[kept, 2]))

    def _rows(self, path: Path, dtype: str, width: int, step: int, positions: np.ndarray) -> np.ndarray:
        """Returns the rows of some positions of a step, in memory."""
        try:
            view = np.memmap(path, dtype, "r", shape=(self.manifest.samples_per_view, width))
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        return np.asarray(view[step * self.manifest.batch_size + positions])

    def _check_readable(self, rows: np.ndarray, plan: BatchPlan, kept: np.ndarray) -> None:
        """Checks that the samples that are readable now are those that have a row."""
        readable = np.zeros(len(rows), bool)
        readable[kept] = True
        changed = np.flatnonzero((rows != MISSING).any(axis=1) != readable)
        if len(changed):
            now, before = ("is", "was not") if readable[changed[0]] else ("is not", "was")
            raise TeacherError(
                f"Training image {plan.samples[changed[0], 0]} {now} readable, and {before} when {self.directory} was built",
                "restore the images, or rebuild the cache",
            )

    def _check(self, rows: np.ndarray, path: Path) -> None:
        """Rejects values that :func:`encode` cannot produce: the hashes detect damage, not a forged file."""
        k = self.manifest.top_k or 1
        values = np.ascontiguousarray(rows[:, k:]).view("<f2")
        if (rows[:, :k] >= len(self.manifest.classes)).any() or not (values <= 0).all() or np.isinf(values).any():
            raise TeacherError(f"{path} holds invalid targets", "rebuild the cache")
