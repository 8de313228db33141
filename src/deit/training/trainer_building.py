"""Builds the trainer of a run, and plans a recipe for a given time with trainers of candidate recipes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from deit.checkpoints.run_log import read_log
from deit.data.image_hashes import MAX_IMAGES, ImageHashes, read_image_hashes
from deit.data.loader import EvaluationSamples, TrainSamples
from deit.data.splits import DataRecord, Splits
from deit.distillation.cached_teacher import pixel_settings
from deit.distillation.feature_distillation import FeatureDistillation
from deit.distillation.feature_reduction import FITTED_SAMPLES, Shape
from deit.distillation.loading import load_teacher
from deit.distillation.protocol import DistillationTeacher
from deit.errors import CheckpointError
from deit.hub import fetch, model_path
from deit.models.timm_classifier import TimmClassifier
from deit.recipes.planning import DEFAULT_MINUTES, dataset_stats, has_open_sizes, lighten_augmentation, plan_from_time
from deit.recipes.run_settings import RunSettings
from deit.recipes.samples import first_batches, training_samples
from deit.recipes.schedule import plan_steps
from deit.recipes.schema import Recipe, Transformer
from deit.system.devices import autocast, choose_precision
from deit.system.distributed import group_size
from deit.system.files import BEST_NAME, IMAGE_HASHES_NAME, LAST_NAME, LOG_NAME, RECORD_NAME, json_text, write_bytes
from deit.system.progress import duration, plural, print_status
from deit.training.first_phase import first_phase
from deit.training.loop import Trainer
from deit.training.model_building import BuiltModel, TrainableModel, build_model
from deit.training.optimization import ModelEma, make_optimizer, trainable_modules
from deit.training.parallel_batches import parallel_batches
from deit.training.state import Resumable, TrainState, load_checkpoint
from deit.training.step import StepContext
from deit.training.throughput import MEASURED_SECONDS, Costs, measure_costs, teacher_seconds
from deit.training.time_limit import StepBudget, TimeLimit
from deit.training.whitening import WHITENED_SAMPLES, whiten_first_layer_

SIZING_SHARE = 0.9  # share of the time for training that sizes are chosen for; the rest is for measuring and the report
MEASURED_SHARE = 0.01  # share of the time that a candidate is measured
SHORTEST_MEASUREMENT = 0.5  # seconds


def build_trainer(
    directory: Path,
    built: BuiltModel,
    teacher: DistillationTeacher | None,
    splits: Splits,
    record: DataRecord,
    settings: RunSettings,
    device: torch.device,
    workers: int | None,
) -> Trainer:
    """Builds a trainer at the beginning of a run.

    Args:
        directory: the run directory.
        built: recipe and model.
        teacher: the teacher, on ``device``; None if the recipe does not distill.
        splits: the data set.
        record: its fingerprint and split.
        settings: of the run.
        device: where training runs.
        workers: worker processes of the data loader; None chooses by the number of cores.
    """
    recipe, model = built.recipe, built.model.to(device)
    processor = recipe.processor()
    if splits.value_range is not None:
        processor = processor.replace(value_range=splits.value_range.to_dict())
    if isinstance(model, TimmClassifier):
        model.processor = processor
    targets = None if teacher is None else teacher.sample_targets
    precision = choose_precision(recipe.precision, device)
    samples = training_samples(recipe, splits.train, settings.skip_unreadable, targets, splits.train_cache)
    if built.needs_whitening:
        assert isinstance(model, TimmClassifier)
        whiten_first_layer_(model, (batch.pixel_values for batch in first_batches(recipe, samples, WHITENED_SAMPLES)))
    with autocast(device, precision):
        features = _feature_distillation(recipe, model, teacher, samples, device)
    return Trainer(
        directory=directory,
        model=model,
        ema=ModelEma(model, recipe.ema) if recipe.ema.decay else None,
        optimizer=make_optimizer(trainable_modules(model, features), recipe.optimizer, precision),
        state=TrainState(data=record.fingerprint),
        context=StepContext(recipe, precision, teacher, features, parallel_batches(recipe, device, model, features)),
        samples=samples,
        validation=EvaluationSamples(splits.validation, processor, settings.skip_unreadable, splits.validation_cache),
        files={RECORD_NAME: json_text(asdict(record)).encode()},
        workers=workers,
        checkpoint_minutes=settings.checkpoint_minutes,
        track=settings.track,
        compiled=settings.compiled,
        shard=settings.shard,
    )


def restore(trainer: Trainer, checkpoint: Resumable, data: str) -> None:
    """Restores a trainer from a checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another data set or model, or the log is damaged.
    """
    state = checkpoint.state
    if state.data != trainer.state.data:
        raise CheckpointError(f"{data} is not the data that {trainer.directory} was trained on", "pass the same data")
    rows = read_log(trainer.directory)
    if rows and rows[-1]["epoch"] < state.epoch:
        raise CheckpointError(
            f"{trainer.directory / LOG_NAME} ends at epoch {rows[-1]['epoch']} of {state.epoch}",
            "restore it from a copy, or remove it: the resumed run then starts a new log",
        )
    trainer.state = state
    features = trainer.context.features
    load_checkpoint(checkpoint.path, trainer.model, trainer.ema, trainer.optimizer, state.steps_taken, features)


def add_image_hashes(trainer: Trainer, splits: Splits, settings: RunSettings, checkpoint: Path | None) -> list[str]:
    """Adds the hashes of the images, and of those that the initial checkpoint was trained on, to the files of the models.

    Pretraining without labels keeps no hashes, so that its images do not count as training images.

    Returns:
        What the user should know about them.
    """
    hashes = None if checkpoint is None else read_image_hashes(checkpoint)
    if hashes is None:
        hashes = ImageHashes.of(splits.train, splits.validation)
        if settings.init is not None:
            with suppress(CheckpointError) if checkpoint else nullcontext():  # a resumed run does not need it any more
                hashes = hashes.with_training_images(read_image_hashes(model_path(fetch(settings.init))))
        if len(hashes) > MAX_IMAGES:
            return ["There are too many images to record which ones were used for training"]
    trainer.files[IMAGE_HASHES_NAME] = hashes.to_bytes()
    for model in (trainer.directory / BEST_NAME, trainer.directory / LAST_NAME):  # of a resumed run
        if model.is_dir() and not (model / IMAGE_HASHES_NAME).exists():
            write_bytes(model / IMAGE_HASHES_NAME, trainer.files[IMAGE_HASHES_NAME])
    if not hashes.copies:
        return []
    return [
        f"{hashes.copies:,} of {plural(len(hashes.validation), 'validation image')} were also used for training, so that the "
        "validation accuracy is optimistic; the final evaluation leaves such copies out, unless there are no other images"
    ]


@dataclass(frozen=True)
class SizedRecipe:
    """A recipe with all sizes.

    Attributes:
        recipe: the recipe.
        notes: one sentence per choice.
        teacher: the teacher, if it was loaded to measure how fast candidates train.
        costs: measured for this recipe; None if there was nothing to choose.
    """

    recipe: Recipe
    notes: list[str]
    teacher: DistillationTeacher | None = None
    costs: Costs | None = None


@dataclass
class _Measurements:
    """Measures how fast candidate recipes train on this machine, each once.

    Attributes:
        splits: the data set.
        record: its fingerprint and split.
        settings: of the run.
        device: where training runs.
        workers: worker processes of the data loader; None chooses by the number of cores.
        seconds: how long a candidate is measured.
        teacher: the teacher, which is loaded for the first candidate.
    """

    splits: Splits
    record: DataRecord
    settings: RunSettings
    device: torch.device
    workers: int | None
    seconds: float
    teacher: DistillationTeacher | None = None
    _rows: list[tuple[Recipe, Costs, float]] = field(default_factory=list)  # with seconds per sample

    def costs(self, candidate: Recipe) -> Costs:
        """Returns the costs of a candidate."""
        return self._measure(candidate)[1]

    def speed(self, candidate: Recipe) -> float:
        """Returns the seconds per training sample of a candidate."""
        return self._measure(candidate)[2]

    def _measure(self, candidate: Recipe) -> tuple[Recipe, Costs, float]:
        known = next((row for row in self._rows if row[0] == candidate), None)
        if known is not None:
            return known
        built = build_model(candidate, self.splits.classes, self.settings.init)
        if not self._rows:  # before any output: a teacher that does not fit is a mistake of the user
            self.teacher = load_teacher(built.recipe, self.settings, self.splits, self.record)
            print_status("Measuring how fast candidate models train")
        teacher = None if self.teacher is None else self.teacher.to(self.device)
        trainer = build_trainer(Path(), built, teacher, self.splits, self.record, self.settings, self.device, self.workers)
        costs = measure_costs(trainer, self.seconds)
        self._rows.append((candidate, costs, costs.per_sample(trainer) / group_size()))
        return self._rows[-1]


def choose_sizes(
    recipe: Recipe,
    splits: Splits,
    record: DataRecord,
    settings: RunSettings,
    device: torch.device,
    workers: int | None,
    limit: TimeLimit | None,
) -> SizedRecipe:
    """Chooses what depends on the time, by measuring how fast candidate recipes train: sizes, and how strong augmentation is.

    The augmentation of cached logits is kept.
    """
    if settings.init is not None and isinstance(recipe.model, Transformer) and recipe.model.sizes == "data":
        recipe = recipe.replace(model={"sizes": "variant"})  # the checkpoint decides the shape
    if not has_open_sizes(recipe) and recipe.minutes is None:
        return SizedRecipe(recipe, [])
    measurements = _Measurements(splits, record, settings, device, workers, measuring_seconds(limit))
    seconds = SIZING_SHARE * (60 * DEFAULT_MINUTES if limit is None else max(limit.remaining(), 0))
    stats = dataset_stats(splits.train, test_mirror=False)
    sized, notes = plan_from_time(recipe, stats, measurements.speed, seconds)
    epochs = seconds / measurements.speed(sized) / stats.images
    is_cached = measurements.teacher is not None and measurements.teacher.sample_targets is not None
    if recipe.minutes is not None and not is_cached:
        sized, light_notes = lighten_augmentation(sized, epochs)
        notes += light_notes
    return SizedRecipe(sized, notes, measurements.teacher, measurements.costs(sized))


def measuring_seconds(limit: TimeLimit | None) -> float:
    """Returns how long a candidate is measured."""
    if limit is None:
        return MEASURED_SECONDS
    return min(max(MEASURED_SHARE * limit.seconds, SHORTEST_MEASUREMENT), MEASURED_SECONDS)


def step_budget(trainer: Trainer, splits: Splits, costs: Costs, limit: TimeLimit) -> StepBudget:
    """Returns the budget of a run for a given time, by the measured costs of one process."""
    processes = group_size()
    evaluation = max(costs.evaluation * len(trainer.validation.source.labels) / processes, 1e-3)
    final = 0.0
    if not trainer.context.recipe.masked:
        teacher, images = trainer.context.teacher, len(splits.held_out[1].labels) / processes
        final = images * (costs.evaluation + costs.not_kept)
        if teacher is not None and teacher.sample_targets is None:
            final += images * (costs.loading + teacher_seconds(teacher, trainer.device))
        elif teacher is not None:  # a guess: loading the teacher to measure it may take longer than its evaluation
            final += images * (costs.evaluation + costs.not_kept)
    images_per_step = trainer.images_per_epoch // trainer.steps_per_epoch
    step_seconds = costs.sample * images_per_step / processes
    repeats = trainer.context.recipe.augmentation.repeats
    first_pass = 0 if trainer.samples.cache is None else trainer.steps_per_epoch * repeats
    return StepBudget(
        limit,
        trainer.steps_per_epoch,
        step_seconds,
        evaluation,
        final / evaluation,
        first_pass,
        first_pass_seconds=step_seconds + costs.decoding * images_per_step / repeats / processes,
        first_evaluation_seconds=costs.not_kept * len(trainer.validation.source.labels) / processes,
        first_phase=first_phase(trainer.context.recipe.model),
        first_phase_cost=costs.first_phase,
    )


def fit_to_time(trainer: Trainer, budget: StepBudget) -> str:
    """Plans the number of steps of a run. Returns a note about it."""
    limit, now = budget.limit, budget.limit.remaining()
    steps = budget.total_steps(trainer.state.steps_taken)
    recipe = plan_steps(trainer.context.recipe, steps, trainer.steps_per_epoch)
    trainer.context = replace(trainer.context, recipe=recipe)
    trainer.budget = budget
    images_per_second = trainer.images_per_epoch / trainer.steps_per_epoch / budget.mean_step_seconds()
    return (
        f"{plural(trainer.total_steps, 'step')} ({trainer.total_steps / trainer.steps_per_epoch:,.1f} epochs) in "
        f"{limit.seconds / 60:g} min, at a measured {images_per_second:,.0f} images/s: {duration(max(now, 0))} are left, "
        f"{duration(budget.finishing_seconds)} of them for the final evaluation and the report; corrected while it trains"
    )


def _feature_distillation(
    recipe: Recipe,
    model: TrainableModel,
    teacher: DistillationTeacher | None,
    samples: TrainSamples,
    device: torch.device,
) -> FeatureDistillation | None:
    """Builds the heads of feature distillation; None if the recipe has none, or the teacher no feature maps."""
    if not recipe.distillation.features or teacher is None:
        return None
    assert not isinstance(model, TimmClassifier)  # a convolutional network has no teacher
    shapes: Sequence[Shape] = teacher.feature_shapes(*recipe.image_hw)
    if not shapes:
        return None
    settings = json.dumps(pixel_settings(recipe))
    reduction = teacher.feature_reduction(first_batches(recipe, samples, FITTED_SAMPLES), settings)
    if reduction is not None:
        shapes = reduction.shapes
    return FeatureDistillation(model.config, shapes, recipe.seed, copy.deepcopy(reduction)).to(device)
