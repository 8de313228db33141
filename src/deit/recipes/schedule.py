"""The length of a run that is planned in optimizer steps, and its progress along the schedule of the learning rate.

A run for a given time plans its steps before the first one and corrects their number while it trains. Each correction is
written into the recipe before it takes effect, so that a resumed run, or one repeated from the written recipe, takes the same
steps with the same learning rates and measures nothing.
"""

from __future__ import annotations

from deit.recipes.schema import MAX_EPOCHS, Recipe

MAX_WARMUP = 0.1  # share of a run that is planned for a time


def schedule_progress(recipe: Recipe, step: int) -> float:
    """Returns the share of the schedule that precedes a step of a recipe with ``steps``, in 0..1.

    It is 0 at the first step and 1 after the last. A correction changes its slope from there on, and not its value.

    Args:
        recipe: a recipe with ``steps``.
        step: finished steps, over all epochs.
    """
    assert recipe.steps is not None
    before, start, total = 0.0, 0, recipe.steps
    for finished, corrected in recipe.corrections:
        if step < finished:
            break
        before += (1 - before) * (finished - start) / (total - start)
        start, total = finished, corrected
    return before + (1 - before) * (step - start) / (total - start)


def plan_steps(recipe: Recipe, steps: int, steps_per_epoch: int) -> Recipe:
    """Returns a recipe with a number of steps in place of a time.

    The learning rate is updated at every step, since the run may have few epochs, and the warm-up is at most a tenth of it.
    """
    steps = min(steps, MAX_EPOCHS * steps_per_epoch)
    warmup = min(recipe.optimizer.warmup_epochs, MAX_WARMUP * steps / steps_per_epoch)
    return recipe.replace(
        minutes=None,
        steps=steps,
        corrections=(),
        epochs=-(-steps // steps_per_epoch),
        optimizer={"warmup_epochs": warmup, "lr_update": "step"},
    )


def correct_steps(recipe: Recipe, finished: int, steps: int, steps_per_epoch: int) -> Recipe:
    """Returns a recipe that ends after another number of steps, from a finished step on."""
    steps = min(max(steps, finished + 1), MAX_EPOCHS * steps_per_epoch)
    return recipe.replace(corrections=(*recipe.corrections, (finished, steps)), epochs=-(-steps // steps_per_epoch))


def affordable_steps(seconds: float, step_seconds: float, epoch_seconds: float, steps_per_epoch: int, finished: int = 0) -> int:
    """Returns how many more steps fit into a time, with an evaluation after each epoch and after the last step.

    Args:
        seconds: the time, in seconds; may be negative.
        step_seconds: duration of a step.
        epoch_seconds: duration of an evaluation.
        steps_per_epoch: steps from one evaluation to the next.
        finished: steps that are taken already.
    """
    first = steps_per_epoch - finished % steps_per_epoch  # steps to the next evaluation
    epoch = steps_per_epoch * step_seconds + epoch_seconds
    left = seconds - epoch_seconds
    if left < first * step_seconds:
        return max(int(left / step_seconds), 0)
    epochs, rest = divmod(left - first * step_seconds, epoch)
    return first + int(epochs) * steps_per_epoch + max(int((rest - epoch_seconds) / step_seconds), 0)
