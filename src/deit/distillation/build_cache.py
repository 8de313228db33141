"""Builds a cache of teacher logits and feature maps: runs the teacher once on everything that training will show the student.

:mod:`deit.distillation.cache_builder` writes the cache, and :mod:`deit.distillation.cached_teacher` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from deit.data.cache_request import DEFAULT_LIMIT, CacheMode, CacheRequest
from deit.data.checking import without_unreadable
from deit.data.class_names import Matching, check_class_names
from deit.data.opening import absolute_name, open_data
from deit.data.sampler import steps_per_epoch
from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_builder import CacheBuilder, CacheResult
from deit.distillation.cache_format import (
    MAX_CACHED_CLASSES,
    REDUCTION_NAME,
    CachedData,
    CachedModel,
    CacheManifest,
    check_views,
    is_logit_cache,
    read_manifest,
)
from deit.distillation.cached_teacher import (
    check_data,
    check_pixel_probe,
    check_pixel_settings,
    pixel_probe,
    pixel_settings,
    software,
)
from deit.distillation.feature_reduction import FeatureReduction
from deit.distillation.teacher import Teacher
from deit.errors import TeacherError, UserError
from deit.recipes.image_caching import add_image_cache
from deit.recipes.initial_checkpoint import resolve_initial_checkpoint
from deit.recipes.planning import resolve_recipe
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings, absolute
from deit.recipes.samples import training_samples
from deit.recipes.schema import MAX_EPOCHS, Recipe
from deit.system.devices import choose_device
from deit.system.files import check_writable
from deit.system.locking import is_unused, locked
from deit.system.progress import print_status
from deit.system.replacing import clean_up


def build_cache(
    data: str | Path,
    recipe: str | Recipe,
    *,
    teacher: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    views: int | None = None,
    top_k: int | None = None,
    features: bool | None = None,
    teacher_weights: str | Path | None = None,
    teacher_classes: Matching = "name",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
    cache: CacheMode = "auto",
    cache_limit: float = DEFAULT_LIMIT,
) -> CacheResult:
    """Builds a cache of teacher logits, and feature maps if the recipe distills them, or resumes building one.

    Args:
        data: a data set, as :func:`deit.data.opening.open_data` takes it.
        recipe: the recipe to train with: a :class:`Recipe`, its name, or a TOML file.
        teacher: the teacher, as :meth:`Teacher.load` takes it.
        out: directory of the cache: new, empty, or an unfinished cache of the same recipe, teacher and data.
        init: checkpoint that training will start from, which decides image size and normalization.
        views: number of views; None takes the recipe's ``views``, or its epochs. A larger number extends an existing cache.
        top_k: number of classes to keep per sample, for soft distillation; None keeps the most likely class.
        features: store feature maps; None stores them if the recipe distills them and the teacher has them. An existing cache
            keeps what it stores.
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
    return build_cache_on(
        splits, resolved, run, Path(out), views=views, top_k=top_k, features=features, device=device, workers=workers
    )


def build_cache_on(
    splits: Splits,
    recipe: Recipe,
    run: RunSettings,
    directory: Path,
    *,
    views: int | None = None,
    top_k: int | None = None,
    features: bool | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> CacheResult:
    """As :func:`build_cache`, for a data set that is already open."""
    _check_request(splits, recipe, run, directory, views, top_k)
    torch_device = choose_device(device)
    with locked(directory, "wait until it has finished, or pass another --out"):
        clean_up(directory)
        return _build(splits, recipe, run, directory, views, top_k, features, torch_device, workers)


def _build(
    splits: Splits,
    recipe: Recipe,
    run: RunSettings,
    directory: Path,
    views: int | None,
    top_k: int | None,
    features: bool | None,
    device: torch.device,
    workers: int | None,
) -> CacheResult:
    """Builds a cache in a locked directory."""
    record = DataRecord(splits.fingerprint, run.split_seed, run.validation_fraction)
    splits, unreadable = without_unreadable(splits, run.skip_unreadable)
    planned, _ = resolve_recipe(recipe, splits)  # the notes are about training
    if is_logit_cache(directory):
        run = replace(run, reduced_images=read_manifest(directory).reduced_images)
    splits, run, cache_notes = add_image_cache(splits, planned, run)
    assert run.teacher is not None
    resolved = resolve_initial_checkpoint(planned, run.init)
    teacher = Teacher.load(run.teacher, splits.classes, resolved.processor(), run.teacher_weights, run.teacher_classes)
    if features and not teacher.has_features:
        raise TeacherError(f"The teacher {teacher.name} exposes no feature maps", "pass --no-features, or another teacher")
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
        pixel_probe=pixel_probe(samples, resolved.images_per_batch),
        classes=splits.classes,
        top_k=None if top_k is None else min(top_k, len(splits.classes)),
        views=views or resolved.views or resolved.epochs,
        batch_size=resolved.images_per_batch,
        steps=steps_per_epoch(len(splits.train.labels), resolved.images_per_batch),
    )
    with_features = (resolved.distillation.features > 0 and teacher.has_features) if features is None else features
    manifest, reduction = requested, None
    if is_logit_cache(directory):
        manifest = _resume(directory, requested, splits, record, resolved)
        with_features = _keep_features(directory, manifest, features)
        reduction = _load_reduction(directory, manifest, teacher, resolved)
    notes = [*splits.all_notes, *cache_notes, *teacher.notes]
    if unreadable:
        notes.append(f"{unreadable} unreadable images are left out")
    if resolved.distillation.features and features is None and not teacher.has_features:
        notes.append(f"The teacher {teacher.name} exposes no feature maps; only its logits are cached")
    for note in notes:
        print_status(f"Note:      {note}.")
    builder = CacheBuilder(directory, manifest, resolved, samples, teacher.to(device), device, reduction)
    return builder.run(workers, with_features)


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
    if views is not None and views > MAX_EPOCHS:
        raise UserError(f"A run uses at most {MAX_EPOCHS:,} views, one per epoch", f"pass --views {MAX_EPOCHS} or less")
    check_class_names(splits.classes)  # as training does
    if len(splits.classes) > MAX_CACHED_CLASSES:
        raise TeacherError(f"The data has {len(splits.classes):,} classes", f"at most {MAX_CACHED_CLASSES:,} can be cached")
    if directory.exists() and not is_logit_cache(directory) and not is_unused(directory):
        raise TeacherError(f"{directory} exists already and is not a cache", "pass another --out")
    check_writable(directory)


def _resume(directory: Path, requested: CacheManifest, splits: Splits, record: DataRecord, recipe: Recipe) -> CacheManifest:
    """Returns the manifest of an existing cache, with the requested number of views and the teacher's current location.

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
    return existing.model_copy(update={"views": max(requested.views, len(existing.sha256)), "teacher": requested.teacher})


def _keep_features(directory: Path, existing: CacheManifest, features: bool | None) -> bool:
    """Returns whether an existing cache has feature maps.

    Raises:
        TeacherError: the opposite is requested.
    """
    has_features = existing.features is not None
    if features not in (None, has_features):
        problem = f"{directory} has feature maps" if has_features else f"{directory} has no feature maps"
        raise TeacherError(problem, f"pass {'--features' if has_features else '--no-features'}, or another --out")
    return has_features


def _load_reduction(directory: Path, manifest: CacheManifest, teacher: Teacher, recipe: Recipe) -> FeatureReduction | None:
    """Returns the reduction of an existing cache; None if it has no feature maps.

    Raises:
        TeacherError: it does not reduce the feature maps of the teacher.
    """
    if manifest.features is None:
        return None
    invalid = TeacherError(f"{directory} is corrupt: its feature maps are not the teacher's", "rebuild the cache")
    shapes, complete = manifest.features.shapes, teacher.feature_shapes(*recipe.image_hw)
    if len(shapes) != len(complete):
        raise invalid
    if any(size > limit for pair in zip(shapes, complete, strict=True) for size, limit in zip(*pair, strict=True)):
        raise invalid  # before memory is taken
    reduction = FeatureReduction.load(directory / REDUCTION_NAME, shapes)
    if [len(one.mean) for one in reduction.reductions] != [channels for channels, _, _ in complete]:
        raise invalid
    return reduction
