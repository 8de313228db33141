"""The cached teacher: cached logits and feature maps, and the proof that they belong to the pixels of this training.

A cache is tied to its data set, to the recipe settings that determine the pixels of a sample, to the versions of the libraries
that do, and to a few of the pixels themselves. The last covers everything else that might change them: another machine's
decoder, images replaced under the same names, a newer version of this package.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL
import torch
from PIL import features as pillow_features

from deit.data.loader import Batch, TrainSamples
from deit.data.sampler import BatchPlan, epoch_steps, steps_per_epoch
from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_format import REDUCTION_NAME, CachedTargets, CacheManifest, check_views, read_manifest
from deit.distillation.feature_reduction import FeatureReduction
from deit.distillation.protocol import TeacherOutput
from deit.distillation.teacher import Teacher
from deit.errors import DeiTError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import LoadedClassifier
from deit.recipes.schema import Recipe
from deit.system.progress import plural, print_status

PROBED_SAMPLES = 8  # of the first and of the last step
PROBED_POINTS = 8  # rows and columns of each sample
PIXEL_TOLERANCE = 1e-3  # far below one of 256 levels, far above the rounding differences between processors


@dataclass(frozen=True)
class CachedTeacher:
    """A teacher whose logits, and possibly feature maps, were cached.

    Attributes:
        directory: the cache.
        manifest: its manifest.
        soft: whether training needs logits, not only class indices.
        student: the student's image processor.
        reduction: decodes the cached feature maps; None if training uses none, or the cache has none.
    """

    directory: Path
    manifest: CacheManifest
    soft: bool
    student: DeiTImageProcessor
    reduction: FeatureReduction | None = None

    @classmethod
    def open(cls, directory: str | Path, recipe: Recipe, splits: Splits, record: DataRecord) -> Self:
        """Opens a cache and checks that it fits a training run.

        Args:
            directory: the cache.
            recipe: the resolved recipe.
            splits: the data set.
            record: fingerprint and split of the data set.

        Raises:
            TeacherError: the cache is incomplete, damaged, or belongs to another training; the message names the difference.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if not manifest.is_complete:
            raise TeacherError(
                f"{directory} has {len(manifest.sha256)} of its {manifest.views} views",
                "run the same `deit teacher cache` command again to finish it",
            )
        check_data(directory, manifest, splits, record)
        check_pixel_settings(directory, manifest, recipe)
        soft = recipe.distillation.mode == "soft"
        if soft and manifest.top_k is None:
            raise TeacherError(
                f"{directory} holds hard labels, but the recipe uses soft distillation",
                "build a cache with --top-k, or pass --set distillation.mode=hard",
            )
        if recipe.views is not None and recipe.views > manifest.views:
            raise TeacherError(
                f"{directory} has {plural(manifest.views, 'view')}, but the recipe needs {recipe.views}",
                f"pass --set views={manifest.views}, or extend the cache with --views {recipe.views}",
            )
        check_views(directory, manifest)
        reduction = None
        if manifest.features is not None and recipe.distillation.features:
            reduction = FeatureReduction.load(directory / REDUCTION_NAME, manifest.features.shapes)
        return cls(directory, manifest, soft, recipe.processor(), reduction)

    @property
    def name(self) -> str:
        """Name for log lines and reports: the teacher, the cache and what it holds."""
        manifest = self.manifest
        kind = "hard labels" if manifest.top_k is None else f"top-{manifest.top_k} logits"
        kind += " and feature maps" if manifest.features is not None else ""
        return f"{manifest.teacher.name}, cached in {self.directory} ({plural(manifest.views, 'view')}, {kind})"

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the fingerprint of the teacher and of how its predictions are cached.

        More views do not change it. That the cache belongs to the data is checked when it is opened.
        """
        manifest = self.manifest
        content = [manifest.teacher.sha256, manifest.top_k, manifest.pixel_settings, self.reduction is not None]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def notes(self) -> Sequence[str]:
        """Nothing to report: the notes on the teacher were shown when the cache was built."""
        return ()

    @property
    def views(self) -> int:
        """Number of cached views."""
        return self.manifest.views

    @property
    def sample_targets(self) -> CachedTargets:
        """The targets that training batches carry."""
        return CachedTargets(self.directory, self.manifest, self.soft, with_features=self.reduction is not None)

    def feature_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:  # noqa: ARG002
        """Returns the shape (r, h, w) of each reduced feature map, of the image size that was cached; empty without."""
        return [] if self.reduction is None else list(self.reduction.shapes)

    def feature_reduction(self, batches: Iterable[Batch], settings: str) -> None:  # noqa: ARG002
        """Returns None: the cached feature maps are reduced already."""
        return

    def to(self, device: torch.device) -> Self:
        """Moves what decodes feature maps to a device, in place. The batches carry everything else."""
        if self.reduction is not None:
            self.reduction.to(device)
        return self

    def check(self, samples: TrainSamples) -> None:
        """Checks that a few samples have the pixels that they had when the cache was built.

        Raises:
            TeacherError: they differ.
        """
        check_pixel_probe(self.directory, self.manifest, pixel_probe(samples, self.manifest.batch_size))

    def targets(self, batch: Batch, features: bool = False) -> TeacherOutput:
        """Returns the targets that the batch carries, with reduced feature maps (B, r, h, w) if ``features``.

        The feature maps are in float32, or in the dtype of autocast.
        """
        assert batch.teacher_targets is not None
        if not features:
            return TeacherOutput(batch.teacher_targets)
        rows = batch.teacher_features
        assert rows is not None  # feature_shapes is not empty
        assert self.reduction is not None
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return TeacherOutput(batch.teacher_targets, self.reduction.decode(rows, dtype))

    def for_evaluation(self) -> LoadedClassifier | None:
        """Loads the teacher itself; returns None, after printing why, if it is not available any more."""
        cached = self.manifest.teacher
        try:
            teacher = Teacher.load(cached.location, self.manifest.classes, self.student, cached.weights, cached.match)
        except DeiTError as error:
            print_status(f"Note: the cached teacher is not evaluated, since it cannot be loaded. {error}")
            return None
        if teacher.fingerprint() != cached.sha256:
            print_status(f"Note: the cached teacher is not evaluated, since {cached.location} has changed.")
            return None
        return teacher.for_evaluation()


def pixel_settings(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings of a resolved recipe that determine its samples' pixels, ``path.of.setting`` -> JSON value."""
    mean, std = recipe.processor().rgb_statistics
    content = {
        "seed": recipe.seed,
        "batch_size": recipe.images_per_batch,
        "image_size": recipe.image_hw,
        "mean": mean,
        "std": std,
        "augmentation": recipe.augmentation.model_dump(mode="json"),
        "mixing": recipe.mixing.model_dump(mode="json"),
    }
    flat: dict[str, Any] = _flatten(json.loads(json.dumps(content)))
    return flat


def software() -> dict[str, str]:
    """Returns the versions of the libraries that determine pixels."""
    return {"Pillow": PIL.__version__, "libjpeg-turbo": str(pillow_features.version("libjpeg_turbo"))}


def pixel_probe(samples: TrainSamples, batch_size: int) -> str:
    """Returns some pixels of the first and the last step of view 0: float32, base64-encoded."""
    steps = epoch_steps(len(samples.source.labels), batch_size, samples.seed, 0, samples.transform.settings.repeats)
    without_targets = replace(samples, teacher_targets=None)
    values = []
    for step in (steps[0], steps[-1]):
        plan = BatchPlan(step.epoch, step.step, step.samples[:PROBED_SAMPLES])
        pixels = without_targets.batch(plan).pixel_values.numpy()
        rows, columns = (np.linspace(0, side - 1, PROBED_POINTS).astype(np.int64) for side in pixels.shape[-2:])
        values.append(pixels[:, :, rows][:, :, :, columns].ravel())
    return base64.b64encode(np.concatenate(values).astype("<f4").tobytes()).decode()


def check_pixel_probe(directory: Path, manifest: CacheManifest, probe: str) -> None:
    """Checks that the samples have the pixels that they had when the cache was built.

    Raises:
        TeacherError: they differ.
    """
    versions = ", ".join(f"{name} {version}" for name, version in manifest.software.items())
    try:
        before, now = (np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in (manifest.pixel_probe, probe))
    except (binascii.Error, ValueError) as error:
        raise TeacherError(f"The pixels in {directory} are corrupt", "rebuild the cache") from error
    if before.shape != now.shape or not np.allclose(before, now, rtol=0, atol=PIXEL_TOLERANCE):
        raise TeacherError(
            f"The training samples have other pixels than those that {directory} was built from",
            f"it was built with {versions}, from images of the same names: restore them, or rebuild the cache",
        )


def check_data(directory: Path, manifest: CacheManifest, splits: Splits, record: DataRecord) -> None:
    """Checks that a cache was built from this data set.

    Raises:
        TeacherError: it was not; the message names the difference.
    """
    cached, images = manifest.data, len(splits.train.labels)
    if manifest.classes != splits.classes:
        raise _other_classes(directory, manifest.classes, splits.classes)
    if cached.fingerprint != record.fingerprint:
        raise TeacherError(
            f"{directory} was built from another data set: other files or labels", "pass the same data, or build a cache of it"
        )
    if (cached.split_seed, cached.validation_fraction) != (record.split_seed, record.validation_fraction):
        raise TeacherError(
            f"{directory} was built with {cached.validation_fraction:.0%} of the images set aside by seed {cached.split_seed}, "
            f"here it is {record.validation_fraction:.0%} by seed {record.split_seed}",
            "build a cache of this split",
        )
    if cached.images != images:
        raise TeacherError(
            f"{directory} was built from {plural(cached.images, 'training image')}, but {images:,} are readable here",
            "replace the unreadable files, or rebuild the cache",
        )


def check_pixel_settings(directory: Path, manifest: CacheManifest, recipe: Recipe) -> None:
    """Checks that a cache was built with settings and libraries that give the same pixels.

    Raises:
        TeacherError: it was not; the message names the first difference.
    """
    if (difference := _first_difference(manifest.pixel_settings, pixel_settings(recipe))) is not None:
        name, cached, current = difference
        raise TeacherError(
            f"{directory} was built with {name} = {cached}, but the recipe has {current}",
            "train with the recipe of the cache, or build a cache with this one",
        )
    if (manifest.batch_size, manifest.steps) != (
        recipe.images_per_batch,
        steps_per_epoch(manifest.data.images, recipe.images_per_batch),
    ):
        raise TeacherError(f"{directory} is corrupt: its steps do not match its settings", "rebuild the cache")
    if (difference := _first_difference(manifest.software, software())) is not None:
        name, cached, current = difference
        raise TeacherError(
            f"{directory} was built with {name} {cached}, but {current} is installed, which may give other pixels",
            "install that version, or rebuild the cache",
        )


def _other_classes(directory: Path, cached: tuple[str, ...], current: tuple[str, ...]) -> TeacherError:
    if len(cached) != len(current):
        difference = f"{len(cached)} classes, but the data has {len(current)}"
    else:
        index = next(index for index, pair in enumerate(zip(cached, current, strict=True)) if len(set(pair)) > 1)
        difference = f"{cached[index]!r} as class {index}, but the data has {current[index]!r}"
    return TeacherError(
        f"{directory} has {difference}", "pass the data that the cache was built from, or build one of this data"
    )


def _first_difference(cached: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, object, object] | None:
    """Returns the first name whose values differ, and both values."""
    missing = "nothing"
    for name in [*current, *(name for name in cached if name not in current)]:
        if name not in current or name not in cached or cached[name] != current[name]:
            return name, cached.get(name, missing), current.get(name, missing)
    return None


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
