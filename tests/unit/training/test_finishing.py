"""Finishing a run."""

from __future__ import annotations

import json
from pathlib import Path

from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.finishing import finish_pretraining, finish_training
from tests.helpers import memory_splits
from tests.unit.training.trainers import tiny_trainer


def test_training_ends_with_evaluation_cards_and_report(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.fit()
    result = finish_training(trainer, memory_splits(48), None, RunSettings("memory"))
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert (content["split"], content["best_epoch"]) == ("validation", trainer.state.best["epoch"])
    assert content["heads"]["class"]["top1"] == result.evaluation.main.top1
    assert content["data"] == {"images": {"train": 48, "validation": 9}, "origin": "made in memory"}
    assert (result.split, result.teacher, "teacher" in content) == ("validation", None, False)
    for name in ("best/README.md", "last/README.md", "report.html"):
        assert (tmp_path / name).is_file()


def test_pretraining_ends_with_its_loss(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, get_recipe("pretrain-mim").tiny())
    trainer.fit()
    result = finish_pretraining(trainer)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {
        "split": "validation",
        "best_epoch": result.epoch,
        "loss": result.loss,
    }
