"""Building trainers, restoring them, and fitting a recipe to a time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deit.data.image_hashes import ImageHashes, content_hashes
from deit.data.sources import subset
from deit.data.splits import Splits
from deit.errors import CheckpointError
from deit.recipes.planning import has_open_sizes, needs_planning
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training import trainer_building
from deit.training.loop import Trainer
from deit.training.state import newest_checkpoint
from deit.training.throughput import Costs
from deit.training.time_limit import REPORT_SECONDS, TimeLimit
from deit.training.trainer_building import SizedRecipe, add_image_hashes, choose_sizes, fit_to_time, restore, step_budget
from tests.helpers import MemorySource, memory_splits
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
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")[0]
    assert checkpoint is not None
    trainer = tiny_trainer(tmp_path)
    restore(trainer, checkpoint, "memory")
    assert trainer.state == trained.state
    assert trainer.remaining_images == 0
    for name, value in trained.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="is not the data"):
        restore(tiny_trainer(tmp_path, images=51), checkpoint, "memory")


def test_sizes_are_chosen_by_the_measured_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    splits, settings, device = memory_splits(48), RunSettings("memory"), torch.device("cpu")
    costs = Costs(sample=1.0, evaluation=0.1, loading=0.1)
    monkeypatch.setattr(trainer_building, "measure_costs", lambda *_: costs)
    limit = TimeLimit(60, time.monotonic())
    fixed = get_recipe("small-data").tiny()
    assert choose_sizes(fixed, splits, splits.record, settings, device, 0, None) == SizedRecipe(fixed, [])
    open_sizes = get_recipe("small-data").replace(batch_size=32, mirror_test=False, model={"image_size": 32})
    sized = choose_sizes(open_sizes, splits, splits.record, settings, device, 0, limit)
    assert not has_open_sizes(sized.recipe)
    assert (sized.teacher, sized.costs) == (None, costs)
    assert "the smallest size" in sized.notes[0]
    assert "Measuring how fast candidate models train" in capsys.readouterr().err


def test_augmentation_follows_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, settings, device = memory_splits(48), RunSettings("memory"), torch.device("cpu")
    fixed = get_recipe("small-data").tiny().replace(minutes=1)
    light = fixed.replace(augmentation={"crop": "auto", "color_jitter": 0.0, "randaugment": {"operations": 0}}, smoothing=0.0)
    measured: list[Recipe] = []

    def measure(trainer: Trainer, _seconds: float) -> Costs:
        measured.append(trainer.context.recipe)
        return Costs(sample=0.05, evaluation=0.0, loading=0.0)  # a minute allows 22 epochs

    monkeypatch.setattr(trainer_building, "measure_costs", measure)
    for below, expected in ((22.0, fixed), (23.0, light)):
        measured.clear()
        recipe = fixed.replace(light_augmentation_below=below)
        sized = choose_sizes(recipe, splits, splits.record, settings, device, 0, TimeLimit(60, time.monotonic()))
        assert sized.recipe == expected.replace(light_augmentation_below=below)
        assert sized.recipe == measured[-1]
        assert len(measured) == len({str(recipe) for recipe in measured})


def test_augmentation_of_cached_logits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, settings, device = memory_splits(48), RunSettings("memory"), torch.device("cpu")
    cached = SimpleNamespace(sample_targets=object())
    monkeypatch.setattr(trainer_building, "load_teacher", lambda *_: SimpleNamespace(to=lambda _: cached, **vars(cached)))
    monkeypatch.setattr(trainer_building, "build_trainer", lambda *_: tiny_trainer(Path()))
    monkeypatch.setattr(trainer_building, "measure_costs", lambda *_: Costs(sample=1.0, evaluation=0.0, loading=0.0))
    recipe = get_recipe("small-data").tiny().replace(minutes=1, light_augmentation_below=1000.0)
    sized = choose_sizes(recipe, splits, splits.record, settings, device, 0, TimeLimit(60, time.monotonic()))
    assert sized.recipe == recipe


def test_steps_are_planned_for_the_time(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    costs = Costs(sample=0.01, evaluation=0.1, loading=0.1)
    note = fit_to_time(trainer, step_budget(trainer, memory_splits(48), costs, TimeLimit(60, time.monotonic())))
    recipe = trainer.context.recipe
    assert not needs_planning(recipe)
    # One step of 32 samples per epoch, an evaluation of nine images after each, and the same once more at the end.
    expected = (0.98 * 60 - 0.9 - REPORT_SECONDS) / (32 * 0.01 + 9 * 0.1)
    assert trainer.total_steps == recipe.steps == recipe.epochs == pytest.approx(expected, abs=1)
    assert "epochs) in 1 min, at a measured 100 images/s" in note


def test_first_pass_decodes_every_image(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    costs = Costs(sample=0.01, evaluation=0.1, loading=0.3, decoding=0.2, not_kept=0.2)
    assert step_budget(trainer, memory_splits(48), costs, TimeLimit(60, 0.0)).first_pass == 0
    trainer.samples = replace(trainer.samples, cache=object())  # type: ignore[arg-type]
    budget = step_budget(trainer, memory_splits(48), costs, TimeLimit(60, 0.0))
    assert budget.first_pass == trainer.steps_per_epoch == 1
    assert budget.first_pass_seconds == pytest.approx(32 * 0.01 + 0.2 * 32)
    assert budget.first_evaluation_seconds == pytest.approx(0.2 * 9)
    assert budget.final_evaluations == pytest.approx((0.1 + 0.2) / 0.1)


def splits_of(train: range, validation: range) -> Splits:
    """Splits of images in memory, by their numbers."""
    source = MemorySource(60)
    return Splits(subset(source, train), subset(source, validation), None, "made in memory", "0" * 64)


def hashes_of(images: Iterable[int]) -> list[int]:
    return sorted(content_hashes(subset(MemorySource(60), images)).tolist())


@pytest.mark.parametrize("init_format", ["model", "file", "none"])
def test_images_of_the_initial_checkpoint_count_as_training_images(tmp_path: Path, init_format: str) -> None:
    trainer, folder = tiny_trainer(tmp_path / "run"), tmp_path / "init"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    if init_format != "none":
        previous = splits_of(range(40, 50), range(50, 60))
        (folder / "training_images.bin").write_bytes(ImageHashes.of(previous.train, previous.validation).to_bytes())
    init = folder / "model.safetensors" if init_format == "file" else folder
    notes = add_image_hashes(trainer, splits_of(range(8), range(8, 12)), RunSettings("memory", init=str(init)), None)
    (tmp_path / "training_images.bin").write_bytes(trainer.files["training_images.bin"])
    hashes = ImageHashes.from_file(tmp_path / "training_images.bin")
    expected = range(8) if init_format == "none" else [*range(8), *range(40, 50)]
    assert hashes.train.tolist() == hashes_of(expected)
    assert hashes.validation.tolist() == hashes_of(range(8, 12))
    assert notes == []


def test_copies_in_the_validation_split_are_noted(tmp_path: Path) -> None:
    notes = add_image_hashes(tiny_trainer(tmp_path), splits_of(range(8), range(5, 12)), RunSettings("memory"), None)
    assert "3 of 7 validation images were also used for training" in notes[0]


def test_resumed_run_keeps_its_hashes_and_adds_them_to_its_models(tmp_path: Path) -> None:
    trainer, checkpoint = tiny_trainer(tmp_path), tmp_path / "checkpoint"
    for folder in (checkpoint, tmp_path / "best"):
        folder.mkdir()
    splits = splits_of(range(8), range(8, 12))
    content = ImageHashes.of(splits.train, splits.validation).to_bytes()
    (checkpoint / "training_images.bin").write_bytes(content)
    add_image_hashes(trainer, splits_of(range(1), range(1, 2)), RunSettings("memory", init="gone"), checkpoint)
    assert trainer.files["training_images.bin"] == (tmp_path / "best" / "training_images.bin").read_bytes() == content
    (checkpoint / "training_images.bin").unlink()  # a run of an earlier version
    add_image_hashes(trainer, splits, RunSettings("memory", init="gone"), checkpoint)
    assert trainer.files["training_images.bin"] == content
