"""Extends a run: more epochs than it was planned for, of a run that has finished or not.

The learning rate then follows the schedule of the new number of epochs, from the epoch that the run has reached. Nothing else
of a recipe can change within a run: weights, optimizer state and random draws continue, and an extended run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deit.errors import RecipeError
from deit.recipes.planning import TIME_SHARE
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.system.progress import plural
from deit.training.loop import Trainer
from deit.training.optimization import learning_rate
from deit.training.throughput import seconds_per_image

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


def extend(trainer: Trainer, requested: Recipe, settings: RunSettings) -> tuple[RunSettings, list[str]]:
    """Extends the run of a trainer whose checkpoint is restored.

    Args:
        trainer: of the run; its recipe is changed.
        requested: what :func:`requested_length` returned.
        settings: of the run.

    Returns:
        The settings, which record the extension, and a sentence about it.

    Raises:
        RecipeError: the time is too short for the epochs that are planned already.
    """
    recipe, done = trainer.context.recipe, trainer.state.epoch
    epochs = requested.epochs
    if requested.minutes is not None:
        seconds = 60 * requested.minutes * TIME_SHARE
        epochs = done + int(seconds / (seconds_per_image(trainer) * trainer.images_per_epoch))
        if epochs < recipe.epochs:
            raise _shorter(
                f"{requested.minutes:g} more min are time for {epochs:,} epochs, which are", recipe, trainer.directory
            )
    if epochs == recipe.epochs:
        return settings, []
    extended = recipe.replace(epochs=epochs)
    trainer.context = replace(trainer.context, recipe=extended)
    position = done + trainer.state.step / trainer.steps_per_epoch
    lr = learning_rate(extended.optimizer, extended.peak_lr, epochs, position)
    note = (
        f"Extended from {recipe.epochs:,} to {plural(epochs, 'epoch')} after {done:,}: the learning rate follows the schedule "
        f"of {epochs:,} epochs from here, at {lr:.3g}"
    )
    return replace(settings, extended=(*settings.extended, (done, recipe.epochs))), [note]


def _shorter(what: str, recipe: Recipe, directory: Path) -> RecipeError:
    return RecipeError(
        f"{what} fewer than the {recipe.epochs:,} that {directory} is planned for",
        "stop it at any time by Ctrl-C; its best model is kept",
    )
