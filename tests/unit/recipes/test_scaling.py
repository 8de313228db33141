"""Notes on runs that differ from what their recipe was made for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deit.data.sampler import steps_per_epoch
from deit.recipes.presets import RECIPES, get_recipe
from deit.recipes.scaling import scaling_notes
from deit.recipes.schema import Recipe


def _recipe(name: str) -> Recipe:
    """Returns a recipe with a batch size, as it is run."""
    recipe = get_recipe(name)
    return recipe.replace(batch_size=recipe.batch_size or 32)


def _notes(name: str, images: int | None = None, **changes: Any) -> list[str]:
    recipe = _recipe(name).replace(**changes)
    return scaling_notes(recipe, recipe.images if images is None else images)


@pytest.mark.parametrize("name", RECIPES)
def test_reference_run_has_no_notes(name: str) -> None:
    recipe = _recipe(name)
    assert scaling_notes(recipe, recipe.images) == []
    assert scaling_notes(recipe, round(recipe.images * 1.9)) == []


def test_batch_size_scales_only_the_learning_rate() -> None:
    [note] = _notes("deit", batch_size=256)
    assert "Batch size 256, made for 1,024" in note
    assert get_recipe("deit").replace(batch_size=256).peak_lr == pytest.approx(2.5e-4)
    assert "to 0.00025," in note
    assert "warm-up and weight decay are not" in note
    [note] = _notes("transfer-small", batch_size=384)
    assert "to 0.005," in note


def test_epochs_scale_the_schedule_but_not_the_warmup() -> None:
    [note] = _notes("deit", epochs=100)
    assert note == "100 epochs, made for 300: the cosine schedule ends with them, the warm-up of 5 epochs is not scaled"
    [note] = _notes("small-data", epochs=2)
    assert note.endswith("is not scaled and covers the whole run")
    [note] = _notes("finetune", epochs=25, ema={"decay": 0})
    assert "the learning rate is constant" in note


@pytest.mark.parametrize(("images", "noted"), [(2_499, True), (2_500, False), (10_000, False), (10_001, True)])
def test_dataset_size_beyond_a_factor_of_two_is_noted(images: int, noted: bool) -> None:
    notes = [note for note in _notes("small-data", images) if "training images" in note]
    assert bool(notes) == noted
    if noted:
        steps = 100 * steps_per_epoch(images, 32)
        assert notes == [
            f"{images:,} training images, made for 5,000: {steps:,} steps instead of 15,600, and no value is scaled"
        ]


def test_ema_longer_than_training_is_noted_with_a_shorter_decay() -> None:
    notes = _notes("deit", images=10_000)  # 9 steps per epoch, 2,700 in total; the EMA remembers 25,000
    [note] = [note for note in notes if "EMA" in note]
    assert "remembers 25,000 steps and training takes 2,700" in note
    match = re.search(r"ema\.decay=([\d.]+)", note)
    assert match is not None
    decay = match[1]
    shorter = get_recipe("deit").with_settings({"ema.decay": decay})
    assert shorter.ema.decay == pytest.approx(1 - 10 / 2700, abs=1e-4)
    assert not [note for note in scaling_notes(shorter, 10_000) if "EMA" in note]


@pytest.mark.parametrize("ema", [{"decay": 0.0}, {"warmup": True}])
def test_no_note_without_ema_or_with_ema_warmup(ema: dict[str, Any]) -> None:
    assert not [note for note in _notes("deit", images=10_000, ema=ema) if "EMA" in note]


def test_custom_recipe_has_no_notes_and_one_step_is_singular() -> None:
    [note] = [note for note in _notes("small-data", 10, epochs=1) if "training images" in note]
    assert "1 step instead of" in note
    custom = Recipe(**{**get_recipe("deit").model_dump(), "name": "mine", "batch_size": 2, "epochs": 1})
    assert scaling_notes(custom, 3) == []
