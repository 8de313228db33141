"""Training from cached logits: the losses of the live teacher, and caches of another training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deit.data.loader import Batch
from deit.distillation.cache_format import read_manifest
from deit.distillation.cached_teacher import CachedTeacher
from deit.distillation.teacher import Teacher
from deit.errors import TeacherError
from deit.models.losses import soft_distillation
from deit.recipes.presets import get_recipe
from deit.recipes.samples import training_samples, view_steps
from tests.helpers import memory_splits
from tests.unit.distillation.caches import CASES, CLASSES, COUNT, SOFT, Case, build, losses, recipe, teacher_of


@pytest.mark.parametrize(("workers", "micro_batch_size"), [(0, 16), (2, 10)])
def test_hard_labels_give_the_losses_of_the_live_teacher(
    tmp_path: Path, teacher: str, workers: int, micro_batch_size: int
) -> None:
    distilled = recipe(views=2, micro_batch_size=micro_batch_size)
    build(tmp_path / "cache", teacher, distilled, workers=workers)
    live = losses(tmp_path / "live", teacher, distilled)
    assert losses(tmp_path / "cached", tmp_path / "cache", distilled, workers) == live
    assert len(set(live)) == 3
    assert "teacher" in json.loads((tmp_path / "cached" / "evaluation.json").read_text())


def test_one_view_per_epoch_equals_training_without_views(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "cache", teacher)
    assert read_manifest(tmp_path / "cache").views == 3
    live = losses(tmp_path / "live", teacher, recipe())
    assert losses(tmp_path / "cached", tmp_path / "cache", recipe()) == live
    assert "The cached teacher has 3 views, so views = 3." in capsys.readouterr().err


def test_full_top_k_gives_soft_losses_within_the_stated_bound(tmp_path: Path, teacher: str) -> None:
    distilled, splits = recipe(views=2, **SOFT), memory_splits(COUNT)
    build(tmp_path / "cache", teacher, distilled, top_k=3)
    cached = CachedTeacher.open(tmp_path / "cache", distilled, splits, splits.record)
    live_teacher = Teacher.load(teacher, CLASSES, distilled.processor())
    samples = training_samples(distilled, splits.train, teacher_targets=cached.sample_targets)
    student = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    for view in range(2):
        for step in view_steps(distilled, COUNT, view):
            for piece in step:
                batch = samples.batch(piece)
                assert batch.teacher_targets is not None
                true, head = live_teacher(batch.pixel_values), student[: len(batch.labels)]
                ranges = [(logits.max() - logits.min()).item() for logits in (true, head)]
                error = 2 * 2**-11 * ranges[0]
                off = soft_distillation(head, batch.teacher_targets, 3.0) - soft_distillation(head, true, 3.0)
                assert abs(off) <= error * (sum(ranges) + error) / 2 + 1e-5
    live = losses(tmp_path / "live", teacher, distilled)
    assert losses(tmp_path / "cached", tmp_path / "cache", distilled) == pytest.approx(live, abs=1e-3)


def test_top_k_cache_supports_hard_distillation(tmp_path: Path, teacher: str) -> None:
    build(tmp_path / "cache", teacher, recipe(views=2), top_k=2)
    live = losses(tmp_path / "live", teacher, recipe(views=2))
    assert losses(tmp_path / "cached", tmp_path / "cache", recipe(views=2)) == live


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cache_of_another_training_is_rejected(tmp_path: Path, finished: Path, case: Case) -> None:
    with pytest.raises(TeacherError, match=case.word) as caught:
        losses(tmp_path / "run", finished, recipe(**case.fields), splits=case.splits)
    assert str(caught.value).count("\n") == 0
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_cache_suffices_without_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = teacher_of(tmp_path / "t", CLASSES, seed=0)
    build(tmp_path / "cache", str(teacher), views=2)
    expected = losses(tmp_path / "one", tmp_path / "cache", recipe())
    teacher_of(teacher, CLASSES, seed=5)
    assert losses(tmp_path / "two", tmp_path / "cache", recipe()) == expected
    assert "has changed" in capsys.readouterr().err
    teacher.rename(tmp_path / "elsewhere")
    assert losses(tmp_path / "three", tmp_path / "cache", recipe()) == expected
    assert "the cached teacher is not evaluated" in capsys.readouterr().err
    assert "teacher" not in json.loads((tmp_path / "three" / "evaluation.json").read_text())


def test_run_with_cached_logits_is_resumed(tmp_path: Path, teacher: str) -> None:
    build(tmp_path / "cache", teacher, views=2)
    expected = losses(tmp_path / "whole", tmp_path / "cache", recipe())
    losses(tmp_path / "run", tmp_path / "cache", recipe())
    [last] = (tmp_path / "run" / "checkpoints").glob("epoch-000003-*")
    shutil.rmtree(last)
    again = get_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert again.views == 2
    assert losses(tmp_path / "run", tmp_path / "cache", again) == expected


def test_batches_move_with_their_targets(finished: Path) -> None:
    splits = memory_splits(COUNT)
    cached = CachedTeacher.open(finished, recipe(), splits, splits.record)
    batch = training_samples(recipe(), splits.train, teacher_targets=cached.sample_targets).batch(
        view_steps(recipe(), COUNT, 0)[0][0]
    )
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert moved.teacher_targets is not None
    assert moved.teacher_targets.device.type == moved.pixel_values.device.type == "meta"
    assert moved.samples is batch.samples
