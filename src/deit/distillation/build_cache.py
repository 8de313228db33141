"""Builds a cache of teacher logits: runs the teacher once on everything that training will show the student.

The cache is built view by view. Its files are consistent at any moment: a view in progress is saved every 30 seconds and when
a signal stops the work, and the same call resumes after its last saved step. :mod:`deit.distillation.cached_teacher` reads it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit.data.cache_request import DEFAULT_LIMIT, CacheMode, CacheRequest
from deit.data.checking import without_unreadable
from deit.data.class_names import Matching
from deit.data.loader import Batch, Loader, TrainSamples
from deit.data.opening import absolute_name, open_data
from deit.data.sampler import steps_per_epoch
from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_format import (
    MAX_CACHED_CLASSES,
    MISSING,
    WORD,
    CachedData,
    CachedModel,
    CacheManifest,
    UnfinishedView,
    check_views,
    encode,
    is_logit_cache,
    read_manifest,
    view_path,
)
from deit.distillation.cached_teacher import (
    check_data,
    check_pixel_probe,
    check_pixel_settings,
    pixel_probe,
    pixel_settings,
    software,
)
from deit.distillation.teacher import Teacher
from deit.errors import InterruptedWorkError, LoadingError, NonFiniteOutputError, TeacherError, UserError, WorkError
from deit.recipes.image_caching import add_image_cache
from deit.recipes.initial_checkpoint import resolve_initial_checkpoint
from deit.recipes.planning import resolve_recipe
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings, absolute
from deit.recipes.samples import training_samples, view_steps
from deit.recipes.schema import Recipe
from deit.system.devices import autocast, choose_device, choose_precision, describe
from deit.system.files import CACHE_NAME, json_bytes, sha256, write_files
from deit.system.malloc import retained_memory
from deit.system.progress import Progress, print_status
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
        bytes_per_sample: size of one sample in one view.
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


def build_cache(
    data: str | Path,
    recipe: str | Recipe,
    *,
    teacher: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    views: int | None = None,
    top_k: int | None = None,
    teacher_weights: str | Path | None = None,
    teacher_classes: Matching = "name",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
    cache: CacheMode = "auto",
    cache_limit: float = DEFAULT_LIMIT,
) -> CacheResult:
    """Builds a cache of teacher logits, or resumes building one.

    Args:
        data: a data set, as :func:`deit.data.opening.open_data` takes it.
        recipe: the recipe to train with: a :class:`Recipe`, its name, or a TOML file.
        teacher: the teacher, as :meth:`Teacher.load` takes it.
        out: directory of the cache: new, empty, or an unfinished cache of the same recipe, teacher and data.
        init: checkpoint that training will start from, which decides image size and normalization.
        views: number of views; None takes the recipe's ``views``, or its epochs. A larger number extends an existing cache.
        top_k: number of classes to keep per sample, for soft distillation; None keeps the most likely class.
        teacher_weights: file with the weights of a timm teacher.
        teacher_classes: match the teacher's classes with the data's by ``name``, or by ``order`` if they have no names.
        settings: recipe values to change, as :meth:`Recipe.with_settings` takes them.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: worker processes of the data loader; None chooses by the number of cores.
        skip_unreadable: leave out unreadable images.
        cache: keep decoded images, as in :func:`deit.train`.
        cache_limit: gigabytes of decoded images that are kept at most.

    Raises:
        UserError: data, recipe, teacher or an existing cache do not fit; raised before the teacher runs.
        InterruptedWorkError: SIGINT, SIGTERM or SIGHUP was received; the same call resumes.
        NonFiniteOutputError: the teacher's logits are not finite.
    """
    resolved = (get_recipe(recipe) if isinstance(recipe, str) else recipe).with_settings(settings or {})
    run = RunSettings(
        data=absolute_name(data),
        init=None if init is None else absolute(init),
        teacher=absolute(teacher),
        teacher_weights=None if teacher_weights is None else absolute(teacher_weights),
        teacher_classes=teacher_classes,
        skip_unreadable=skip_unreadable,
        cache=cache,
        cache_limit=cache_limit,
    )
    CacheRequest(cache, cache_limit).check()
    splits = open_data(run.data, run.split_seed, run.validation_fraction)
    return build_cache_on(splits, resolved, run, Path(out), views=views, top_k=top_k, device=device, workers=workers)


def build_cache_on(
    splits: Splits,
    recipe: Recipe,
    run: RunSettings,
    directory: Path,
    *,
    views: int | None = None,
    top_k: int | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> CacheResult:
    """As :func:`build_cache`, for a data set that is already open."""
    _check_request(splits, recipe, run, directory, views, top_k)
    torch_device = choose_device(device)
    record = DataRecord(splits.fingerprint, run.split_seed, run.validation_fraction)
    splits, unreadable = without_unreadable(splits, run.skip_unreadable)
    planned, _ = resolve_recipe(recipe, splits)  # the notes are about training
    if is_logit_cache(directory):
        run = replace(run, reduced_images=read_manifest(directory).reduced_images)
    splits, run, cache_notes = add_image_cache(splits, planned, run)
    assert run.teacher is not None
    resolved = resolve_initial_checkpoint(planned, run.init)
    teacher = Teacher.load(run.teacher, splits.classes, resolved.processor(), run.teacher_weights, run.teacher_classes)
    samples = training_samples(resolved, splits.train, run.skip_unreadable, cache=splits.train_cache)
    requested = CacheManifest(
        teacher=CachedModel(
            name=teacher.name,
            location=run.teacher,
            weights=run.teacher_weights,
            match=run.teacher_classes,
            sha256=teacher.fingerprint(),
        ),
        data=CachedData(**asdict(record), images=len(splits.train.labels)),
        pixel_settings=pixel_settings(resolved),
        reduced_images=bool(run.reduced_images),
        software=software(),
        pixel_probe=pixel_probe(samples, resolved.batch_size),
        classes=splits.classes,
        top_k=None if top_k is None else min(top_k, len(splits.classes)),
        views=views or resolved.views or resolved.epochs,
        batch_size=resolved.batch_size,
        steps=steps_per_epoch(len(splits.train.labels), resolved.batch_size),
    )
    manifest = _resume(directory, requested, splits, record, resolved) if is_logit_cache(directory) else requested
    skipped = [f"{unreadable} unreadable images are left out"] if unreadable else []
    for note in [*splits.all_notes, *skipped, *cache_notes, *teacher.notes]:
        print_status(f"Note:      {note}.")
    return _Builder(directory, manifest, resolved, samples, teacher.to(torch_device), torch_device).run(workers)


def _check_request(
    splits: Splits, recipe: Recipe, run: RunSettings, directory: Path, views: int | None, top_k: int | None
) -> None:
    """Checks what needs neither the images nor the teacher.

    Raises:
        UserError: the request is invalid.
    """
    if recipe.distillation.mode == "none":
        raise TeacherError(
            f"The recipe {recipe.name} learns from labels only and needs no cached logits",
            "use a recipe with -distilled in its name",
        )
    if recipe.distillation.mode == "soft" and top_k is None:
        raise TeacherError(
            f"The recipe {recipe.name} uses soft distillation", "pass --top-k, the number of classes to keep per sample"
        )
    if run.teacher is not None and is_logit_cache(run.teacher):
        raise TeacherError(f"{run.teacher} is a cache already", "pass the teacher itself")
    if (views is not None and views < 1) or (top_k is not None and top_k < 1):
        raise UserError("A cache needs at least one view and one class", "pass --views 1 and --top-k 1 or more")
    if len(splits.classes) > MAX_CACHED_CLASSES:
        raise TeacherError(f"The data has {len(splits.classes):,} classes", f"at most {MAX_CACHED_CLASSES:,} can be cached")
    if directory.exists() and not is_logit_cache(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise TeacherError(f"{directory} exists already and is not a cache", "pass another --out")


def _resume(directory: Path, requested: CacheManifest, splits: Splits, record: DataRecord, recipe: Recipe) -> CacheManifest:
    """Returns the manifest of an existing cache, with the number of views that is requested now.

    Raises:
        TeacherError: it is of another teacher, recipe or data set, or damaged.
    """
    existing = read_manifest(directory)
    check_data(directory, existing, splits, record)
    check_pixel_settings(directory, existing, recipe)
    if existing.teacher.sha256 != requested.teacher.sha256:
        raise TeacherError(
            f"{directory} was built with another teacher: {existing.teacher.name}, whose weights are not those of "
            f"{requested.teacher.name}",
            "pass that teacher, or another --out",
        )
    if existing.top_k != requested.top_k:
        kinds = ["hard labels" if k is None else f"top-{k} logits" for k in (existing.top_k, requested.top_k)]
        raise TeacherError(f"{directory} holds {kinds[0]}, but {kinds[1]} are requested", "pass another --out")
    check_pixel_probe(directory, existing, requested.pixel_probe)
    check_views(directory, existing)
    return existing.model_copy(update={"views": max(requested.views, len(existing.sha256))})


class _Builder:
    """Builds the missing views of a cache.

    Args:
        directory: the cache.
        manifest: what exists already, and what is requested.
        recipe: the resolved recipe.
        samples: makes the batches that the teacher runs on.
        teacher: the teacher, on ``device``.
        device: where the teacher runs.
    """

    def __init__(
        self,
        directory: Path,
        manifest: CacheManifest,
        recipe: Recipe,
        samples: TrainSamples,
        teacher: Teacher,
        device: torch.device,
    ) -> None:
        self.directory, self.manifest, self.recipe, self.samples = directory, manifest, recipe, samples
        self.teacher, self.device = teacher, device
        self.precision = choose_precision(recipe.precision, device)
        self.rows = np.full((manifest.samples_per_view, manifest.words_per_sample), MISSING, "<u2")
        self.steps_done = self._load_unfinished_view()
        self.samples_built = 0
        self.seconds_before = manifest.seconds
        self.start = self.saved = time.monotonic()

    def run(self, workers: int | None) -> CacheResult:
        """Builds the missing views."""
        manifest = self.manifest
        finished = len(manifest.sha256)
        remaining = (manifest.views - finished) * manifest.samples_per_view - self.steps_done * manifest.batch_size
        if not remaining:
            self._save({})  # the requested number of views may be smaller than before
            print_status(f"{self.directory} is complete: {manifest.views} views of {manifest.samples_per_view:,} samples.")
            return self._result()
        existing = f", {finished} of them finished" if finished else ""
        print_status(f"Cache:     {self.directory}: {manifest.views} views of {manifest.samples_per_view:,} samples{existing}")
        print_status(f"Teacher:   {self.teacher.name} in {self.precision} on {describe(self.device)}")
        self._save({})  # from now on the directory is a cache that the next call resumes
        loader = Loader(self.samples, workers, pin=self.device.type == "cuda")
        with retained_memory(self.device), stop_on_signals() as stop, Progress("Caching", remaining) as progress:
            for view in range(finished, manifest.views):
                try:
                    self._build_view(view, loader, progress, stop)
                except LoadingError as error:
                    self._save_unfinished_view(view)
                    remedy = f"{error.remedy}; the same command resumes, since finished work is saved in {self.directory}"
                    raise WorkError(error.problem, remedy) from None
        return self._result()

    def _build_view(self, view: int, loader: Loader, progress: Progress, stop: StopRequest) -> None:
        steps = view_steps(self.recipe, len(self.samples.source.labels), view)[self.steps_done :]
        batches = loader.run([plan for step in steps for plan in step])
        for step in steps:
            for plan in step:
                self._run_teacher(next(batches), plan.step)
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
        pixel_values = batch.pixel_values.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):  # as the training step runs a live teacher
            logits = self.teacher(pixel_values)
        if not torch.isfinite(logits).all():
            raise NonFiniteOutputError(
                f"The teacher {self.teacher.name} predicts NaN or infinite values", "pass another teacher"
            )
        self.rows[step * self.manifest.batch_size + batch.samples[:, 2].numpy()] = encode(logits, self.manifest.top_k)

    def _unfinished_path(self, view: int) -> Path:
        return view_path(self.directory, view).with_suffix(".part")

    def _save_unfinished_view(self, view: int) -> None:
        content = self.rows[: self.steps_done * self.manifest.batch_size].tobytes()
        unfinished = UnfinishedView(steps=self.steps_done, sha256=hashlib.sha256(content).hexdigest())
        self._save({self._unfinished_path(view): content}, unfinished=unfinished)

    def _save_view(self, view: int) -> None:
        content = self.rows.tobytes()
        sums = (*self.manifest.sha256, hashlib.sha256(content).hexdigest())
        self._save({view_path(self.directory, view): content}, sha256=sums, unfinished=None)
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
        unfinished, path = self.manifest.unfinished, self._unfinished_path(len(self.manifest.sha256))
        if unfinished is None or unfinished.steps >= self.manifest.steps or self.manifest.is_complete:
            return 0
        count = unfinished.steps * self.manifest.batch_size
        size = count * self.manifest.words_per_sample * WORD
        if not path.is_file() or path.stat().st_size != size or sha256(path) != unfinished.sha256:
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
            bytes=manifest.views * manifest.bytes_per_view,
            bytes_per_sample=manifest.words_per_sample * WORD,
            seconds=manifest.seconds,
            images_per_second=samples / manifest.seconds if manifest.seconds else 0.0,
            built=self.samples_built,
        )
