"""Building trainers, restoring them, and fitting a recipe to a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deit.errors import CheckpointError
from deit.recipes.planning import needs_planning
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training import trainer_building
from deit.training.state import latest_checkpoint
from deit.training.trainer_building import fit_recipe_to_time, restore
from tests.helpers import memory_splits
from tests.unit.training.trainers import tiny_trainer


def test_trainer_starts_at_the_beginning(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    assert (trainer.state.epoch, trainer.state.step) == (0, 0)
    assert (trainer.steps_per_epoch, trainer.images_per_epoch, trainer.remaining_images) == (1, 32, 64)
    assert trainer.ema is not None
    assert trainer.context.features is None
    assert tiny_trainer(tmp_path, get_recipe("deit").tiny().replace(ema={"decay": 0.0})).ema is None


def test_restored_trainer_has_state_and_weights(tmp_path: Path) -> None:
    trained = tiny_trainer(tmp_path)
    trained.fit()
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    trainer = tiny_trainer(tmp_path)
    restore(trainer, checkpoint, "memory")
    assert trainer.state == trained.state
    assert trainer.remaining_images == 0
    for name, value in trained.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="is not the data"):
        restore(tiny_trainer(tmp_path, images=51), checkpoint, "memory")


def test_recipe_is_fitted_to_the_measured_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    splits, settings, device = memory_splits(48), RunSettings("memory"), torch.device("cpu")
    monkeypatch.setattr(trainer_building, "seconds_per_image", lambda _: 0.01)
    fixed = get_recipe("small-data").tiny()
    assert fit_recipe_to_time(fixed, splits, splits.record, settings, device, 0) == (fixed, [])
    timed, notes = fit_recipe_to_time(fixed.replace(minutes=1), splits, splits.record, settings, device, 0)
    assert timed.epochs == int(60 * 0.9 / 0.01 / 48)
    assert not needs_planning(timed)
    assert notes[0].startswith("112 epochs in 1 min, at a measured 100 images/s")
    assert "Measuring how fast candidate models train" in capsys.readouterr().err
