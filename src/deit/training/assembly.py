"""Builds the model, the teacher and the trainer of a run whose recipe is resolved, in one process or in several."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deit.data.checking import without_unreadable
from deit.data.opening import open_data, open_unlabeled
from deit.data.splits import DataRecord, Splits
from deit.distillation.loading import limit_views, load_teacher, with_fingerprint, with_reduction_of_teacher
from deit.distillation.protocol import DistillationTeacher
from deit.errors import DataError, RecipeError, UserError
from deit.recipes.image_caching import add_image_cache
from deit.recipes.planning import has_open_sizes
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe, Transformer
from deit.system.devices import choose_device
from deit.system.distributed import from_main, group_size
from deit.training.loop import Trainer
from deit.training.model_building import build_model
from deit.training.state import Resumable
from deit.training.time_limit import StepBudget
from deit.training.trainer_building import build_trainer, restore


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to train.

    Attributes:
        trainer: the trainer.
        splits: the readable images.
        teacher: the teacher, if the recipe has one.
        settings: of the run, with the fingerprint of the teacher.
        notes: what the user should know about model and teacher, one sentence each.
    """

    trainer: Trainer
    splits: Splits
    teacher: DistillationTeacher | None
    settings: RunSettings
    notes: list[str]


def assemble(
    directory: Path,
    recipe: Recipe,
    splits: Splits,
    record: DataRecord,
    settings: RunSettings,
    device: torch.device,
    workers: int | None,
    checkpoint: Resumable | None,
    teacher: DistillationTeacher | None = None,
) -> Assembled:
    """Builds model, teacher and trainer of a resolved recipe.

    Args:
        directory: the run directory.
        recipe: the recipe, with all sizes.
        splits: the readable images.
        record: fingerprint and split of the data set.
        settings: of the run.
        device: where training runs.
        workers: worker processes of the data loader; None chooses by the number of cores.
        checkpoint: restored, if there is one.
        teacher: the teacher, if it is loaded already.

    Raises:
        UserError: the checkpoint, the teacher and the data do not belong together.
    """
    built = build_model(recipe, splits.classes, settings.init, None if checkpoint is None else checkpoint.path)
    teacher = teacher or load_teacher(built.recipe, settings, splits, record)
    settings = with_fingerprint(settings, teacher)
    limited, view_notes = limit_views(built.recipe, teacher)
    if teacher is not None:
        teacher.to(device)
    model = replace(built, recipe=limited)
    trainer = build_trainer(directory, model, teacher, splits, record, settings, device, workers)
    if teacher is not None:
        teacher.check(trainer.samples)
    if checkpoint is not None:
        restore(trainer, checkpoint, settings.data)
    return Assembled(trainer, splits, teacher, settings, [*built.notes, *view_notes])


def reopen_data(recipe: Recipe, settings: RunSettings) -> tuple[Splits, DataRecord, RunSettings]:
    """Opens the data of a run as it was opened when the run began.

    Args:
        recipe: the recipe, with all sizes.
        settings: of the run.

    Returns:
        The readable images, fingerprint and split of the data set, and the settings.
    """
    opened = (open_unlabeled if recipe.masked else open_data)(settings.data, settings.split_seed, settings.validation_fraction)
    record = DataRecord(opened.fingerprint, settings.split_seed, settings.validation_fraction)
    readable, _ = without_unreadable(opened, settings.skip_unreadable)
    splits, settings, _ = add_image_cache(readable, recipe, with_reduction_of_teacher(settings))
    return splits, record, settings


def check_world_size(recipe: Recipe) -> None:
    """Checks that each process has a share of every batch.

    Raises:
        RecipeError: there are too many processes.
    """
    pairs = -(-recipe.images_per_batch // 2)
    if pairs < group_size():
        raise RecipeError(
            f"A batch of {recipe.images_per_batch} images has no two images for each of {group_size()} processes",
            "pass a larger --batch-size, or start fewer processes",
        )


def check_sharding(recipe: Recipe, minutes: float | None) -> None:
    """Checks a recipe whose model is divided among processes.

    Raises:
        RecipeError: it is not a transformer, or something of it depends on a measured time.
    """
    if not isinstance(recipe.model, Transformer):
        raise RecipeError("--shard is for transformers", "leave it out")
    if minutes is not None or has_open_sizes(recipe):
        problem = "The speed of a divided model is not measured, so that neither its size nor its length can depend on it"
        raise RecipeError(problem, "pass --epochs, and --model or a recipe with fixed sizes")


@dataclass(frozen=True)
class Plan:
    """What the first process has decided, from which the others build the same trainer.

    Attributes:
        directory: the run directory.
        recipe: the recipe, with all sizes.
        settings: of the run.
        checkpoint: that the run resumes from.
        budget: of a run for a given time.
        record: fingerprint and split of the data set.
        images: training samples per epoch.
    """

    directory: Path
    recipe: Recipe
    settings: RunSettings
    checkpoint: Resumable | None
    budget: StepBudget | None
    record: DataRecord
    images: int


def join(device: str, workers: int | None) -> Assembled:
    """Builds the trainer of the first process in another one, once that has decided everything.

    Raises:
        UserError: this process does not see the same data, or not the run directory.
        PeerError: the first process has failed.
    """
    plan: Plan = from_main()
    if not plan.directory.is_dir():
        remedy = "pass --out on a file system that all machines share"
        raise UserError(f"The run directory {plan.directory} does not exist on {socket.gethostname()}", remedy)
    splits, record, settings = reopen_data(plan.recipe, plan.settings)
    assembled = assemble(plan.directory, plan.recipe, splits, record, settings, choose_device(device), workers, plan.checkpoint)
    assembled.trainer.budget = plan.budget
    if (record, assembled.trainer.images_per_epoch) != (plan.record, plan.images):
        remedy = "copy the data set again, or pass one on a file system that all machines share"
        raise DataError(f"{settings.data} on {socket.gethostname()} is not the data set of the first process", remedy)
    return assembled
