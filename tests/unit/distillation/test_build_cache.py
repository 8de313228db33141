"""Building and resuming a cache, and training from it with the losses of the live teacher."""

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

from deit.data.loader import Batch
from deit.distillation import build_cache as building
from deit.distillation.build_cache import CacheResult, build_cache_on
from deit.distillation.cache_format import MISSING, read_manifest, view_path
from deit.distillation.cached_teacher import CachedTeacher
from deit.distillation.teacher import Teacher
from deit.errors import InterruptedWorkError, TeacherError, UserError, WorkError
from deit.images.processor import DeiTImageProcessor
from deit.models.losses import soft_distillation
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.samples import training_samples, view_steps
from deit.recipes.schema import Recipe
from deit.training.loop import read_log
from deit.training.run import train_on
from tests.helpers import MemorySource, MemorySplits, memory_splits, randomized, tiny_deit

CLASSES = ("a", "b", "c")
COUNT = 75  # two steps of 32 and a remainder that is dropped


def recipe(**fields: Any) -> Recipe:
    """A tiny recipe with the paper's repeated augmentation, mixing and stochastic depth."""
    return get_recipe("deit-distilled").tiny().replace(**{"epochs": 3, **fields})


SOFT: dict[str, Any] = {"distillation": {"mode": "soft"}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("a teacher")
    network = new_timm_classifier("test_resnet", CLASSES, get_recipe("deit").tiny().processor(), {}, seed=0)
    randomized(network, std=0.1).save_pretrained(path)
    return str(path)


def build(directory: Path, teacher: str, distilled: Recipe | None = None, **options: Any) -> CacheResult:
    run = RunSettings("memory", teacher=teacher, skip_unreadable=options.pop("skip_unreadable", False))
    splits = options.pop("splits", None) or memory_splits(COUNT)
    return build_cache_on(splits, distilled or recipe(), run, directory, device="cpu", **{"workers": 0, **options})


def losses(directory: Path, teacher: str | Path, distilled: Recipe, workers: int = 0, **options: Any) -> list[float]:
    run = RunSettings("memory", teacher=str(teacher), skip_unreadable=options.pop("skip_unreadable", False))
    train_on(options.get("splits") or memory_splits(COUNT), distilled, run, directory, device="cpu", workers=workers)
    return [row["loss"] for row in read_log(directory)]


def test_cache_covers_every_sample_of_every_view(tmp_path: Path, teacher: str) -> None:
    result = build(tmp_path / "a cache", teacher, views=2)
    assert (result.images, result.views, result.bytes, result.bytes_per_sample) == (64, 2, 256, 2)
    assert result.built == 128
    assert result.images_per_second == pytest.approx(128 / result.seconds)
    assert json.loads(json.dumps(result.to_dict()))["directory"] == str(tmp_path / "a cache")
    for view in range(2):
        rows = np.fromfile(view_path(tmp_path / "a cache", view), "<u2")
        assert rows.shape == (64,)
        assert set(rows) <= {0, 1, 2}
    assert sorted(path.name for path in (tmp_path / "a cache").iterdir()) == [
        *("cache.json", "view-000000.bin", "view-000001.bin")
    ]


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


def test_views_repeat_but_stochastic_depth_does_not(tmp_path: Path) -> None:
    distilled = recipe(views=2)
    assert [distilled.view(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    assert [recipe().view(epoch) for epoch in range(3)] == [0, 1, 2]
    still = {"drop_path": 0.0}
    frozen = {"lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0, "weight_decay": 0.0}
    base = get_recipe("deit").tiny().replace(epochs=2, views=1, optimizer=frozen)
    run = RunSettings("memory")
    for name, changes in {"still": {"model": still}, "deep": {}}.items():
        train_on(memory_splits(COUNT), base.replace(**changes), run, tmp_path / name, device="cpu", workers=0)
    first, second = (row["loss"] for row in read_log(tmp_path / "still"))
    assert first == second  # the same samples, and a learning rate of 0
    first, second = (row["loss"] for row in read_log(tmp_path / "deep"))
    assert first != second


class Stopping:
    """Stops a build at its ``after``-th micro-batch, like SIGINT or a power failure."""

    def __init__(self, after: int, how: Callable[[], None]) -> None:
        self.after, self.how, self.calls = after, how, 0

    def __call__(self, pixels: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.after:
            self.how()
        return call(pixels)


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class PowerFailureError(BaseException):
    pass


def _fail() -> None:
    raise PowerFailureError


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], Stopping]:
    def install(after: int, how: Callable[[], None]) -> Stopping:
        stop, call = Stopping(after, how), Teacher.__call__
        monkeypatch.setattr(Teacher, "__call__", lambda self, pixels: stop(pixels, lambda values: call(self, values)))
        return stop

    return install


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("after", [1, 2, 4, 5, 8])
def test_interrupted_build_resumes(tmp_path: Path, teacher: str, stopping: Any, after: int, top_k: int | None) -> None:
    build(tmp_path / "whole", teacher, views=3, top_k=top_k)
    stop = stopping(after, _interrupt)
    with pytest.raises(InterruptedWorkError, match="run the same command again to resume"):
        build(tmp_path / "cache", teacher, views=3, top_k=top_k)
    with pytest.raises(TeacherError, match="of its 3 views: run the same"):
        losses(tmp_path / "run", tmp_path / "cache", recipe())
    stop.after, stop.calls = 0, 0
    result = build(tmp_path / "cache", teacher, views=3, top_k=top_k)
    assert stop.calls == 12 - 2 * -(-after // 2)  # two micro-batches per step, no step twice
    assert result.built == 32 * stop.calls // 2
    for view in range(3):
        assert view_path(tmp_path / "cache", view).read_bytes() == view_path(tmp_path / "whole", view).read_bytes()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_power_failure_loses_only_unsaved_steps(
    tmp_path: Path, teacher: str, stopping: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "whole", teacher, views=2)
    monkeypatch.setattr(building, "SAVE_INTERVAL", 0.0)
    stop = stopping(7, _fail)
    with pytest.raises(PowerFailureError):
        build(tmp_path / "cache", teacher, views=2)
    [part] = (tmp_path / "cache").glob("*.part")
    for content in (part.read_bytes(), b"\0" + part.read_bytes()[1:]):  # the second is damaged: its view is started over
        part.write_bytes(content)
        stop.calls, stop.after = 0, 2
        with pytest.raises(PowerFailureError):
            build(tmp_path / "cache", teacher, views=2)
    stop.after = 0
    build(tmp_path / "cache", teacher, views=2)
    for view in range(2):
        assert view_path(tmp_path / "cache", view).read_bytes() == view_path(tmp_path / "whole", view).read_bytes()


def test_complete_cache_can_be_extended(tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "cache", teacher, views=1)
    first = view_path(tmp_path / "cache", 0).read_bytes()
    again = build(tmp_path / "cache", teacher, views=1)
    assert again.built == 0
    assert "is complete: 1 views of 64 samples" in capsys.readouterr().err
    assert build(tmp_path / "cache", teacher, views=2).built == 64
    assert view_path(tmp_path / "cache", 0).read_bytes() == first
    assert build(tmp_path / "cache", teacher, views=1).views == 2


def test_unreadable_images_are_left_out_as_in_training(tmp_path: Path, teacher: str) -> None:
    distilled, skip = recipe(views=2), {"skip_unreadable": True}
    build(tmp_path / "cache", teacher, distilled, splits=_broken(), **skip)
    rows = np.concatenate([np.fromfile(view_path(tmp_path / "cache", view), "<u2") for view in range(2)])
    assert (rows == MISSING).any()
    live = losses(tmp_path / "live", teacher, distilled, splits=_broken(), **skip)
    assert losses(tmp_path / "cached", tmp_path / "cache", distilled, splits=_broken(), **skip) == live
    with pytest.raises(TeacherError, match=r"other pixels|is readable, and was not when"):
        losses(tmp_path / "mended", tmp_path / "cache", distilled)


def _broken() -> MemorySplits:
    """Two images whose headers are valid and which fail to decode."""
    return replace(memory_splits(COUNT), train=_BrokenLater(COUNT, broken=frozenset({4, 7})))


class _BrokenLater(MemorySource):
    """Images that can be opened once, as on a failing disk."""

    def load(self, index: int) -> Any:
        seen: set[int] = self.__dict__.setdefault("_seen", set())
        if index in self.broken and index not in seen:
            seen.add(index)
            return replace(self, broken=frozenset()).load(index)
        return super().load(index)


class Case:
    """A change between building and training, and the message that names it."""

    def __init__(self, word: str, *, splits: MemorySplits | None = None, **fields: Any) -> None:
        self.word, self.splits, self.fields = word, splits, fields


def _renamed() -> MemorySplits:
    splits = memory_splits(COUNT)
    return replace(splits, train=MemorySource(COUNT, ("a", "b", "d")), validation=MemorySource(9, ("a", "b", "d")))


CASES = {
    "seed": Case("seed = 0, but the recipe has 1", seed=1),
    "batch": Case("batch_size = 32, but the recipe has 16", batch_size=16),
    "size": Case(r"image_size = \[32, 32\], but the recipe has \[40, 40\]", model={"image_size": 40}),
    "augmentation": Case("augmentation.flip = 0.5, but the recipe has 0.25", augmentation={"flip": 0.25}),
    "magnitude": Case("augmentation.randaugment.magnitude", augmentation={"randaugment": {"magnitude": 1.0}}),
    "repeats": Case("augmentation.repeats = 3, but the recipe has 1", augmentation={"repeats": 1}),
    "mixing": Case("mixing.mixup", mixing={"mixup": 0.1}),
    "views": Case("has 2 views, but the recipe needs 3", views=3),
    "soft": Case("hard labels.*--top-k", **SOFT),
    "data": Case("another data set", splits=replace(memory_splits(COUNT), fingerprint="another")),
    "images": Case("75 training images, but 74", splits=replace(memory_splits(COUNT), train=MemorySource(COUNT - 1))),
    "classes": Case("'c' as class 2, but the data has 'd'", splits=_renamed()),
    "pixels": Case(
        "other pixels", splits=replace(memory_splits(COUNT), train=MemorySource(COUNT, broken=frozenset(), shift=1))
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Path:
    directory = tmp_path_factory.mktemp("caches") / "cache"
    build(directory, teacher, views=2)
    return directory


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cache_of_another_training_is_rejected(tmp_path: Path, finished: Path, case: Case) -> None:
    with pytest.raises(TeacherError, match=case.word) as caught:
        losses(tmp_path / "run", finished, recipe(**case.fields), splits=case.splits)
    assert str(caught.value).count("\n") == 0
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()


RESUMED = {name: case for name, case in CASES.items() if name not in ("views", "soft")}


@pytest.mark.parametrize("case", RESUMED.values(), ids=RESUMED)
def test_cache_is_not_resumed_for_another_training(tmp_path: Path, finished: Path, teacher: str, case: Case) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    if case.word.startswith("'c' as class"):
        teacher = str(_teacher_of(tmp_path / "t", ("a", "b", "d"), seed=0))
    with pytest.raises(TeacherError, match=case.word):
        build(finished, teacher, recipe(**case.fields), splits=case.splits, views=3)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def _teacher_of(path: Path, classes: tuple[str, ...], seed: int) -> Path:
    network = new_timm_classifier("test_resnet", classes, get_recipe("deit").tiny().processor(), {}, seed=seed)
    randomized(network, seed=seed, std=0.1).save_pretrained(path)
    return path


def test_other_teacher_or_top_k_is_rejected(tmp_path: Path, finished: Path, teacher: str) -> None:
    with pytest.raises(TeacherError, match="built with another teacher"):
        build(finished, str(_teacher_of(tmp_path / "other", CLASSES, seed=1)), views=2)
    with pytest.raises(TeacherError, match="hard labels, but top-2 logits are requested"):
        build(finished, teacher, views=2, top_k=2)


def test_other_versions_and_damage_are_rejected(tmp_path: Path, teacher: str) -> None:
    cache = tmp_path / "cache"
    build(cache, teacher, views=1)
    content = json.loads((cache / "cache.json").read_text())
    (cache / "cache.json").write_text(json.dumps({**content, "software": {**content["software"], "Pillow": "12.9"}}))
    with pytest.raises(TeacherError, match=r"built with Pillow 12\.9, but "):
        losses(tmp_path / "run", cache, recipe())
    (cache / "cache.json").write_text(json.dumps({**content, "pixel_probe": "%%%"}))
    with pytest.raises(TeacherError, match="corrupt"):
        losses(tmp_path / "run", cache, recipe())
    for corrupt in ({"steps": 2**39}, {"batch_size": 16, "steps": 4}):  # with the second, the files have the right size
        (cache / "cache.json").write_text(json.dumps({**content, **corrupt}))
        for attempt in (lambda: losses(tmp_path / "run", cache, recipe()), lambda: build(cache, teacher, views=2)):
            with pytest.raises(TeacherError, match="is corrupt: its steps"):
                attempt()
    (cache / "cache.json").write_text(json.dumps(content))
    raw = bytearray(view_path(cache, 0).read_bytes())
    raw[7] ^= 1
    view_path(cache, 0).write_bytes(raw)
    for attempt in (lambda: losses(tmp_path / "run", cache, recipe()), lambda: build(cache, teacher, views=2)):
        with pytest.raises(TeacherError, match=r"view-000000\.bin is missing or damaged"):
            attempt()


def test_cache_suffices_without_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = _teacher_of(tmp_path / "t", CLASSES, seed=0)
    build(tmp_path / "cache", str(teacher), views=2)
    expected = losses(tmp_path / "one", tmp_path / "cache", recipe())
    _teacher_of(teacher, CLASSES, seed=5)
    assert losses(tmp_path / "two", tmp_path / "cache", recipe()) == expected
    assert "has changed" in capsys.readouterr().err
    teacher.rename(tmp_path / "elsewhere")
    assert losses(tmp_path / "three", tmp_path / "cache", recipe()) == expected
    assert "the cached teacher is not evaluated" in capsys.readouterr().err
    assert "teacher" not in json.loads((tmp_path / "three" / "evaluation.json").read_text())


def test_fine_tuning_uses_image_size_and_normalization_of_the_checkpoint(tmp_path: Path, teacher: str) -> None:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit(image_size=48)), std=0.1)
    model.save_pretrained(tmp_path / "model")
    DeiTImageProcessor.for_size(48, 48, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).save_pretrained(tmp_path / "model")
    distilled = get_recipe("finetune-distilled").replace(
        epochs=1, views=1, batch_size=32, micro_batch_size=16, precision="fp32"
    )
    run = RunSettings("memory", init=str(tmp_path / "model"), teacher=teacher)
    build_cache_on(memory_splits(COUNT), distilled, run, tmp_path / "cache", device="cpu", workers=0)
    settings = read_manifest(tmp_path / "cache").pixel_settings
    assert (settings["image_size"], settings["mean"]) == ([48, 48], [0.1, 0.2, 0.3])
    found = []
    for name, source in {"live": teacher, "cached": str(tmp_path / "cache")}.items():
        train_on(memory_splits(COUNT), distilled, replace(run, teacher=source), tmp_path / name, device="cpu", workers=0)
        found.append(read_log(tmp_path / name)[0]["loss"])
    assert found[0] == found[1]


def test_run_with_cached_logits_is_resumed(tmp_path: Path, teacher: str) -> None:
    build(tmp_path / "cache", teacher, views=2)
    expected = losses(tmp_path / "whole", tmp_path / "cache", recipe())
    losses(tmp_path / "run", tmp_path / "cache", recipe())
    [last] = (tmp_path / "run" / "checkpoints").glob("epoch-000003-*")
    shutil.rmtree(last)
    again = get_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert again.views == 2
    assert losses(tmp_path / "run", tmp_path / "cache", again) == expected


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({"model": {"variant": "deit-tiny-patch16-224"}, "distillation": {"mode": "none"}}, {}, "from labels only"),
        (SOFT, {}, "pass --top-k"),
        ({}, {"views": 0}, "at least one view"),
        ({}, {"views": 1, "top_k": 0}, "at least one view"),
    ],
)
def test_invalid_requests_are_rejected_first(
    tmp_path: Path, teacher: str, fields: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        build(tmp_path / "cache", teacher, recipe(**fields), **options)
    assert not (tmp_path / "cache").exists()


def test_foreign_directory_and_cache_as_teacher_are_rejected(tmp_path: Path, finished: Path, teacher: str) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TeacherError, match="is not a cache"):
        build(tmp_path, teacher, views=1)
    with pytest.raises(TeacherError, match="is a cache already"):
        build(tmp_path / "cache", str(finished), views=1)


def test_non_finite_logits_are_not_cached(tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "__call__", lambda _self, pixels: torch.full((len(pixels), 3), float("nan")))
    with pytest.raises(WorkError, match="not finite"):
        build(tmp_path / "cache", teacher, views=1)


def test_top_k_is_limited_to_the_number_of_classes(tmp_path: Path, teacher: str) -> None:
    assert build(tmp_path / "cache", teacher, views=1, top_k=100).bytes_per_sample == 12


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
