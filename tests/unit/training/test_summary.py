"""The summary of a run."""

from __future__ import annotations

from pathlib import Path

from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.summary import image_counts, run_summary
from tests.helpers import memory_splits
from tests.unit.training.trainers import tiny_trainer


def test_summary_states_data_model_and_recipe(tmp_path: Path) -> None:
    trainer, splits = tiny_trainer(tmp_path / "run"), memory_splits(48)
    summary = run_summary(trainer, splits, RunSettings("memory"), None)
    assert summary["Data"] == "memory: 48 train, 9 validation images (made in memory)"
    assert summary["Classes"] == "3 (a, b, c)"
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert summary["Model"] == (
        f"deit-tiny-patch16-224 with patch 8, width 48, depth 2, heads 3 at 32 x 32, {parameters:,} parameters"
    )
    assert summary["Recipe"] == "small-data: 2 epochs of 1 step, batch size 32, peak learning rate 0.01, seed 0"
    assert summary["Precision"] == "fp32 on cpu"
    assert "Teacher" not in summary
    assert image_counts(splits) == {"train": 48, "validation": 9}


def test_masked_image_modeling_uses_no_classes(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, get_recipe("pretrain-mim").tiny())
    assert run_summary(trainer, memory_splits(48), RunSettings("memory"), None)["Classes"] == "not used"
