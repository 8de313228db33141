"""Runs that are planned in steps: progress along the schedule, and how many steps fit into a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deit.errors import RecipeError
from deit.recipes.presets import get_recipe
from deit.recipes.schedule import affordable_steps, correct_steps, plan_steps, schedule_progress
from deit.recipes.schema import Recipe

SECONDS = st.floats(0.001, 100)


@st.composite
def corrected_recipes(draw: st.DrawFn) -> Recipe:
    """Recipes that were planned in steps and corrected a few times."""
    recipe, finished = plan_steps(get_recipe("small-data"), draw(st.integers(2, 300)), steps_per_epoch=10), 0
    for _ in range(draw(st.integers(0, 4))):
        total = recipe.total_steps
        assert total is not None
        if finished + 1 >= total:
            break
        finished = draw(st.integers(finished + 1, total - 1))
        recipe = correct_steps(recipe, finished, draw(st.integers(1, 400)), steps_per_epoch=10)
    return recipe


@given(corrected_recipes())
def test_progress_increases_from_0_to_1(recipe: Recipe) -> None:
    total = recipe.total_steps
    assert total is not None
    progress = [schedule_progress(recipe, step) for step in range(total + 1)]
    assert progress[0] == 0
    assert progress[-1] == pytest.approx(1)
    assert all(first < second for first, second in pairwise(progress))
    assert recipe.epochs == -(-total // 10)


@given(corrected_recipes(), st.integers(1, 400))
def test_correction_does_not_change_what_is_done(recipe: Recipe, steps: int) -> None:
    total = recipe.total_steps
    assert total is not None
    finished = total - 1
    assume(finished > (recipe.corrections[-1][0] if recipe.corrections else 0))
    corrected = correct_steps(recipe, finished, steps, steps_per_epoch=10)
    for step in range(finished + 1):
        assert schedule_progress(corrected, step) == pytest.approx(schedule_progress(recipe, step), abs=1e-12)
    assert Recipe(**corrected.model_dump()) == corrected


def test_planned_run_updates_the_learning_rate_at_every_step_and_warms_up_briefly() -> None:
    recipe = plan_steps(get_recipe("deit").replace(minutes=3), 140, steps_per_epoch=100)
    assert (recipe.minutes, recipe.steps, recipe.epochs) == (None, 140, 2)
    assert recipe.optimizer.lr_update == "step"
    assert recipe.optimizer.warmup_epochs == pytest.approx(0.14)


@given(st.floats(-10, 10_000), SECONDS, SECONDS, st.integers(1, 50), st.integers(0, 120))
def test_affordable_steps_fill_the_time(seconds: float, step: float, evaluation: float, epoch: int, finished: int) -> None:
    def cost(more: int) -> float:
        """Duration of steps, with an evaluation after each epoch and after the last step."""
        epochs = (finished + more) // epoch - finished // epoch
        return more * step + (epochs + bool((finished + more) % epoch)) * evaluation

    assume(seconds / step < 100_000)
    more = affordable_steps(seconds, step, evaluation, epoch, finished)
    assert more == 0 or cost(more) <= seconds * (1 + 1e-9)
    assert min(cost(more + 1), cost(more + epoch)) > seconds * (1 - 1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"corrections": ((5, 20),)},  # without steps
        {"steps": 10, "corrections": ((10, 20),)},  # after the last step
        {"steps": 10, "corrections": ((5, 5),)},
        {"steps": 10, "corrections": ((5, 20), (5, 30))},
    ],
)
def test_inconsistent_corrections_are_rejected(changes: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="leave corrections to training"):
        get_recipe("deit").replace(**changes)


@pytest.mark.parametrize("length", [{"epochs": "7"}, {"minutes": "7"}, {"steps": "7"}])
def test_new_length_replaces_the_one_of_a_run(length: dict[str, str]) -> None:
    run = correct_steps(plan_steps(get_recipe("small-data"), 40, steps_per_epoch=10), 20, 50, steps_per_epoch=10)
    recipe = run.with_settings(length)
    assert recipe.corrections == ()
    assert recipe.steps == (7 if "steps" in length else None)
    assert recipe.minutes == (7 if "minutes" in length else None)
    assert run.with_settings({"seed": "3"}).corrections == run.corrections
