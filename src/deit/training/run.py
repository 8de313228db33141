"""A training run, from a data set and a recipe to a directory with checkpoints, models, log, evaluation and report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deit.data.cache_request import DEFAULT_LIMIT, CacheMode, CacheRequest
from deit.data.checking import without_unreadable
from deit.data.class_names import Matching, check_class_names
from deit.data.opening import open_data, open_unlabeled
from deit.data.splits import DataRecord, Splits
from deit.distillation.loading import check_teacher, with_reduction_of_teacher
from deit.distillation.protocol import DistillationTeacher
from deit.errors import InterruptedWorkError, LoadingError, RecipeError, WorkError
from deit.recipes.image_caching import add_image_cache
from deit.recipes.planning import resolve_recipe
from deit.recipes.run_settings import CHECKPOINT_MINUTES, RunSettings
from deit.recipes.schema import Recipe
from deit.system.devices import choose_device
from deit.system.distributed import from_main, group_size, is_distributed, process_group
from deit.system.hardware import cores
from deit.system.locking import locked
from deit.system.replacing import clean_up
from deit.system.signals import stop_on_signals
from deit.system.torchrun import is_main
from deit.training.assembly import Assembled, Plan, assemble, check_sharding, check_world_size, join
from deit.training.compilation import check_compiler
from deit.training.extension import extend
from deit.training.finishing import PretrainResult, TrainResult, finish_pretraining, finish_training
from deit.training.loop import CHECKPOINTS_NAME, Trainer
from deit.training.run_directory import write_run
from deit.training.run_request import ChangeableOptions, run_request
from deit.training.state import newest_checkpoint
from deit.training.summary import print_summary
from deit.training.throughput import measure_costs
from deit.training.time_limit import TimeLimit
from deit.training.trainer_building import (
    SHORTEST_MEASUREMENT,
    add_image_hashes,
    choose_sizes,
    fit_to_time,
    measuring_seconds,
    step_budget,
)


def train(
    data: str | Path | None = None,
    recipe: str | Recipe = "small-data",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    teacher_classes: Matching = "name",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
    cache: CacheMode = "auto",
    cache_limit: float = DEFAULT_LIMIT,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    track: bool = False,
    compiled: bool = False,
    shard: bool = False,
    started: float | None = None,
) -> TrainResult:
    """Trains a classifier, evaluates it, and writes the report.

    Args:
        data: a data set, as :func:`deit.data.opening.open_data` takes it; may be omitted with ``resume``.
        recipe: a :class:`Recipe`, its name, or a TOML file.
        out: the run directory, new or empty; None creates one below ``runs``.
        resume: run directory to resume, with its own recipe, teacher and data; ``data``, ``teacher`` and ``teacher_weights``
            are their locations if they have moved. Of ``settings``, only ``epochs`` and ``minutes`` are allowed, which extend
            the run (:mod:`deit.training.extension`).
        init: checkpoint to start from: of any format, a run, a hub name or a variant's name. Heads are newly initialized if
            its classes are not those of the data.
        teacher: the teacher, as :meth:`Teacher.load` takes it, or a directory of ``deit teacher cache``; required if the
            recipe distills.
        teacher_weights: file with the weights of a timm teacher.
        teacher_classes: match the teacher's classes with the data's by ``name``, or by ``order`` if they have no names.
        settings: recipe values to change, as :meth:`Recipe.with_settings` takes them.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: worker processes of the data loader; None chooses by the number of cores.
        skip_unreadable: leave out unreadable images and count them.
        cache: keep decoded images on ``disk``, for other runs, too, or in ``memory``; ``off``; ``auto``, where decoding takes a
            third of the time of a sample or more, and there is space. A resumed run keeps making its samples as before.
        cache_limit: gigabytes of decoded images that are kept at most.
        checkpoint_minutes: a checkpoint is written after this time at the latest, also within an epoch, so that a killed run
            loses no more than that.
        track: write event files for TensorBoard into the folder ``tensorboard`` of the run.
        compiled: compile the model (torch.compile), which takes up to some minutes and makes its steps faster on a GPU.
        shard: divide weights, gradients and optimizer state of a transformer among the processes that torchrun has started
            (FSDP2), instead of a copy in each: for models that are too large for one GPU.
        started: when the time of ``minutes`` began, by ``time.monotonic()``; None is the time of the call.

    Raises:
        UserError: the data, recipe, teacher or directory do not fit; raised before the first step.
        WorkError: training diverged or was interrupted.
    """
    started = time.monotonic() if started is None else started
    requested = ChangeableOptions(skip_unreadable, CacheRequest(cache, cache_limit), checkpoint_minutes, track, compiled, shard)
    with process_group(choose_device(device)):
        if not is_main():
            return finish(join(device, workers))
        request = run_request(data, recipe, settings, out, resume, requested, init, teacher, teacher_weights, teacher_classes)
        if request.recipe.masked:
            raise RecipeError(f"The recipe {request.recipe.name} does not use labels", "use deit pretrain")
        run = request.settings
        check_teacher(request.recipe, run)  # before the data is read, which may take long
        with _locked(request.directory):
            splits = open_data(run.data, run.split_seed, run.validation_fraction)
            return _train(splits, request.recipe, run, request.directory, device, workers, request.length, started)


def pretrain(
    data: str | Path | None = None,
    recipe: str | Recipe = "pretrain-mim",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
    cache: CacheMode = "auto",
    cache_limit: float = DEFAULT_LIMIT,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    track: bool = False,
    compiled: bool = False,
    shard: bool = False,
) -> PretrainResult:
    """Pretrains with masked image modeling, without labels. Pass the result as ``init`` to :func:`train`.

    Args:
        data: a folder of images at any depth, or any data set, whose labels are ignored.
        recipe: a recipe with ``masking.ratio`` above 0, its name, or a TOML file.
        out: as in :func:`train`.
        resume: as in :func:`train`.
        init: as in :func:`train`.
        settings: as in :func:`train`.
        device: as in :func:`train`.
        workers: as in :func:`train`.
        skip_unreadable: as in :func:`train`.
        cache: as in :func:`train`.
        cache_limit: as in :func:`train`.
        checkpoint_minutes: as in :func:`train`.
        track: as in :func:`train`.
        compiled: as in :func:`train`.
        shard: as in :func:`train`.

    Raises:
        UserError: the data, recipe or directory do not fit; raised before the first step.
        WorkError: training diverged or was interrupted.
    """
    started = time.monotonic()
    requested = ChangeableOptions(skip_unreadable, CacheRequest(cache, cache_limit), checkpoint_minutes, track, compiled, shard)
    with process_group(choose_device(device)):
        if not is_main():
            trainer = join(device, workers).trainer
            trainer.fit()
            return finish_pretraining(trainer)
        request = run_request(data, recipe, settings, out, resume, requested, init)
        if not request.recipe.masked:
            remedy = "use deit train, or set masking.ratio above 0"
            raise RecipeError(f"The recipe {request.recipe.name} trains on labels", remedy)
        run = request.settings
        with _locked(request.directory):
            splits = open_unlabeled(run.data, run.split_seed, run.validation_fraction)
            ready = prepare(splits, request.recipe, run, request.directory, device, workers, request.length, started)
            ready.trainer.fit()
            return finish_pretraining(ready.trainer)


def train_on(
    splits: Splits,
    recipe: Recipe,
    settings: RunSettings,
    directory: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
) -> TrainResult:
    """As :func:`train`, for a data set that is already open. Resumes from the latest checkpoint in ``directory``, if any."""
    with _locked(directory):
        return _train(splits, recipe, settings, directory, device, workers)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps other programs out of a run directory, and removes what a killed one has left unfinished in it.

    Raises:
        UserError: another program trains in it.
    """
    with locked(directory, "wait until it has finished, or pass another --out"):
        clean_up(directory)
        yield


def _train(
    splits: Splits,
    recipe: Recipe,
    settings: RunSettings,
    directory: Path,
    device: str,
    workers: int | None,
    length: Recipe | None = None,
    started: float | None = None,
) -> TrainResult:
    """Trains in a locked directory.

    ``length`` is the recipe with another length, see :func:`deit.training.extension.requested_length`. The time of ``minutes``
    began when ``time.monotonic()`` was ``started``; None is now.
    """
    return finish(prepare(splits, recipe, settings, directory, device, workers, length, started))


def finish(ready: Assembled) -> TrainResult:
    """Trains, evaluates and reports."""
    trainer = ready.trainer
    with stop_on_signals():
        trainer.fit()
        try:
            return finish_training(trainer, ready.splits, ready.teacher, ready.settings)
        except InterruptedWorkError as error:
            problem = "Stopped in the final evaluation, with all epochs saved"
            raise InterruptedWorkError(problem, trainer.resume_remedy, error.exit_code) from None
        except LoadingError as error:
            problem = f"{error.problem}, in the final evaluation; all epochs are saved"
            raise WorkError(problem, f"{error.remedy}; {trainer.resume_remedy}") from None


def prepare(
    splits: Splits,
    recipe: Recipe,
    settings: RunSettings,
    directory: Path,
    device_name: str,
    workers: int | None,
    length: Recipe | None,
    started: float | None,
) -> Assembled:
    """Resolves the recipe, builds everything that training needs, prints the summary, and lets the other processes join."""
    minutes = (length or recipe).minutes
    limit = None if minutes is None else TimeLimit(60 * minutes, time.monotonic() if started is None else started)
    device = choose_device(device_name)
    check_class_names(splits.classes)
    check_teacher(recipe, settings)
    if settings.shard:
        check_sharding(recipe, minutes)
    if settings.compiled:
        check_compiler(device)
    record = DataRecord(splits.fingerprint, settings.split_seed, settings.validation_fraction)
    readable, unreadable = without_unreadable(splits, settings.skip_unreadable)

    is_parallel = device.type == "cpu" and not is_distributed()
    resolved, data_notes = resolve_recipe(recipe, readable, parallel=cores() if is_parallel else 1)
    check_world_size(resolved)
    readable, settings, cache_notes = add_image_cache(readable, resolved, with_reduction_of_teacher(settings))
    sized = choose_sizes(resolved, readable, record, settings, device, workers, limit)

    checkpoint, damage_notes = newest_checkpoint(directory / CHECKPOINTS_NAME)
    assembled = assemble(directory, sized.recipe, readable, record, settings, device, workers, checkpoint, sized.teacher)
    trainer, teacher, settings = assembled.trainer, assembled.teacher, assembled.settings
    checkpoint_path = None if checkpoint is None else checkpoint.path
    hash_notes = [] if recipe.masked else add_image_hashes(trainer, readable, settings, checkpoint_path)

    measured = SHORTEST_MEASUREMENT if limit is None else measuring_seconds(limit)  # only for the summary, or for a plan
    costs = None if settings.shard else sized.costs or measure_costs(trainer, measured)  # a whole model may not fit
    budget = None if limit is None or costs is None else step_budget(trainer, readable, costs, limit)
    length_notes: list[str] = []
    if length is not None:
        settings, length_notes = extend(trainer, length, settings, budget)
    elif budget is not None:
        length_notes = [fit_to_time(trainer, budget)]

    notes = [
        *readable.all_notes,
        *data_notes,
        *cache_notes,
        *sized.notes,
        *assembled.notes,
        *length_notes,
        *hash_notes,
        *_teacher_notes(trainer, teacher, settings),
    ]
    if checkpoint is not None:
        notes += [*damage_notes, f"Resumed from {checkpoint.path}"]
        if trainer.finished:
            notes.append("All epochs are finished; --epochs with a larger number trains on")
    if unreadable:
        notes.append(f"{unreadable} unreadable images are left out")
    seconds = None if costs is None else trainer.remaining_images * costs.per_sample(trainer) / group_size()
    if seconds is not None and budget is not None:
        seconds += budget.finishing_seconds
    print_summary(trainer, readable, settings, teacher, notes, seconds)
    write_run(directory, trainer.context.recipe, settings)
    from_main(
        Plan(
            directory.resolve(),
            trainer.context.recipe,
            settings,
            checkpoint,
            trainer.budget,
            record,
            trainer.images_per_epoch,
        )
    )
    return replace(assembled, settings=settings)


def _teacher_notes(trainer: Trainer, teacher: DistillationTeacher | None, settings: RunSettings) -> list[str]:
    if teacher is None:
        return []
    notes = list(teacher.notes)
    if trainer.context.recipe.distillation.features and trainer.context.features is None:
        reason = "exposes no intermediate features" if teacher.sample_targets is None else "is a cache without feature maps"
        notes.append(
            f"The teacher {settings.teacher} {reason}; training uses its logits only, which takes more "
            "images and time from scratch"
        )
    return notes
