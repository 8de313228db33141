"""Caches with feature maps: the maps of the live teacher, resuming, extending, and damaged files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deit.checkpoints.weights import read_tensors, write_tensors
from deit.data.loader import Batch, Loader
from deit.distillation import cache_builder, cache_format
from deit.distillation.cache_format import MISSING, REDUCTION_NAME, CachedFeatures, features_path, read_manifest, view_path
from deit.distillation.cached_teacher import CachedTeacher
from deit.distillation.feature_distillation import FeatureDistillation
from deit.distillation.feature_reduction import FeatureReduction
from deit.distillation.protocol import TeacherOutput
from deit.distillation.teacher import Teacher
from deit.errors import DeiTError, ImageError, InterruptedWorkError, NonFiniteOutputError, TeacherError
from deit.recipes.presets import get_recipe
from deit.recipes.samples import first_batches, training_samples, view_steps
from deit.recipes.schema import Recipe
from deit.system import files
from deit.system.files import sha256
from deit.training.model_building import build_model
from deit.training.state import FEATURES_NAME
from deit.training.step import StepContext, batch_losses
from tests.helpers import memory_splits
from tests.unit.distillation import caches
from tests.unit.distillation.caches import CLASSES, COUNT, broken_later, build, losses

VIEWS = 2


def recipe(**fields: Any) -> Recipe:
    return caches.recipe(**{"distillation": {"features": 40.0}, "views": VIEWS, "precision": "fp32", **fields})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Path:
    directory = tmp_path_factory.mktemp("caches") / "with feature maps"
    build(directory, teacher, recipe())
    return directory


def _open(directory: Path, distilled: Recipe | None = None) -> CachedTeacher:
    splits = memory_splits(COUNT)
    return CachedTeacher.open(directory, distilled or recipe(), splits, splits.record)


def _batches(cached: CachedTeacher, workers: int = 0) -> list[Batch]:
    """Returns every batch of every view."""
    samples = training_samples(recipe(), memory_splits(COUNT).train, teacher_targets=cached.sample_targets)
    plans = [plan for view in range(VIEWS) for step in view_steps(recipe(), COUNT, view) for plan in step]
    return list(Loader(samples, workers).run(plans))


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "cache.json"}


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_replays_the_reduced_maps_of_the_live_teacher(cache: Path, teacher: str, workers: int) -> None:
    live = Teacher.load(teacher, CLASSES, recipe().processor())
    cached = _open(cache).to(torch.device("cpu"))
    assert cached.reduction is not None
    images = 0
    for batch in _batches(cached, workers):
        output = cached.targets(batch, features=True)
        logits, feature_maps = live.forward_intermediates(batch.pixel_values)
        assert torch.equal(output.targets, logits.argmax(dim=-1))
        expected = cached.reduction.decode(cached.reduction.encode(feature_maps))
        for one, other in zip(output.feature_maps, expected, strict=True):
            assert torch.equal(one, other)
            assert one.is_contiguous(memory_format=torch.channels_last)
        images += len(batch.labels)
        assert cached.targets(batch).feature_maps == ()
    assert images == VIEWS * 64


def test_reduction_is_that_of_the_live_teacher(tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_builder, "FITTED_SAMPLES", 40)  # two and a half micro-batches
    build(tmp_path / "cache", teacher, recipe(), views=1)
    live = Teacher.load(teacher, CLASSES, recipe().processor())
    batches = first_batches(recipe(), training_samples(recipe(), memory_splits(COUNT).train), 40)
    assert live.feature_reduction(batches, "these").to_bytes() == (tmp_path / "cache" / REDUCTION_NAME).read_bytes()


def test_size_on_disk(cache: Path, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = build(cache, teacher, recipe())
    assert result.built == 0
    shapes = _open(cache).feature_shapes(32, 32)
    live = Teacher.load(teacher, CLASSES, recipe().processor()).feature_shapes(32, 32)
    assert [shape[1:] for shape in shapes] == [shape[1:] for shape in live]  # of at most 16 rows and columns
    assert result.bytes_per_sample == 2 + sum(channels * height * width for channels, height, width in shapes)
    assert result.bytes == VIEWS * 64 * result.bytes_per_sample
    views = [path for view in range(VIEWS) for path in (view_path(cache, view), features_path(cache, view))]
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        ["cache.json", REDUCTION_NAME, *(path.name for path in views)]
    )
    assert sum(path.stat().st_size for path in views) == result.bytes
    assert "is complete" in capsys.readouterr().err


def test_workers_do_not_change_the_cache(cache: Path, tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = build(tmp_path / "cache", teacher, recipe(), workers=2)
    output = capsys.readouterr().err
    assert f"reduced to {result.bytes_per_sample - 2:,} bytes per sample" in output
    assert f"2 views of 64 samples; logits and feature maps, {result.bytes_per_sample:,} bytes" in output
    assert _files(tmp_path / "cache") == _files(cache)


class Stopping:
    """Calls ``how`` when the teacher runs on its ``after``-th batch."""

    def __init__(self, after: int, how: Callable[[], None]) -> None:
        self.after, self.how, self.calls = after, how, 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        call = Teacher.forward_intermediates

        def forward(teacher: Teacher, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
            if len(pixel_values) > 1:  # a single image only shows the shapes
                self.calls += 1
                if self.calls == self.after:
                    self.how()
            return call(teacher, pixel_values)

        monkeypatch.setattr(Teacher, "forward_intermediates", forward)


class PowerFailureError(BaseException):
    pass


def _fail() -> None:
    raise PowerFailureError


# Four micro-batches of 16 fit the reduction, and each of the two views has four.
@pytest.mark.parametrize("after", [2, 5, 6, 7, 8, 9, 10])
def test_interrupted_build_resumes(
    cache: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    stop = Stopping(after, lambda: os.kill(os.getpid(), signal.SIGINT))
    stop.install(monkeypatch)
    with pytest.raises(InterruptedWorkError, match="run the same command again"):
        build(tmp_path / "cache", teacher, recipe())
    calls = stop.calls
    build(tmp_path / "cache", teacher, recipe())
    assert stop.calls == (12 if after > 4 else calls + 12)  # no step twice
    assert _files(tmp_path / "cache") == _files(cache)


@pytest.mark.parametrize("damage", ["none", "flipped", "cut", "missing"])
def test_power_failure_loses_only_unsaved_steps(
    cache: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(cache_builder, "SAVE_INTERVAL", 0.0)
    stop = Stopping(12, _fail)
    stop.install(monkeypatch)
    with pytest.raises(PowerFailureError):
        build(tmp_path / "cache", teacher, recipe())
    part = features_path(tmp_path / "cache", 1).with_suffix(".part")
    content = part.read_bytes()
    changed = {"none": content + b"unsaved", "flipped": b"\1" + content[1:], "cut": content[:-1], "missing": b""}[damage]
    part.write_bytes(changed)
    if damage == "missing":
        part.unlink()
    stop.calls = stop.after = 0
    build(tmp_path / "cache", teacher, recipe())
    assert stop.calls == (2 if damage == "none" else 4)
    assert _files(tmp_path / "cache") == _files(cache)


def test_power_failure_between_a_view_and_its_manifest_loses_nothing(
    cache: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_builder, "SAVE_INTERVAL", 0.0)
    stop = Stopping(0, _fail)

    def write_files(contents: dict[Path, bytes]) -> None:
        if view_path(tmp_path / "cache", 1) in contents:
            _fail()
        files.write_files(contents)

    stop.install(monkeypatch)
    monkeypatch.setattr(cache_builder, "write_files", write_files)
    with pytest.raises(PowerFailureError):
        build(tmp_path / "cache", teacher, recipe())
    assert features_path(tmp_path / "cache", 1).exists()
    monkeypatch.setattr(cache_builder, "write_files", files.write_files)
    stop.calls = 0
    build(tmp_path / "cache", teacher, recipe())
    assert stop.calls == 2  # of the step after the last saved one
    assert _files(tmp_path / "cache") == _files(cache)


def test_verifying_a_large_cache_is_announced(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _open(cache)
    assert "Verifying" not in capsys.readouterr().err
    monkeypatch.setattr(cache_format, "LARGE_CACHE", 100_000)
    _open(cache)
    assert f"Verifying {cache} (0.0 GB)" in capsys.readouterr().err


def test_cache_is_extended_with_the_reduction_that_it_has(cache: Path, tmp_path: Path, teacher: str) -> None:
    build(tmp_path / "cache", teacher, recipe(), views=1)
    assert build(tmp_path / "cache", teacher, recipe(), views=2).built == 64
    assert _files(tmp_path / "cache") == _files(cache)


def test_features_are_stored_if_the_recipe_distills_them_and_as_requested(tmp_path: Path, teacher: str) -> None:
    plain = recipe(distillation={"features": 0.0})
    for name, distilled, requested, stored in (
        ("a", recipe(), None, True),
        ("b", recipe(), False, False),
        ("c", plain, None, False),
        ("d", plain, True, True),
    ):
        build(tmp_path / name, teacher, distilled, views=1, features=requested)
        assert (read_manifest(tmp_path / name).features is not None) == stored
        assert (tmp_path / name / REDUCTION_NAME).exists() == stored
        build(tmp_path / name, teacher, distilled, views=2, features=None)  # keeps what it stores
        assert features_path(tmp_path / name, 1).exists() == stored
        with pytest.raises(TeacherError, match="has feature maps: pass" if stored else "has no feature maps: pass"):
            build(tmp_path / name, teacher, distilled, views=2, features=not stored)


def test_teacher_without_feature_maps(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Teacher, "has_features", False)
    with pytest.raises(TeacherError, match="exposes no feature maps: pass --no-features"):
        build(tmp_path / "cache", teacher, recipe(), features=True)
    assert not (tmp_path / "cache").exists()
    build(tmp_path / "cache", teacher, recipe(), views=1)
    assert read_manifest(tmp_path / "cache").features is None
    assert "exposes no feature maps; only its logits are cached" in capsys.readouterr().err


def test_cache_that_does_not_fit_on_the_disk_is_refused_first(
    cache: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = build(cache, teacher, recipe()).bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size - 1))
    with pytest.raises(TeacherError, match=r"GB free: pass a smaller --views number, or --no-features"):
        build(tmp_path / "a" / "cache", teacher, recipe())
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size))
    build(tmp_path / "a" / "cache", teacher, recipe(), views=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size // 2))
    assert build(tmp_path / "a" / "cache", teacher, recipe()).views == VIEWS


def test_feature_maps_that_are_not_finite_are_not_cached(tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Teacher.forward_intermediates

    def corrupt(teacher: Teacher, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, feature_maps = call(teacher, pixel_values)
        return logits, [feature_map / 0 for feature_map in feature_maps]

    monkeypatch.setattr(Teacher, "forward_intermediates", corrupt)
    with pytest.raises(NonFiniteOutputError, match="feature maps hold NaN or infinite values: pass another teacher"):
        build(tmp_path / "cache", teacher, recipe())
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(Teacher, "forward_intermediates", call)
    build(tmp_path / "cache", teacher, recipe(), views=1)
    monkeypatch.setattr(Teacher, "forward_intermediates", corrupt)
    with pytest.raises(NonFiniteOutputError, match="NaN or infinite"):
        build(tmp_path / "cache", teacher, recipe(), views=2)


class _Reduced:
    """The live teacher with the feature maps that a cache would store."""

    def __init__(self, teacher: Teacher, reduction: FeatureReduction) -> None:
        self.teacher, self.reduction = teacher, reduction

    def targets(self, batch: Batch, features: bool = False) -> TeacherOutput:
        output = self.teacher.targets(batch, features)
        return TeacherOutput(output.targets, self.reduction.decode(self.reduction.encode(output.feature_maps)))


def test_feature_loss_is_that_of_the_live_teacher_with_reduced_maps(cache: Path, teacher: str) -> None:
    cached = _open(cache)
    assert cached.reduction is not None
    live = Teacher.load(teacher, CLASSES, recipe().processor())
    model = build_model(recipe(), CLASSES, None).model
    features = FeatureDistillation(model.config, cached.feature_shapes(32, 32), seed=0)  # type: ignore[arg-type]
    context = StepContext(recipe(), "fp32", cached, features)
    for step, batch in enumerate(_batches(cached)[:3]):
        found = batch_losses(model, batch, context, epoch=0, step=step)
        reduced = replace(context, teacher=_Reduced(live, cached.reduction))  # type: ignore[arg-type]
        expected = batch_losses(model, batch, reduced, epoch=0, step=step)
        assert torch.isfinite(found["feature_loss"])
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        found["loss"].backward()  # type: ignore[no-untyped-call]
        assert all(torch.isfinite(head[1].weight.grad).all() for head in features.heads)  # type: ignore[index]


def test_run_distills_cached_feature_maps(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = losses(tmp_path / "run", cache, recipe())
    assert np.isfinite(found).all()
    assert "without feature maps" not in capsys.readouterr().err
    assert list((tmp_path / "run" / "checkpoints").rglob(FEATURES_NAME))
    assert losses(tmp_path / "workers", cache, recipe(), workers=2) == found
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(row["feature_loss"] > 0 for row in log)


def test_bfloat16_maps_under_autocast(cache: Path) -> None:
    cached = _open(cache)
    batch = _batches(cached)[0]
    exact = cached.targets(batch, features=True).feature_maps
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cached.targets(batch, features=True).feature_maps
    assert {one.dtype for one in rounded} == {torch.bfloat16}
    for one, other in zip(rounded, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2**-7, atol=1e-6)


def test_run_without_feature_maps_says_so(tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "cache", teacher, recipe(), features=False)
    losses(tmp_path / "run", tmp_path / "cache", recipe(epochs=1))
    assert "is a cache without feature maps; training uses its logits only" in capsys.readouterr().err


def test_recipe_without_feature_distillation_reads_none(cache: Path) -> None:
    plain = recipe(distillation={"features": 0.0})
    cached = _open(cache, plain)
    assert cached.feature_shapes(32, 32) == []
    assert cached.sample_targets.feature_bytes == 0
    assert _batches(cached)[0].teacher_features is None


def test_error_of_the_data_is_not_one_of_the_reduction(tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImageError("The image is broken", "replace it")

    Stopping(2, fail).install(monkeypatch)
    with pytest.raises(ImageError, match="The image is broken: replace it"):
        build(tmp_path / "cache", teacher, recipe())
    assert not (tmp_path / "cache").exists()


def test_unreadable_images_are_left_out(tmp_path: Path, teacher: str) -> None:
    build(tmp_path / "cache", teacher, recipe(), splits=broken_later(), skip_unreadable=True)
    rows = np.concatenate([np.fromfile(view_path(tmp_path / "cache", view), "<u2") for view in range(VIEWS)])
    parts = [np.fromfile(features_path(tmp_path / "cache", view), np.int8) for view in range(VIEWS)]
    missing, features = rows == MISSING, np.concatenate(parts).reshape(len(rows), -1)
    assert 0 < missing.sum() < len(missing)
    assert (features.any(axis=1) != missing).all()
    found = losses(tmp_path / "run", tmp_path / "cache", recipe(), splits=broken_later(), skip_unreadable=True)
    assert np.isfinite(found).all()


def test_batch_moves_and_is_measured_with_its_feature_maps(cache: Path) -> None:
    cached = _open(cache)
    batch = _batches(cached)[0]
    assert batch.teacher_features is not None
    assert batch.teacher_features.dtype == torch.int8
    assert batch.to(torch.device("meta")).teacher_features.device.type == "meta"  # type: ignore[union-attr]
    train = memory_splits(COUNT).train
    with_features = training_samples(recipe(), train, teacher_targets=cached.sample_targets)
    plain = _open(cache, recipe(distillation={"features": 0.0})).sample_targets
    difference = with_features.batch_bytes(16) - training_samples(recipe(), train, teacher_targets=plain).batch_bytes(16)
    assert difference == batch.teacher_features.nbytes


def _copy(cache: Path, directory: Path) -> Path:
    shutil.copytree(cache, directory)
    return directory


@pytest.mark.parametrize("name", ["features-000001.bin", REDUCTION_NAME])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "missing"])
def test_damaged_files_are_rejected(cache: Path, tmp_path: Path, teacher: str, name: str, damage: str) -> None:
    path = _copy(cache, tmp_path / "cache") / name
    content = path.read_bytes()
    flipped = bytes([*content[:-1], content[-1] ^ 1])
    path.write_bytes({"flipped": flipped, "cut": content[:-1], "longer": content + b"\0", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    for attempt in (lambda: _open(tmp_path / "cache"), lambda: build(tmp_path / "cache", teacher, recipe(), views=3)):
        with pytest.raises(TeacherError, match=f"{name} is missing or damaged"):
            attempt()


@pytest.mark.parametrize("shape", [[1, 1, 1], [4096, 1024, 1024], [2**40, 1, 1], [0, 4, 4], [-1, 4, 4], [16, 16], "x", None])
@pytest.mark.parametrize("count", [1, 99])
def test_absurd_shapes_are_rejected(cache: Path, tmp_path: Path, shape: Any, count: int) -> None:
    path = _copy(cache, tmp_path / "cache") / "cache.json"
    content = json.loads(path.read_text())
    content["features"]["shapes"] = [shape] * count
    path.write_text(json.dumps(content))
    with pytest.raises(TeacherError, match=r"corrupt|damaged"):
        _open(tmp_path / "cache")


@pytest.mark.parametrize("sums", [[], ["0" * 64] * VIEWS, ["0" * 64] * 3])
def test_wrong_hashes_are_rejected(cache: Path, tmp_path: Path, sums: list[str]) -> None:
    path = _copy(cache, tmp_path / "cache") / "cache.json"
    content = json.loads(path.read_text())
    content["features"]["sha256"] = sums
    path.write_text(json.dumps(content))
    with pytest.raises(TeacherError, match=r"corrupt|damaged"):
        _open(tmp_path / "cache")


def test_shapes_that_do_not_fit_the_reduction_are_rejected(cache: Path, tmp_path: Path) -> None:
    path = _copy(cache, tmp_path / "cache") / "cache.json"
    content = json.loads(path.read_text())
    channels, height, width = content["features"]["shapes"][0]
    content["features"]["shapes"][0] = [1, channels * height, width]  # of the same size
    path.write_text(json.dumps(content))
    with pytest.raises(TeacherError, match=f"{REDUCTION_NAME} is missing or damaged"):
        _open(tmp_path / "cache")


def _unfinished(cache: Path, directory: Path) -> tuple[Path, dict[str, Any]]:
    """Copies a cache, and returns its manifest without the finished views."""
    content = json.loads((_copy(cache, directory) / "cache.json").read_text())
    return directory, {**content, "sha256": [], "features": {**content["features"], "sha256": []}}


@pytest.mark.parametrize("changes", [{"more": 1}, {"side": 1024}, {"channels": 1}])
def test_cache_of_other_feature_maps_is_not_resumed(cache: Path, tmp_path: Path, teacher: str, changes: dict[str, int]) -> None:
    directory, content = _unfinished(cache, tmp_path / "cache")
    features, path = content["features"], directory / REDUCTION_NAME
    if "more" in changes:
        features["shapes"].append([1, 1, 1])
    if "side" in changes:
        features["shapes"][0][1:] = [1024, 1024]
    if "channels" in changes:
        tensors = read_tensors(path)
        tensors["maps.0.mean"] = torch.cat([tensors["maps.0.mean"], torch.zeros(1)])
        tensors["maps.0.basis"] = torch.cat([tensors["maps.0.basis"], tensors["maps.0.basis"][:1]])
        write_tensors(path, tensors)
        features["reduction"] = sha256(path)
    (directory / "cache.json").write_text(json.dumps(content))
    with pytest.raises(TeacherError, match="corrupt: its feature maps are not the teacher's"):
        build(directory, teacher, recipe())


def test_file_that_shrinks_after_the_check_is_rejected(cache: Path, tmp_path: Path) -> None:
    cached = _open(_copy(cache, tmp_path / "cache"))
    path = features_path(tmp_path / "cache", 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DeiTError, match="missing or damaged"):
        _batches(cached)


def test_forged_reduction_is_rejected(cache: Path, tmp_path: Path) -> None:
    directory = _copy(cache, tmp_path / "cache")
    (directory / REDUCTION_NAME).write_bytes(b"\0" * 100)
    content = json.loads((directory / "cache.json").read_text())
    content["features"]["reduction"] = sha256(directory / REDUCTION_NAME)  # the hash is right
    (directory / "cache.json").write_text(json.dumps(content))
    assert CachedFeatures(**content["features"])
    with pytest.raises(TeacherError, match="missing or damaged"):
        _open(directory)


def test_run_is_resumed(cache: Path, tmp_path: Path) -> None:
    expected = losses(tmp_path / "whole", cache, recipe())
    losses(tmp_path / "run", cache, recipe())
    [last] = (tmp_path / "run" / "checkpoints").glob("epoch-000003-*")
    shutil.rmtree(last)
    assert losses(tmp_path / "run", cache, get_recipe(str(tmp_path / "run" / "recipe.toml"))) == expected
