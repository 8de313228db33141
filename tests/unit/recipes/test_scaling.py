"""What a run says about differing from what its recipe was made for, and that it says nothing where there is nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deit.data.sampler import steps_per_epoch
from deit.recipes.presets import RECIPES, get_recipe
from deit.recipes.scaling import scaled
from deit.recipes.schema import Recipe


def _notes(name: str, images: int | None = None, **changes: Any) -> list[str]:
    recipe = get_recipe(name).replace(**changes)
    return scaled(recipe, recipe.images if images is None else images)


@pytest.mark.parametrize("name", RECIPES)
def test_as_it_was_made_there_is_nothing_to_say(name: str) -> None:
    recipe = get_recipe(name)
    assert scaled(recipe, recipe.images) == []
    assert scaled(recipe, round(recipe.images * 1.9)) == []


def test_another_batch_scales_the_rate_alone() -> None:
    [note] = _notes("deit", batch_size=256)
    assert "Batch 256, made for 1,024" in note
    assert get_recipe("deit").replace(batch_size=256).peak_lr == pytest.approx(2.5e-4)
    assert "to 0.00025," in note
    assert "warm-up and weight decay are not" in note
    [note] = _notes("transfer-small", batch_size=384)
    assert "to 0.005," in note


def test_other_epochs_end_the_cosine_and_leave_the_warm_up() -> None:
    [note] = _notes("deit", epochs=100)
    assert note.startswith("Epochs 100, made for 300: the cosine ends with them, the warm-up of 5 epochs is not changed")
    assert "all there is" not in note
    [note] = _notes("small-data", epochs=2)
    assert note.endswith("and is all there is")
    [note] = _notes("finetune", epochs=25, average={"decay": 0})
    assert "the learning rate stays" in note


@pytest.mark.parametrize(("images", "said"), [(2_499, True), (2_500, False), (10_000, False), (10_001, True)])
def test_a_data_set_of_more_than_twice_or_less_than_half_the_size_is_said(images: int, said: bool) -> None:
    notes = [note for note in _notes("small-data", images) if "training images" in note]
    assert bool(notes) == said
    if said:
        steps = 100 * steps_per_epoch(images, 32)
        assert notes == [
            f"{images:,} training images, made for 5,000: {steps:,} steps in place of 15,600, and no value is scaled for that"
        ]


def test_an_average_longer_than_training_is_said_with_one_that_fits() -> None:
    notes = _notes("deit", images=10_000)  # 9 steps an epoch, 2,700 in all; it remembers 25,000
    [note] = [note for note in notes if "average of the weights" in note]
    assert "remembers 25,000 steps and training takes 2,700" in note
    found = re.search(r"average\.decay=([\d.]+)", note)
    assert found is not None
    decay = found[1]
    better = get_recipe("deit").with_settings({"average.decay": decay})
    assert better.average.decay == pytest.approx(1 - 10 / 2700, abs=1e-4)
    assert not [note for note in scaled(better, 10_000) if "average of the weights" in note]


@pytest.mark.parametrize("average", [{"decay": 0.0}, {"warmup": True}])
def test_no_average_and_one_that_begins_short_need_no_word(average: dict[str, Any]) -> None:
    assert not [note for note in _notes("deit", images=10_000, average=average) if "average" in note]


def test_one_step_is_no_steps_and_a_recipe_of_ones_own_is_left_alone() -> None:
    [note] = [note for note in _notes("small-data", 10, epochs=1) if "training images" in note]
    assert "1 step in place of" in note
    own = Recipe(**{**get_recipe("deit").model_dump(), "name": "mine", "batch_size": 2, "epochs": 1})
    assert scaled(own, 3) == []
