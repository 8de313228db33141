"""Loading the teacher of a run, and the checks before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.distillation.cached_teacher import CachedTeacher
from deit.distillation.loading import check_teacher, limit_views, load_teacher
from deit.distillation.teacher import Teacher
from deit.errors import TeacherError
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from tests.helpers import memory_splits
from tests.unit.distillation.caches import COUNT, recipe


def test_teacher_is_required_exactly_if_the_recipe_distills() -> None:
    plain = get_recipe("deit").tiny()
    check_teacher(plain, RunSettings("memory"))
    check_teacher(recipe(), RunSettings("memory", teacher="resnet18"))
    with pytest.raises(TeacherError, match="none is given"):
        check_teacher(recipe(), RunSettings("memory"))
    with pytest.raises(TeacherError, match="a teacher is given"):
        check_teacher(plain, RunSettings("memory", teacher="resnet18"))


def test_weights_are_taken_only_with_a_teacher_that_needs_them(finished: Path) -> None:
    check_teacher(recipe(), RunSettings("memory", teacher="resnet18", teacher_weights="w.pth"))
    with pytest.raises(TeacherError, match="without the teacher: pass --teacher"):
        check_teacher(get_recipe("deit").tiny(), RunSettings("memory", teacher_weights="w.pth"))
    with pytest.raises(TeacherError, match="need no weights: leave out --teacher-weights"):
        check_teacher(recipe(), RunSettings("memory", teacher=str(finished), teacher_weights="w.pth"))


def test_directory_decides_between_live_and_cached_teacher(teacher: str, finished: Path) -> None:
    splits = memory_splits(COUNT)
    assert load_teacher(recipe(), RunSettings("memory"), splits, splits.record) is None
    live = load_teacher(recipe(), RunSettings("memory", teacher=teacher), splits, splits.record)
    assert isinstance(live, Teacher)
    cached = load_teacher(recipe(), RunSettings("memory", teacher=str(finished)), splits, splits.record)
    assert isinstance(cached, CachedTeacher)


def test_views_are_limited_to_those_of_the_cache(teacher: str, finished: Path) -> None:
    splits = memory_splits(COUNT)
    cached = CachedTeacher.open(finished, recipe(), splits, splits.record)
    limited, notes = limit_views(recipe(epochs=5), cached)
    assert limited.views == cached.views == 2
    assert notes == ["The cached teacher has 2 views, so views = 2: samples repeat after 2 epochs"]
    assert limit_views(recipe(views=1), cached) == (recipe(views=1), [])
    live = Teacher.load(teacher, splits.classes, recipe().processor())
    assert limit_views(recipe(), live) == (recipe(), [])
    assert limit_views(recipe(), None) == (recipe(), [])
