"""Building and resuming caches."""

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

from deit.checkpoints.run_log import read_log
from deit.distillation import cache_builder
from deit.distillation.build_cache import build_cache_on
from deit.distillation.cache_format import MISSING, read_manifest, view_path
from deit.distillation.teacher import Teacher
from deit.errors import InterruptedWorkError, TeacherError, UserError, WorkError
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.run import train_on
from tests.helpers import memory_splits, randomized, tiny_deit
from tests.unit.distillation.caches import CASES, CLASSES, COUNT, SOFT, Case, broken_later, build, losses, recipe, teacher_of


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
    monkeypatch.setattr(cache_builder, "SAVE_INTERVAL", 0.0)
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
    assert "is complete: 1 view of 64 samples" in capsys.readouterr().err
    assert build(tmp_path / "cache", teacher, views=2).built == 64
    assert view_path(tmp_path / "cache", 0).read_bytes() == first
    assert build(tmp_path / "cache", teacher, views=1).views == 2


def test_extended_cache_refers_to_the_current_location_of_its_teacher(tmp_path: Path, teacher: str) -> None:
    build(tmp_path / "cache", teacher, views=1)
    shutil.copytree(teacher, tmp_path / "moved")
    build(tmp_path / "cache", str(tmp_path / "moved"), views=2)
    assert read_manifest(tmp_path / "cache").teacher.location == str(tmp_path / "moved")


def test_unreadable_images_are_left_out_as_in_training(tmp_path: Path, teacher: str) -> None:
    distilled, skip = recipe(views=2), {"skip_unreadable": True}
    build(tmp_path / "cache", teacher, distilled, splits=broken_later(), **skip)
    rows = np.concatenate([np.fromfile(view_path(tmp_path / "cache", view), "<u2") for view in range(2)])
    assert (rows == MISSING).any()
    live = losses(tmp_path / "live", teacher, distilled, splits=broken_later(), **skip)
    assert losses(tmp_path / "cached", tmp_path / "cache", distilled, splits=broken_later(), **skip) == live
    with pytest.raises(TeacherError, match=r"other pixels|is readable, and was not when"):
        losses(tmp_path / "mended", tmp_path / "cache", distilled)


RESUMED = {name: case for name, case in CASES.items() if name not in ("views", "soft")}


@pytest.mark.parametrize("case", RESUMED.values(), ids=RESUMED)
def test_cache_is_not_resumed_for_another_training(tmp_path: Path, finished: Path, teacher: str, case: Case) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    if case.word.startswith("'c' as class"):
        teacher = str(teacher_of(tmp_path / "t", ("a", "b", "d"), seed=0))
    with pytest.raises(TeacherError, match=case.word):
        build(finished, teacher, recipe(**case.fields), splits=case.splits, views=3)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_other_teacher_or_top_k_is_rejected(tmp_path: Path, finished: Path, teacher: str) -> None:
    with pytest.raises(TeacherError, match="built with another teacher"):
        build(finished, str(teacher_of(tmp_path / "other", CLASSES, seed=1)), views=2)
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


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({"model": {"variant": "deit-tiny-patch16-224"}, "distillation": {"mode": "none"}}, {}, "from labels only"),
        (SOFT, {}, "pass --top-k"),
        ({}, {"views": 0}, "at least one view"),
        ({}, {"views": 1, "top_k": 0}, "at least one view"),
        ({}, {"views": 2_000_000}, "at most 20,000 views"),
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
    with pytest.raises(WorkError, match="predicts NaN or infinite values"):
        build(tmp_path / "cache", teacher, views=1)


def test_top_k_is_limited_to_the_number_of_classes(tmp_path: Path, teacher: str) -> None:
    assert build(tmp_path / "cache", teacher, views=1, top_k=100).bytes_per_sample == 12
