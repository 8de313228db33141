"""The parts of the training step on small data."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import small_step
from benchmarks.kills import make_images

from deit.recipes.presets import get_recipe
from deit.training.run import train


def test_parts_of_a_step_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "images")
    train(tmp_path / "images", get_recipe("convnet").tiny(), out=tmp_path / "teacher", workers=0, device="cpu")
    monkeypatch.setattr(small_step, "PART_STEPS", 2)
    monkeypatch.setattr(small_step, "INTERVAL", 2)
    monkeypatch.setattr(small_step, "measure_matmul_peak", lambda _: 1e12)
    parts = small_step.measure_parts(small_step.student_trainer(tmp_path / "images", tmp_path / "teacher"))
    names = ["loading, augmentation", "teacher", "student, forward", "feature loss, forward", "backward"]
    assert list(parts["milliseconds_per_image"]) == [*names, "optimizer, clipping and EMA"]
    assert min(parts["milliseconds_per_image"].values()) > 0
    assert parts["flops_per_image"] > 1e8
