"""What a search varies: parsing, drawing, and the default space of every recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.errors import RecipeError
from deit.recipes.presets import RECIPES, get_recipe
from deit.recipes.search_space import Choices, Range, default_space, draw_values, parse_space

RECIPE = get_recipe("small-data-distilled")


def draws(values: Range | Choices, count: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    return [values.draw(rng) for _ in range(count)]


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), whole=st.booleans(), seed=st.integers(0, 2**32))
def test_numbers_are_within_their_range(low: float, width: float, whole: bool, seed: int) -> None:
    low, high = (round(low), round(low) + max(round(width), 1)) if whole else (low, low + width)
    text = Range(low, high, whole).draw(np.random.default_rng(seed))
    assert low <= float(text) <= high
    assert not whole or str(int(text)) == text


def test_wide_ranges_are_logarithmic() -> None:
    middle = float(np.median([float(text) for text in draws(Range(1e-4, 1e-2))]))
    assert 5e-4 < middle < 2e-3
    middle = float(np.median([float(text) for text in draws(Range(0.0, 0.2))]))
    assert 0.08 < middle < 0.12


def test_every_whole_number_and_choice_is_drawn() -> None:
    assert {*draws(Range(1, 3, whole=True))} == {"1", "2", "3"}
    assert {*draws(Choices(("a", "b")))} == {"a", "b"}


def test_parsed_space() -> None:
    texts = [
        "optimizer.lr = 1e-4..1e-2",
        "optimizer.muon_iterations=2..5",
        "mixing.mixup=0,0.2,0.8",
        "optimizer.name=adamw,muon",
        "augmentation.scale=[0.1, 1.0], [0.5, 1.0]",
        "optimizer.clip_norm=none, 1.0",
    ]
    assert parse_space(texts, RECIPE) == {
        "optimizer.lr": Range(1e-4, 1e-2),
        "optimizer.muon_iterations": Range(2, 5, whole=True),
        "mixing.mixup": Choices(("0", "0.2", "0.8")),
        "optimizer.name": Choices(("adamw", "muon")),
        "augmentation.scale": Choices(("[0.1, 1.0]", "[0.5, 1.0]")),
        "optimizer.clip_norm": Choices(("none", "1.0")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "has no values"),
        ("optimizer.lr=", "has no values"),
        ("optimizer.lr=1e-2..1e-4", "is not a range"),
        ("optimizer.lr=1..x", "is not a range"),
        ("optimizer.lr=0..inf", "is not a range"),
        ("optimizer.lr=0..nan", "is not a range"),
        ("optimizer.lr=0..1e9", "optimizer.lr"),
        ("optimizer.rate=1..2", "has no setting 'optimizer.rate'"),
        ("mixing.mixup=0,-1", "mixing.mixup"),
        ("epochs=1..9", "the same for all candidates"),
        ("batch_size=16,32", "the same for all candidates"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_space([text], RECIPE)


@pytest.mark.parametrize("name", [name for name in RECIPES if not get_recipe(name).masked])
def test_default_space_fits_every_recipe(name: str) -> None:
    recipe = get_recipe(name)
    space = default_space(recipe)
    assert "optimizer.lr" in space
    for number in range(20):
        values = draw_values(space, recipe.seed, number)
        changed = recipe.with_settings(values)
        assert math.isclose(changed.optimizer.lr, float(values["optimizer.lr"]))


def test_default_space_keeps_the_images_of_cached_logits() -> None:
    space = default_space(RECIPE, augmentation=False)
    assert not [name for name in space if name.startswith(("augmentation", "mixing"))]
    assert {*space} < {*default_space(RECIPE)}


@pytest.mark.parametrize("name", ["small-data-distilled", "convnet", "deit3"])
def test_texts_of_a_space_are_parsed_to_the_same(name: str) -> None:
    recipe = get_recipe(name)
    space = default_space(recipe)
    assert parse_space([f"{path}={values}" for path, values in space.items()], recipe) == space


def test_draws_depend_on_seed_and_number_only() -> None:
    space = default_space(RECIPE)
    assert draw_values(space, 1, 2) == draw_values(space, 1, 2)
    assert draw_values(space, 1, 2) != draw_values(space, 1, 3) != draw_values(space, 2, 3)
