"""Loads the teacher of a run, live or cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_format import is_logit_cache, read_manifest
from deit.distillation.cached_teacher import CachedTeacher
from deit.distillation.protocol import DistillationTeacher
from deit.distillation.teacher import Teacher
from deit.errors import TeacherError
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.system.progress import plural


def check_teacher(recipe: Recipe, settings: RunSettings) -> None:
    """Checks that a teacher is given if, and only if, the recipe distills, and weights only with a teacher that takes them.

    Raises:
        TeacherError: the teacher is missing, or the teacher or its weights have no effect.
    """
    if recipe.distillation.mode == "none" and settings.teacher is not None:
        raise TeacherError(
            f"The recipe {recipe.name} learns from labels only, but a teacher is given",
            "use a recipe with -distilled in its name, set distillation.mode=hard, or leave the teacher out",
        )
    if recipe.distillation.mode != "none" and settings.teacher is None:
        raise TeacherError(
            f"The recipe {recipe.name} distills from a teacher, but none is given",
            "pass --teacher; to train one first: deit teacher train DATA",
        )
    if settings.teacher_weights is None:
        return
    if settings.teacher is None:
        raise TeacherError(
            "Weights of a teacher are given without the teacher", "pass --teacher, or leave out --teacher-weights"
        )
    if is_logit_cache(settings.teacher):
        raise TeacherError(f"{settings.teacher} holds cached logits, which need no weights", "leave out --teacher-weights")


def with_reduction_of_teacher(settings: RunSettings) -> RunSettings:
    """Returns the settings of a run with images reduced as for the cached logits that it learns from, if any.

    Raises:
        TeacherError: the cached logits are damaged.
    """
    if settings.reduced_images is not None or settings.teacher is None or not is_logit_cache(settings.teacher):
        return settings
    return replace(settings, reduced_images=read_manifest(Path(settings.teacher)).reduced_images)


def load_teacher(recipe: Recipe, settings: RunSettings, splits: Splits, record: DataRecord) -> DistillationTeacher | None:
    """Loads the teacher of a run; None if the run has none.

    Args:
        recipe: the recipe, with image size and normalization resolved.
        settings: ``teacher`` is a directory of ``deit teacher cache``, or anything that :meth:`Teacher.load` takes.
        splits: the data set.
        record: fingerprint and split of the data set.

    Raises:
        TeacherError: there is no such teacher, or it does not fit the data set or the recipe.
    """
    if settings.teacher is None:
        return None
    if not is_logit_cache(settings.teacher):
        student, match = recipe.processor(), settings.teacher_classes
        return Teacher.load(settings.teacher, splits.classes, student, settings.teacher_weights, match)
    return CachedTeacher.open(settings.teacher, recipe, splits, record)


def with_fingerprint(settings: RunSettings, teacher: DistillationTeacher | None) -> RunSettings:
    """Returns the settings of a run with the fingerprint of its teacher.

    Raises:
        TeacherError: the run was trained with another teacher until now.
    """
    if teacher is None:
        return settings
    found = teacher.fingerprint()
    if settings.teacher_sha256 not in (None, found):
        raise TeacherError(f"{settings.teacher} is not the teacher of this run", "pass the location of that one with --teacher")
    return replace(settings, teacher_sha256=found)


def limit_views(recipe: Recipe, teacher: DistillationTeacher | None) -> tuple[Recipe, list[str]]:
    """Limits the number of distinct epochs of a recipe to the views of cached logits.

    Returns:
        The recipe, and a note for the user if it changed.
    """
    if teacher is None or teacher.views is None or recipe.views is not None:
        return recipe, []
    views = teacher.views
    is_repeated = recipe.epochs > views or recipe.minutes is not None
    repeated = f": samples repeat after {plural(views, 'epoch')}" if is_repeated else ""
    return recipe.replace(views=views), [f"The cached teacher has {plural(views, 'view')}, so views = {views}{repeated}"]
