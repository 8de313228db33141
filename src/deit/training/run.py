"""A run: from a data set and a recipe to a directory with checkpoints, models, log, evaluation and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deit.checkpoints.model_card import model_card
from deit.config import ViTConfig
from deit.data.checking import without_unreadable
from deit.data.loader import EvaluationSamples
from deit.data.opening import lasting, open_data, open_unlabeled, title
from deit.data.splits import DataRecord, Splits
from deit.distillation.cache_format import is_logit_cache
from deit.distillation.cached_teacher import AnyTeacher, CachedTeacher
from deit.distillation.feature_distillation import Hints
from deit.distillation.teacher import Teacher
from deit.errors import CheckpointError, MissingExtraError, RecipeError, TeacherError, UserError
from deit.evaluation.evaluate import evaluate_source
from deit.evaluation.metrics import Evaluation
from deit.evaluation.report import ReportData, write_report
from deit.models.auto import TimmClassifier, load_classifier
from deit.recipes.planning import from_data, from_time, is_open, look
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings, absolute, new_run_directory, resumed_run
from deit.recipes.samples import training_samples
from deit.recipes.scaling import scaled
from deit.recipes.schema import Recipe, Transformer
from deit.system.devices import choose_device, choose_precision
from deit.system.files import (
    BEST_NAME,
    CARD_NAME,
    EVALUATION_NAME,
    LAST_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    RUN_NAME,
    write_json,
    write_text,
)
from deit.system.progress import print_status
from deit.training.loop import CHECKPOINTS_NAME, Training, read_log
from deit.training.model_building import Start, start
from deit.training.optimization import ModelEma, make_optimizer, trainable_modules
from deit.training.state import TrainState, latest_checkpoint, load_checkpoint, read_train_state
from deit.training.step import StepContext
from deit.training.summary import account, counts, image_seconds, say_account

REPORT_NAME = "report.html"


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        directory: of the run; ``best`` in it is the model.
        part: ``test``, or ``validation`` where the data has no test part.
        evaluation: of the best model on that part.
        teacher: of the teacher on the same images; None without one.
    """

    directory: Path
    part: str
    evaluation: Evaluation
    teacher: Evaluation | None


@dataclass(frozen=True)
class PretrainResult:
    """What came of masked image modeling.

    Attributes:
        directory: of the run; ``best`` in it is a model to start from: ``init`` of :func:`train`.
        epoch: of the best model, counted from 1.
        loss: its mean absolute difference of hidden pixels, on the validation part, in the normalized images' units.
    """

    directory: Path
    epoch: int
    loss: float


def train(
    data: str | Path | None = None,
    recipe: str | Recipe = "small-data",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> TrainResult:
    """Train a classifier, evaluate it, and write the report.

    Args:
        data: as :func:`deit.data.opening.open_data` takes it; may be left out with ``resume``.
        recipe: a recipe, its name, or a TOML file.
        out: the run's directory, new or empty; by default a new one below ``runs``.
        resume: an earlier run's directory: go on in it, with its own recipe, teacher and data.
        init: a checkpoint to start from: of any format, a run, a name on the hub or a variant's name. Heads are new where its
            classes are not the data's.
        teacher: as :meth:`Teacher.load` takes it, or a directory of ``deit teacher store``; needed where the recipe distils.
        teacher_weights: a file with that architecture's weights.
        settings: values to change in the recipe, as :meth:`Recipe.with_settings` takes them.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: processes that make batches; by the cores when None.
        skip_unreadable: leave unreadable images out and count them.

    Raises:
        UserError: anything about the data, recipe, teacher or directory that does not fit, before the first step.
        WorkError: training diverged or was interrupted.
    """
    given = (init, teacher, teacher_weights)
    directory, chosen, run = _requested(data, recipe, settings, out, resume, skip_unreadable, *given)
    if chosen.masked:
        raise RecipeError(f"The recipe {chosen.name} learns no labels", "deit pretrain takes it")
    splits = open_data(run.data, run.split_seed, run.validation_fraction)
    return train_on(splits, chosen, run, directory, device=device, workers=workers)


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
) -> PretrainResult:
    """Train a model to fill in hidden patches of images, whatever their labels; then :func:`train` from it.

    Args:
        data: a folder of images at any depth, or any data set whose labels are then not looked at.
        recipe: as in :func:`train`, like all that follow; one with ``masking.ratio`` above 0.

    Raises:
        UserError: anything about the data, recipe or directory that does not fit, before the first step.
        WorkError: training diverged or was interrupted.
    """
    directory, chosen, run = _requested(data, recipe, settings, out, resume, skip_unreadable, init)
    if not chosen.masked:
        raise RecipeError(f"The recipe {chosen.name} learns labels", "deit train takes it; set masking.ratio to hide patches")
    splits = open_unlabeled(run.data, run.split_seed, run.validation_fraction)
    training, *_ = _fit(splits, chosen, run, directory, device, workers)
    best = training.place.best
    write_json(directory / EVALUATION_NAME, {"part": "validation", "best_epoch": best["epoch"], "loss": best["loss"]})
    return PretrainResult(directory, int(best["epoch"]), best["loss"])


def _requested(
    data: str | Path | None,
    recipe: str | Recipe,
    settings: Mapping[str, str] | None,
    out: str | Path | None,
    resume: str | Path | None,
    skip_unreadable: bool,
    init: str | Path | None,
    teacher: str | Path | None = None,
    teacher_weights: str | Path | None = None,
) -> tuple[Path, Recipe, RunSettings]:
    """Where, how and with what to train: a new run, or the one to go on with."""
    if resume is not None:
        return resumed_run(Path(resume), data)
    if data is None:
        raise UserError("There is no data to train on", "pass a folder of images, or a name that `deit data list` shows")
    chosen = (get_recipe(recipe) if isinstance(recipe, str) else recipe).with_settings(settings or {})
    run = RunSettings(
        data=lasting(data),
        init=None if init is None else absolute(init),
        teacher=None if teacher is None else absolute(teacher),
        teacher_weights=None if teacher_weights is None else absolute(teacher_weights),
        skip_unreadable=skip_unreadable,
    )
    return new_run_directory(out, run.data, chosen.name), chosen, run


def train_on(
    splits: Splits,
    recipe: Recipe,
    run: RunSettings,
    directory: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
) -> TrainResult:
    """As :func:`train`, on data that is open already; a checkpoint in ``directory`` is gone on from."""
    return _conclude(*_fit(splits, recipe, run, directory, device, workers), run=run)


def _fit(
    splits: Splits, recipe: Recipe, run: RunSettings, directory: Path, device: str, workers: int | None
) -> tuple[Training, Splits, AnyTeacher | None]:
    """Check all that can be checked, say what will happen, and train to the last epoch.

    Returns:
        What came of it, the data without what is unreadable, and the teacher.
    """
    place = choose_device(device)
    record = DataRecord(splits.fingerprint, run.split_seed, run.validation_fraction)
    _check_teacher(recipe, run)
    splits, unreadable = without_unreadable(splits, run.skip_unreadable)
    recipe, notes = fitted(recipe, splits)
    if is_open(recipe):
        recipe, chosen = _timed(recipe, splits, run, place, workers, record)
        notes += chosen
    checkpoint = latest_checkpoint(directory / CHECKPOINTS_NAME)
    begun = start(recipe, splits.classes, run.init, checkpoint)
    teacher = _teacher(begun.recipe, run, splits, record)
    notes += begun.notes
    if isinstance(teacher, CachedTeacher):
        resolved, said = teacher.fitted(begun.recipe)
        begun, notes = replace(begun, recipe=resolved), notes + said
    elif teacher is not None:
        teacher.to(place)
        notes += teacher.notes
    training = _prepare(directory, begun, run, splits, teacher, place, workers, record)
    if begun.recipe.distillation.hints and training.context.hints is None:
        notes.append(
            f"The teacher {run.teacher} shows no maps: the student learns from its answers alone, which from scratch takes "
            "more images and time"
        )
    if isinstance(teacher, CachedTeacher):
        teacher.check_pixels(begun.recipe, training.samples)
    if checkpoint is not None:
        training.place = read_train_state(checkpoint)
        if training.place.data != record.fingerprint:
            raise CheckpointError(f"{run.data} is not the data that {directory} was trained on", "pass the same data")
        hints, steps = training.context.hints, training.place.steps_taken
        load_checkpoint(checkpoint, training.model, training.average, training.optimizer, steps, hints)
        notes.append(f"Resumed from {checkpoint}")
    if unreadable:
        notes.append(f"{unreadable} unreadable images are left out")
    say_account(training, splits, run, teacher, notes)
    directory.mkdir(parents=True, exist_ok=True)
    begun.recipe.save(directory / RECIPE_NAME)
    write_json(directory / RUN_NAME, asdict(run))
    training.fit()
    return training, splits, teacher


def _prepare(
    directory: Path,
    begun: Start,
    run: RunSettings,
    splits: Splits,
    teacher: AnyTeacher | None,
    device: torch.device,
    workers: int | None,
    record: DataRecord,
) -> Training:
    chosen, model = begun.recipe, begun.model.to(device)
    processor = chosen.processor()
    config = None if isinstance(model, TimmClassifier) else model.config
    answers = teacher.answers(chosen) if isinstance(teacher, CachedTeacher) else None
    live = None if isinstance(teacher, CachedTeacher) else teacher
    hints = _hints(chosen, config, teacher, device)
    return Training(
        directory=directory,
        model=model,
        average=ModelEma(model, chosen.average) if chosen.average.decay else None,
        optimizer=make_optimizer(trainable_modules(model, hints), chosen.optimizer),
        place=TrainState(data=record.fingerprint),
        context=StepContext(chosen, device, choose_precision(chosen.precision, device), live, config, hints),
        samples=training_samples(chosen, splits.train, run.skip_unreadable, answers),
        validation=EvaluationSamples(splits.validation, processor, run.skip_unreadable),
        extras={RECORD_NAME: asdict(record)},
        workers=workers,
    )


def _hints(chosen: Recipe, config: ViTConfig | None, teacher: AnyTeacher | None, device: torch.device) -> Hints | None:
    if not chosen.distillation.hints or not isinstance(teacher, Teacher) or not teacher.has_features:
        return None
    assert config is not None  # a convolutional network has no teacher
    return Hints(config, teacher.feature_shapes(*chosen.image_hw), chosen.seed).to(device)


def _check_teacher(chosen: Recipe, run: RunSettings) -> None:
    """Whether there is a teacher where the recipe learns from one, and none where it does not."""
    if chosen.distillation.mode == "none" and run.teacher is not None:
        raise TeacherError(
            f"The recipe {chosen.name} learns from labels alone, but a teacher is given",
            "take a recipe with -distilled in its name, set distillation.mode=hard, or leave the teacher out",
        )
    if chosen.distillation.mode != "none" and run.teacher is None:
        raise TeacherError(
            f"The recipe {chosen.name} learns from a teacher, and none is given",
            "pass --teacher; to train one first: deit teacher train DATA",
        )


def _teacher(chosen: Recipe, run: RunSettings, splits: Splits, record: DataRecord) -> AnyTeacher | None:
    if run.teacher is None:
        return None
    if not is_logit_cache(run.teacher):
        return Teacher.load(run.teacher, splits.classes, chosen.processor(), run.teacher_weights)
    if run.teacher_weights is not None:
        raise TeacherError(f"{run.teacher} is a store, which needs no weights", "leave out --teacher-weights")
    return CachedTeacher.open(run.teacher, chosen, splits, record)


def _timed(
    chosen: Recipe, splits: Splits, run: RunSettings, device: torch.device, workers: int | None, record: DataRecord
) -> tuple[Recipe, list[str]]:
    """The recipe with what the time decides, and why, from the speed that is measured here."""
    known: list[AnyTeacher | None] = []

    def speed(candidate: Recipe) -> float:
        begun = start(candidate, splits.classes, run.init, None)
        if not known:  # before anything is said: a teacher that does not fit is the user's mistake
            known.append(_teacher(begun.recipe, run, splits, record))
            print_status("Measuring how fast candidates train here")
        (teacher,) = known
        if isinstance(teacher, Teacher):
            teacher.to(device)
        return image_seconds(_prepare(Path(), begun, run, splits, teacher, device, workers, record))

    if run.init is not None and isinstance(chosen.model, Transformer):
        chosen = chosen.replace(model={"sizes": "variant"})  # the shape is the checkpoint's
    return from_time(chosen, look(splits.train, mirrored=False), speed)


def fitted(chosen: Recipe, splits: Splits) -> tuple[Recipe, list[str]]:
    """The recipe with what the data decides, and for a data set that may be smaller than its batch; and what was changed."""
    images = len(splits.train.labels)
    if is_open(chosen):
        chosen, why = from_data(chosen, look(splits.train, chosen.mirror_test))
        fitting, notes = _within(chosen, images)
        return fitting, why + notes
    return _within(chosen, images)


def _within(chosen: Recipe, images: int) -> tuple[Recipe, list[str]]:
    if chosen.batch_size <= images:
        return chosen, scaled(chosen, images)
    note = f"The {images} training images are fewer than the recipe's batch of {chosen.batch_size:,}: they are the batch"
    smaller = chosen.replace(batch_size=images)
    return smaller, [note, *scaled(smaller, images)]


def _conclude(training: Training, splits: Splits, teacher: AnyTeacher | None, run: RunSettings) -> TrainResult:
    """Evaluate the best model, and the teacher beside it, on the part that was least looked at; write model cards and report.

    In fp32, whatever training ran in, so that `deit evaluate` gives the same figures.
    """
    directory, device = training.directory, training.context.device
    part, source = splits.held_out
    best = load_classifier(directory / BEST_NAME)
    best.model.to(device)
    samples = EvaluationSamples(source, best.processor, run.skip_unreadable)
    evaluation = evaluate_source(best.model, samples, workers=training.workers)
    live = teacher.load(training.context.recipe) if isinstance(teacher, CachedTeacher) else teacher
    taught = None
    if live is not None:
        seen = EvaluationSamples(source, live.classifier.processor, run.skip_unreadable)
        taught = evaluate_source(live.to(device).evaluated(), seen, workers=training.workers)
    content: dict[str, Any] = {"part": part, "best_epoch": training.place.best["epoch"], **evaluation.to_dict()}
    content["data"] = {"images": counts(splits), "origin": splits.origin}
    if taught is not None:
        content["teacher"] = taught.to_dict()
    write_json(directory / EVALUATION_NAME, content)
    for model in (directory / BEST_NAME, directory / LAST_NAME):
        write_text(model / CARD_NAME, model_card(model))
    report = ReportData(
        title=f"{training.context.recipe.name} on {title(run.data)}",
        facts=account(training, splits, run, teacher),
        history=read_log(directory),
        split=part,
        evaluation=evaluation,
        teacher=taught,
        source=source,
        distillation=training.context.recipe.distillation,
        label_loss=training.context.recipe.loss,
    )
    try:
        write_report(directory / REPORT_NAME, report)
    except MissingExtraError as error:
        print_status(str(error))
    return TrainResult(directory, part, evaluation, taught)
