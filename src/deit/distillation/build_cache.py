"""Ask a teacher once about all that training will show, and keep its answers.

Built view by view. What is written is whole at any moment: a view in progress is saved every half minute and on Ctrl-C, and the
same call goes on behind its last step. The answers are read by :mod:`deit.distillation.cached_teacher`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from deit.data.checking import without_unreadable
from deit.data.loader import Batch, Loader, TrainSamples
from deit.data.opening import lasting, open_data
from deit.data.sampler import steps_per_epoch
from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_format import (
    MAX_CACHED_CLASSES,
    NO_ANSWER,
    WORD,
    DataPart,
    Manifest,
    TeacherPart,
    Unfinished,
    check_views,
    encode,
    is_logit_cache,
    read_manifest,
    view_path,
)
from deit.distillation.cached_teacher import check_data, check_pixel_settings, check_probe, pixel_settings, probe, software
from deit.distillation.teacher import Teacher
from deit.errors import InterruptedWorkError, TeacherError, UserError, WorkError
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings, absolute
from deit.recipes.samples import training_samples, view_steps
from deit.recipes.schema import Recipe
from deit.system.devices import autocast, choose_device, choose_precision, describe
from deit.system.files import CACHE_NAME, json_text, sha256, write_files
from deit.system.malloc import keeping_freed_memory
from deit.system.progress import Progress, print_status
from deit.system.signals import stop_on_signals
from deit.training.model_building import start
from deit.training.run import fitted

SAVED_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class CacheResult:
    """What was built.

    Attributes:
        directory: of the store.
        images: samples of a view.
        views: how many.
        bytes: of all views' files; likewise ``bytes_per_sample``, of one sample in one view.
        seconds: that building took, earlier calls included.
        images_per_second: of the whole building.
        built: samples that this call asked the teacher about; 0 where the store was finished already.
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
        """For programs: plain values."""
        return {**asdict(self), "directory": str(self.directory)}


def store(
    data: str | Path,
    recipe: str | Recipe,
    *,
    teacher: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    views: int | None = None,
    top_k: int | None = None,
    teacher_weights: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> CacheResult:
    """Build a store of a teacher's answers, or go on building one.

    Args:
        data: a folder, or ``digits``.
        recipe: that will be trained with: a recipe, its name, or a TOML file.
        teacher: as :meth:`Teacher.load` takes it; likewise ``teacher_weights``.
        init: the checkpoint that training will start from, which decides the images' size and normalization.
        out: the store's directory: new, empty, or an earlier call's with the same recipe, teacher and data.
        views: how many epochs' draws; the recipe's ``views``, or its epochs, when None. More than an earlier call's are added.
        top_k: keep the probabilities of so many classes, for soft distillation; None keeps the likeliest class.
        settings: values to change in the recipe, as :meth:`Recipe.with_settings` takes them.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: processes that make batches; by the cores when None.
        skip_unreadable: leave unreadable images out.

    Raises:
        UserError: data, recipe, teacher or an earlier store that does not fit, before the first answer.
        InterruptedWorkError: Ctrl-C or a termination signal came; the same call goes on.
        WorkError: the teacher's answers are not finite.
    """
    chosen = (get_recipe(recipe) if isinstance(recipe, str) else recipe).with_settings(settings or {})
    run = RunSettings(
        data=lasting(data),
        init=None if init is None else absolute(init),
        teacher=absolute(teacher),
        teacher_weights=None if teacher_weights is None else absolute(teacher_weights),
        skip_unreadable=skip_unreadable,
    )
    splits = open_data(run.data, run.split_seed, run.validation_fraction)
    return build_cache_on(splits, chosen, run, Path(out), views=views, top_k=top_k, device=device, workers=workers)


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
    """As :func:`store`, on data that is open already."""
    _check_wishes(splits, recipe, run, directory, views, top_k)
    assert run.teacher is not None
    place = choose_device(device)
    record = DataRecord(splits.fingerprint, run.split_seed, run.validation_fraction)
    splits, unreadable = without_unreadable(splits, run.skip_unreadable)
    recipe = start(fitted(recipe, splits)[0], splits.classes, run.init).recipe  # their notes are about training
    teacher = Teacher.load(run.teacher, splits.classes, recipe.processor(), run.teacher_weights)
    samples = training_samples(recipe, splits.train, run.skip_unreadable)
    wanted = Manifest(
        teacher=TeacherPart(name=teacher.name, location=run.teacher, weights=run.teacher_weights, sha256=teacher.fingerprint()),
        data=DataPart(**asdict(record), images=len(splits.train.labels)),
        pixels=pixel_settings(recipe),
        software=software(),
        probe=probe(recipe, samples),
        classes=splits.classes,
        top_k=None if top_k is None else min(top_k, len(splits.classes)),
        views=views or recipe.views or recipe.epochs,
        batch_size=recipe.batch_size,
        steps=steps_per_epoch(len(splits.train.labels), recipe.batch_size),
    )
    manifest = _gone_on_from(directory, wanted, splits, record, recipe) if is_logit_cache(directory) else wanted
    left_out = [f"{unreadable} unreadable images are left out"] if unreadable else []
    for note in [*left_out, *teacher.notes]:
        print_status(f"Note:      {note}.")
    building = _Building(directory, manifest, recipe, samples, teacher.to(place), place)
    return building.run(workers)


def _check_wishes(
    splits: Splits, recipe: Recipe, run: RunSettings, directory: Path, views: int | None, top_k: int | None
) -> None:
    """Refuse what needs no look at the data's images or the teacher.

    Raises:
        UserError: what is asked for cannot be.
    """
    if recipe.distillation.mode == "none":
        raise TeacherError(
            f"The recipe {recipe.name} learns from labels alone, and needs no stored teacher",
            "take a recipe with -distilled in its name",
        )
    if recipe.distillation.mode == "soft" and top_k is None:
        raise TeacherError(
            f"The recipe {recipe.name} learns from the teacher's probabilities",
            "pass --top-k: how many are kept for each sample",
        )
    if run.teacher is not None and is_logit_cache(run.teacher):
        raise TeacherError(f"{run.teacher} is a store already", "pass the teacher itself")
    if (views is not None and views < 1) or (top_k is not None and top_k < 1):
        raise UserError("A store needs at least one view and one class", "pass --views 1 and --top-k 1 or more")
    if len(splits.classes) > MAX_CACHED_CLASSES:
        raise TeacherError(f"The data has {len(splits.classes):,} classes", f"up to {MAX_CACHED_CLASSES:,} can be stored")
    if directory.exists() and not is_logit_cache(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise TeacherError(f"{directory} exists already, and is no store", "pass another --out")


def _gone_on_from(directory: Path, wanted: Manifest, splits: Splits, record: DataRecord, recipe: Recipe) -> Manifest:
    """An earlier call's state, with the views that are wanted now.

    Raises:
        TeacherError: it is of another teacher, recipe or data set, or damaged.
    """
    old = read_manifest(directory)
    check_data(directory, old, splits, record)
    check_pixel_settings(directory, old, recipe)
    if old.teacher.sha256 != wanted.teacher.sha256:
        raise TeacherError(
            f"{directory} holds answers of another teacher: {old.teacher.name}, with other weights than {wanted.teacher.name}",
            "pass that teacher, or another --out",
        )
    if old.top_k != wanted.top_k:
        kinds = ["hard labels" if k is None else f"the top {k}" for k in (old.top_k, wanted.top_k)]
        raise TeacherError(f"{directory} holds {kinds[0]}, and {kinds[1]} are asked for", "pass another --out")
    check_probe(directory, old, wanted.probe)
    check_views(directory, old)
    return old.model_copy(update={"views": max(wanted.views, len(old.sha256))})


class _Building:
    """A store in progress.

    Args:
        manifest: what is there already.
        samples: make the batches that the teacher is asked about.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        recipe: Recipe,
        samples: TrainSamples,
        teacher: Teacher,
        device: torch.device,
    ) -> None:
        self.directory, self.manifest, self.recipe, self.samples = directory, manifest, recipe, samples
        self.teacher, self.device = teacher, device
        self.precision = choose_precision(recipe.precision, device)
        self.rows = np.full((manifest.samples, manifest.words), NO_ANSWER, "<u2")
        self.done = self._unfinished_steps()  # of the view in progress
        self.built = 0
        self.before = manifest.seconds
        self.start = self.saved = time.monotonic()

    def run(self, workers: int | None) -> CacheResult:
        """Build what is missing."""
        manifest = self.manifest
        finished = len(manifest.sha256)
        left = (manifest.views - finished) * manifest.samples - self.done * manifest.batch_size
        if not left:
            self._save({})  # with the views that were asked for
            print_status(f"{self.directory} is finished: {manifest.views} views of {manifest.samples:,} samples.")
            return self._result()
        going_on = f", of which {finished} are there" if finished else ""
        print_status(f"Store:     {self.directory}: {manifest.views} views of {manifest.samples:,} samples{going_on}")
        print_status(f"Teacher:   {self.teacher.name} in {self.precision} on {describe(self.device)}")
        self._save({})  # from here on the directory is a store, which this call's successor recognizes
        loader = Loader(self.samples, workers, pin=self.device.type == "cuda")
        with keeping_freed_memory(self.device), stop_on_signals() as stop, Progress("Storing", left) as progress:
            for view in range(finished, manifest.views):
                self._build_view(view, loader, progress, stop)
        return self._result()

    def _build_view(self, view: int, loader: Loader, progress: Progress, stop: Event) -> None:
        steps = view_steps(self.recipe, len(self.samples.source.labels), view)[self.done :]
        batches = loader.run([piece for step in steps for piece in step])
        for step in steps:
            for piece in step:
                self._ask(next(batches), piece.step)
            self.done += 1
            self.built += self.manifest.batch_size
            progress.advance(self.manifest.batch_size, f"view {view + 1}/{self.manifest.views}")
            last = self.done == self.manifest.steps
            if not last and (stop.is_set() or time.monotonic() - self.saved > SAVED_EVERY):
                self._save_part(view)
            if stop.is_set() and not last:
                raise self._interrupted(view)
        self._save_view(view)
        if stop.is_set() and view + 1 < self.manifest.views:
            raise self._interrupted(view + 1)

    @torch.no_grad()
    def _ask(self, batch: Batch, step: int) -> None:
        """Write the answers to a micro-batch into their rows."""
        if not len(batch.labels):
            return
        pixels = batch.pixel_values.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):  # as the training step asks a live teacher
            logits = self.teacher(pixels)
        if not torch.isfinite(logits).all():
            raise WorkError(f"The teacher {self.teacher.name} answers with logits that are not finite", "pass another teacher")
        self.rows[step * self.manifest.batch_size + batch.samples[:, 2].numpy()] = encode(logits, self.manifest.top_k)

    def _part_path(self, view: int) -> Path:
        return view_path(self.directory, view).with_suffix(".part")

    def _save_part(self, view: int) -> None:
        """Keep the steps of a view so far."""
        content = self.rows[: self.done * self.manifest.batch_size].tobytes()
        part = Unfinished(steps=self.done, sha256=hashlib.sha256(content).hexdigest())
        self._save({self._part_path(view): content}, unfinished=part)

    def _save_view(self, view: int) -> None:
        content = self.rows.tobytes()
        sums = (*self.manifest.sha256, hashlib.sha256(content).hexdigest())
        self._save({view_path(self.directory, view): content}, sha256=sums, unfinished=None)
        self._part_path(view).unlink(missing_ok=True)
        self.rows.fill(NO_ANSWER)
        self.done = 0

    def _save(self, files: Mapping[Path, bytes], **changes: Any) -> None:
        """Replace files, and last ``cache.json``, which tells of them."""
        seconds = self.before + time.monotonic() - self.start
        self.manifest = self.manifest.model_copy(update={**changes, "seconds": seconds if self.built else self.before})
        text = json_text(self.manifest.model_dump(mode="json"))
        write_files({**files, self.directory / CACHE_NAME: text.encode()})
        self.saved = time.monotonic()

    def _unfinished_steps(self) -> int:
        """Read the view in progress; one that is damaged is begun anew."""
        part, path = self.manifest.unfinished, self._part_path(len(self.manifest.sha256))
        if part is None or part.steps >= self.manifest.steps or self.manifest.whole:
            return 0
        count = part.steps * self.manifest.batch_size
        size = count * self.manifest.words * WORD
        if not path.is_file() or path.stat().st_size != size or sha256(path) != part.sha256:
            return 0
        self.rows[:count] = np.fromfile(path, "<u2").reshape(count, -1)
        return part.steps

    def _interrupted(self, view: int) -> InterruptedWorkError:
        return InterruptedWorkError(
            f"Stopped in view {view + 1} of {self.manifest.views}, and what is done is kept in {self.directory}",
            "go on with the same command",
        )

    def _result(self) -> CacheResult:
        manifest = self.manifest
        row, seconds = manifest.words * WORD, manifest.seconds
        total = manifest.views * manifest.samples
        rate = total / seconds if seconds else 0.0
        return CacheResult(self.directory, manifest.samples, manifest.views, total * row, row, seconds, rate, self.built)
