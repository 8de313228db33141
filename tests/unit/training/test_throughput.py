"""Measuring throughput leaves the trainer unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deit.training import throughput
from deit.training.throughput import remaining_seconds, seconds_per_image
from tests.unit.training.trainers import tiny_trainer


def test_measurement_does_not_change_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.01)
    trainer = tiny_trainer(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert seconds_per_image(trainer) > 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.state.steps_taken == 0


def test_remaining_time_is_proportional_to_the_remaining_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "seconds_per_image", lambda _: 0.5)
    trainer = tiny_trainer(tmp_path)
    assert remaining_seconds(trainer) == 0.5 * 64
    trainer.state.start_epoch(1)
    trainer.state.images = 8
    assert remaining_seconds(trainer) == 0.5 * 24
