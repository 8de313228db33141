"""Finishing a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from deit.data.image_hashes import ImageHashes, SeenImages
from deit.data.sources import subset
from deit.data.splits import Splits
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.training.finishing import finish_pretraining, finish_training
from tests.helpers import MemorySource, memory_splits
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


@pytest.mark.parametrize(
    ("validation", "images", "seen"),
    [(range(18, 30), 6, SeenImages(6, 0, 6)), (range(12), 12, SeenImages(0, 12, 0)), (range(24, 30), 6, SeenImages(0, 0, 6))],
)
def test_copies_of_training_images_are_left_out(tmp_path: Path, validation: range, images: int, seen: SeenImages) -> None:
    source = MemorySource(30)
    splits = Splits(subset(source, range(24)), subset(source, validation), None, "made in memory", "0" * 64)
    trainer = tiny_trainer(tmp_path)
    for name in ("best", "last"):
        trainer.model.save_pretrained(tmp_path / name)
        trainer.validation.processor.save_pretrained(tmp_path / name)
    (tmp_path / "best" / "training_images.bin").write_bytes(ImageHashes.of(splits.train, splits.validation).to_bytes())
    trainer.state.best = {"epoch": 1}
    result = finish_training(trainer, splits, None, RunSettings("memory"))
    assert (result.evaluation.images, result.evaluation.seen) == (images, seen)
    assert json.loads((tmp_path / "evaluation.json").read_text())["seen"] == asdict(seen)
