"""Builds the views of a cache one after the other, so that its files are consistent at any moment.

A view in progress is saved every 30 seconds and when a signal stops the work. Building resumes after its last saved step.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deit.data.loader import Batch, Loader, TrainSamples
from deit.distillation.cache_format import (
    MISSING,
    REDUCTION_NAME,
    WORD,
    CachedFeatures,
    CacheManifest,
    UnfinishedView,
    encode,
    view_path,
)
from deit.distillation.feature_file import FeatureFile
from deit.distillation.feature_reduction import FITTED_SAMPLES, FeatureReduction, row_bytes
from deit.distillation.teacher import Teacher
from deit.errors import InterruptedWorkError, LoadingError, NonFiniteOutputError, TeacherError, WorkError
from deit.recipes.samples import first_batches, view_steps
from deit.recipes.schema import Recipe
from deit.system.devices import autocast, choose_precision, describe
from deit.system.files import CACHE_NAME, json_bytes, sha256, write_files
from deit.system.malloc import retained_memory
from deit.system.progress import Progress, plural, print_status
from deit.system.signals import StopRequest, stop_on_signals

SAVE_INTERVAL = 30.0  # seconds


@dataclass(frozen=True)
class CacheResult:
    """A finished cache.

    Attributes:
        directory: the cache.
        images: samples per view.
        views: number of views.
        bytes: size of all views.
        bytes_per_sample: size of one sample in one view, with its feature maps.
        seconds: time that building took, over all calls.
        images_per_second: throughput over all calls.
        built: samples that this call ran the teacher on; 0 if the cache was complete already.
    """

    directory: Path
    images: int
    views: int
    bytes: int
    bytes_per_sample: int
    seconds: float
    images_per_second: float
    built: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {**asdict(self), "directory": str(self.directory)}


class CacheBuilder:
    """Builds the missing views of a cache.

    Args:
        directory: the cache.
        manifest: what exists already, and what is requested.
        recipe: the resolved recipe.
        samples: makes the batches that the teacher runs on.
        teacher: the teacher, on ``device``.
        device: where the teacher runs.
        reduction: of the feature maps that the cache has already; None if it is new or has none.
    """

    def __init__(
        self,
        directory: Path,
        manifest: CacheManifest,
        recipe: Recipe,
        samples: TrainSamples,
        teacher: Teacher,
        device: torch.device,
        reduction: FeatureReduction | None = None,
    ) -> None:
        self.directory, self.manifest, self.recipe, self.samples = directory, manifest, recipe, samples
        self.teacher, self.device = teacher, device
        self.precision = choose_precision(recipe.precision, device)
        self.rows = np.full((manifest.samples_per_view, manifest.words_per_sample), MISSING, "<u2")
        self.reduction: FeatureReduction | None = None
        self.feature_file: FeatureFile | None = None
        if reduction is not None:
            self._use_features(reduction)
        self.steps_done = self._load_unfinished_view()
        self.samples_built = 0
        self.seconds_before = manifest.seconds
        self.start = self.saved = time.monotonic()

    def run(self, workers: int | None, with_features: bool) -> CacheResult:
        """Builds the missing views.

        Args:
            workers: worker processes of the data loader; None chooses by the number of cores.
            with_features: store feature maps in a new cache.
        """
        manifest = self.manifest
        finished = len(manifest.sha256)
        remaining = (manifest.views - finished) * manifest.samples_per_view - self.steps_done * manifest.batch_size
        if not remaining:
            self._save({})  # the requested number of views may be smaller than before
            print_status(
                f"{self.directory} is complete: {plural(manifest.views, 'view')} of {manifest.samples_per_view:,} samples."
            )
            return self._result()
        print_status(f"Teacher:   {self.teacher.name} in {self.precision} on {describe(self.device)}")
        loader = Loader(self.samples, workers, pin=self.device.type == "cuda")
        with retained_memory(self.device), stop_on_signals() as stop:
            files = self._fit_reduction(stop) if with_features and self.reduction is None else {}
            self._print_size()
            self._check_space()
            self._save(files)  # from now on the directory is a cache that the next call resumes
            self._build_views(loader, remaining, stop)
        return self._result()

    def _build_views(self, loader: Loader, remaining: int, stop: StopRequest) -> None:
        with Progress("Caching", remaining) as progress:
            for view in range(len(self.manifest.sha256), self.manifest.views):
                try:
                    self._build_view(view, loader, progress, stop)
                except LoadingError as error:
                    if self.steps_done:
                        self._save_unfinished_view(view)
                    remedy = f"{error.remedy}; the same command resumes, since finished work is saved in {self.directory}"
                    raise WorkError(error.problem, remedy) from None

    def _use_features(self, reduction: FeatureReduction) -> None:
        self.reduction = reduction.to(self.device)
        self.feature_file = FeatureFile(self.directory, self.manifest.batch_size, row_bytes(reduction.shapes))

    def _fit_reduction(self, stop: StopRequest) -> dict[Path, bytes]:
        """Fits the reduction of feature maps, to the same samples as that of a live teacher. Returns its file."""

        def feature_maps() -> Iterator[list[Tensor]]:
            for batch in first_batches(self.recipe, self.samples, FITTED_SAMPLES):
                if stop.is_set():
                    raise stop.error("Stopped before the first view; nothing is saved yet", "run the same command again")
                if len(batch.labels):
                    yield self._predict(batch)[1]

        reduction = FeatureReduction.fit(feature_maps())
        content = reduction.to_bytes()
        features = CachedFeatures(shapes=reduction.shapes, reduction=hashlib.sha256(content).hexdigest())
        self.manifest = self.manifest.model_copy(update={"features": features})
        self._use_features(reduction)
        kept = [one.kept_variance for one in reduction.reductions]
        print_status(
            f"Features:  {plural(len(kept), 'feature map')} reduced to {features.bytes_per_sample:,} bytes per sample, with "
            f"{min(kept):.0%} to {max(kept):.0%} of the variance"
        )
        return {self.directory / REDUCTION_NAME: content}

    def _print_size(self) -> None:
        manifest, finished = self.manifest, len(self.manifest.sha256)
        views = f"{plural(manifest.views, 'view')} of {manifest.samples_per_view:,} samples"
        size = manifest.views * manifest.samples_per_view * manifest.bytes_per_sample
        kind = "logits" if manifest.features is None else "logits and feature maps"
        existing = f", {finished} of them finished" if finished else ""
        print_status(
            f"Cache:     {self.directory}: {views}{existing}; {kind}, "
            f"{manifest.bytes_per_sample:,} bytes per sample and view, {size / 1e6:,.1f} MB on disk"
        )

    def _check_space(self) -> None:
        """Checks that the missing views fit on the disk.

        Raises:
            TeacherError: they do not.
        """
        manifest = self.manifest
        samples = (manifest.views - len(manifest.sha256)) * manifest.samples_per_view
        needed = (samples - self.steps_done * manifest.batch_size) * manifest.bytes_per_sample
        existing = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise TeacherError(
                f"The cache takes another {needed / 1e9:,.1f} GB, but {existing} has {free / 1e9:,.1f} GB free",
                "pass a smaller --views number" + (", or --no-features" if manifest.features is not None else ""),
            )

    def _build_view(self, view: int, loader: Loader, progress: Progress, stop: StopRequest) -> None:
        if self.feature_file is not None and not self.steps_done:
            self.feature_file.start(view)
        steps = view_steps(self.recipe, len(self.samples.source.labels), view)[self.steps_done :]
        batches = loader.run([plan for step in steps for plan in step])
        for step in steps:
            for plan in step:
                self._run_teacher(next(batches), plan.step)
            if self.feature_file is not None:
                self.feature_file.finish_step()
            self.steps_done += 1
            self.samples_built += self.manifest.batch_size
            progress.advance(self.manifest.batch_size, f"view {view + 1}/{self.manifest.views}")
            is_last = self.steps_done == self.manifest.steps
            if not is_last and (stop.is_set() or time.monotonic() - self.saved > SAVE_INTERVAL):
                self._save_unfinished_view(view)
            if stop.is_set() and not is_last:
                raise self._interrupted(view, stop)
        self._save_view(view)
        if stop.is_set() and view + 1 < self.manifest.views:
            raise self._interrupted(view + 1, stop)

    @torch.no_grad()
    def _run_teacher(self, batch: Batch, step: int) -> None:
        """Writes the teacher's targets for a micro-batch into their rows."""
        if not len(batch.labels):
            return
        logits, feature_maps = self._predict(batch, self.reduction is not None)
        if not all(torch.isfinite(tensor).all() for tensor in (logits, *feature_maps)):
            raise NonFiniteOutputError(
                f"The teacher {self.teacher.name} predicts NaN or infinite values", "pass another teacher"
            )
        positions = batch.samples[:, 2].numpy()
        self.rows[step * self.manifest.batch_size + positions] = encode(logits, self.manifest.top_k)
        if self.reduction is not None and self.feature_file is not None:
            self.feature_file.put(positions, self.reduction.encode(feature_maps).cpu().numpy())

    @torch.no_grad()
    def _predict(self, batch: Batch, features: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Returns the teacher's logits and feature maps, if ``features``."""
        pixel_values = batch.pixel_values.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):  # as the training step runs a live teacher
            return self.teacher.forward_intermediates(pixel_values) if features else (self.teacher(pixel_values), [])

    def _unfinished_path(self, view: int) -> Path:
        return view_path(self.directory, view).with_suffix(".part")

    def _save_unfinished_view(self, view: int) -> None:
        content = self.rows[: self.steps_done * self.manifest.batch_size].tobytes()
        features = None if self.feature_file is None else self.feature_file.save()
        unfinished = UnfinishedView(steps=self.steps_done, sha256=hashlib.sha256(content).hexdigest(), features=features)
        self._save({self._unfinished_path(view): content}, unfinished=unfinished)

    def _save_view(self, view: int) -> None:
        content = self.rows.tobytes()
        sums = (*self.manifest.sha256, hashlib.sha256(content).hexdigest())
        features = self.manifest.features
        if features is not None and self.feature_file is not None:
            features = features.model_copy(update={"sha256": (*features.sha256, self.feature_file.publish(view))})
        self._save({view_path(self.directory, view): content}, sha256=sums, features=features, unfinished=None)
        self._unfinished_path(view).unlink(missing_ok=True)
        self.rows.fill(MISSING)
        self.steps_done = 0

    def _save(self, files: Mapping[Path, bytes], **changes: Any) -> None:
        """Writes files, and last ``cache.json``, which refers to them."""
        seconds = self.seconds_before + time.monotonic() - self.start
        changes["seconds"] = seconds if self.samples_built else self.seconds_before
        self.manifest = self.manifest.model_copy(update=changes)
        path = self.directory / CACHE_NAME
        write_files({**files, path: json_bytes(self.manifest.model_dump(mode="json"), path)})
        self.saved = time.monotonic()

    def _load_unfinished_view(self) -> int:
        """Loads the view in progress and returns its finished steps; a damaged one is started over."""
        view = len(self.manifest.sha256)
        unfinished, path = self.manifest.unfinished, self._unfinished_path(view)
        if unfinished is None or unfinished.steps >= self.manifest.steps or self.manifest.is_complete:
            return 0
        count = unfinished.steps * self.manifest.batch_size
        size = count * self.manifest.words_per_sample * WORD
        if not path.is_file() or path.stat().st_size != size or sha256(path) != unfinished.sha256:
            return 0
        if self.feature_file is not None and not self.feature_file.resume(view, unfinished.steps, unfinished.features):
            return 0
        self.rows[:count] = np.fromfile(path, "<u2").reshape(count, -1)
        return unfinished.steps

    def _interrupted(self, view: int, stop: StopRequest) -> InterruptedWorkError:
        return stop.error(
            f"Stopped in view {view + 1} of {self.manifest.views}; finished work is saved in {self.directory}",
            "run the same command again to resume",
        )

    def _result(self) -> CacheResult:
        manifest = self.manifest
        samples = manifest.views * manifest.samples_per_view
        return CacheResult(
            directory=self.directory,
            images=manifest.samples_per_view,
            views=manifest.views,
            bytes=samples * manifest.bytes_per_sample,
            bytes_per_sample=manifest.bytes_per_sample,
            seconds=manifest.seconds,
            images_per_second=samples / manifest.seconds if manifest.seconds else 0.0,
            built=self.samples_built,
        )
