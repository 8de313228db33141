"""Extends a run: more epochs than it was planned for, of a run that has finished or not.

The learning rate then follows the schedule of the new length, from the step that the run has reached. Nothing else of a recipe
can change within a run: weights, optimizer state and random draws continue, and an extended run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deit.errors import RecipeError
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.system.progress import plural
from deit.training.loop import Trainer
from deit.training.time_limit import StepBudget

CHANGEABLE = ("epochs", "minutes")


def requested_length(recipe: Recipe, changes: Mapping[str, str], directory: Path) -> Recipe | None:
    """Checks the settings that are given to resume a run.

    Args:
        recipe: of the run.
        changes: recipe values to change, as :meth:`Recipe.with_settings` takes them.
        directory: of the run, for messages.

    Returns:
        The recipe with another length: ``epochs``, or ``minutes`` to train from now on; None if the length stays.

    Raises:
        RecipeError: another setting than the length, or fewer epochs.
    """
    for name, value in changes.items():
        if name not in CHANGEABLE:
            raise RecipeError(
                f"{name} cannot change within a run; only its length can, by --epochs or --minutes",
                f"start a new run from its weights: deit train DATA --init {directory} --set {name}={value}",
            )
    changed = recipe.with_settings(changes)
    if changed.epochs < recipe.epochs:
        raise _shorter(f"{changed.epochs:,} epochs are", recipe, directory)
    return None if changed == recipe else changed


def extend(
    trainer: Trainer, requested: Recipe, settings: RunSettings, budget: StepBudget | None
) -> tuple[RunSettings, list[str]]:
    """Extends the run of a trainer whose checkpoint is restored.

    Args:
        trainer: of the run; its recipe is changed.
        requested: what :func:`requested_length` returned.
        settings: of the run.
        budget: of the time that ``requested`` allows; None if it gives ``epochs``.

    Returns:
        The settings, which record the extension, and a sentence about it.

    Raises:
        RecipeError: the time is too short for the steps that are planned already.
    """
    recipe, state = trainer.context.recipe, trainer.state
    extended = recipe.replace(epochs=requested.epochs, steps=None, corrections=())
    if budget is not None:
        steps = budget.total_steps(state.steps_taken)
        if steps < trainer.total_steps:
            end = f"{steps / trainer.steps_per_epoch:,.1f} epochs"
            raise _shorter(f"{requested.minutes:g} more min are time for {end}, which are", recipe, trainer.directory)
        extended = recipe.replace(epochs=-(-steps // trainer.steps_per_epoch), steps=steps, corrections=())
    if extended == recipe:
        return settings, []
    trainer.context, trainer.budget = replace(trainer.context, recipe=extended), budget
    lr = trainer.learning_rate(state.epoch, state.step)
    note = (
        f"Extended from {recipe.epochs:,} to {plural(extended.epochs, 'epoch')} after {state.epoch:,}: the learning rate "
        f"follows the schedule of {plural(trainer.total_steps, 'step')} from here, at {lr:.3g}"
    )
    return replace(settings, extended=(*settings.extended, (state.epoch, recipe.epochs))), [note]


def _shorter(what: str, recipe: Recipe, directory: Path) -> RecipeError:
    return RecipeError(
        f"{what} fewer than the {recipe.epochs:,} that {directory} is planned for",
        "stop it at any time by Ctrl-C; its best model is kept",
    )
