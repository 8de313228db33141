"""A run: from a data set and a recipe to a directory with checkpoints, models, log, evaluation and report."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deit.checkpoints.card import model_card
from deit.data.augment import TrainTransform
from deit.data.checking import without_unreadable
from deit.data.loader import EvaluationSamples, TrainSamples
from deit.data.opening import lasting, open_data, title
from deit.data.order import epoch_steps, micro_batches
from deit.data.sources import VALIDATION_FRACTION, DataRecord, Splits, relabelled
from deit.devices import choose_device, choose_precision, describe
from deit.distillation.classifiers import Classifier, check_architecture, fresh_network, load_classifier
from deit.distillation.teacher import Teacher
from deit.draws import Stream, torch_seed
from deit.errors import CheckpointError, MissingExtraError, RecipeError, TeacherError, UserError
from deit.evaluation import Evaluation, evaluate_source
from deit.files import (
    BEST_NAME,
    CARD_NAME,
    EVALUATION_NAME,
    LAST_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    RUN_NAME,
    read_json,
    write_json,
    write_text,
)
from deit.modeling import new_classifier
from deit.progress import duration, say
from deit.report import ReportData, write_report
from deit.training.loop import CHECKPOINTS_NAME, Training, read_log
from deit.training.optimization import MovingAverage, make_optimizer
from deit.training.recipe import ConvNet, Recipe, Transformer, get_recipe
from deit.training.state import Place, latest_checkpoint, load_checkpoint, read_place
from deit.training.step import StepContext, batch_loss

REPORT_NAME = "report.html"
PROBE_IMAGES = 32  # at most, that the estimate of the duration is made from


@dataclass(frozen=True)
class RunSettings:
    """What a run needs beside its recipe; kept in ``run.json`` so that a resume needs nothing but the directory.

    Attributes:
        data: as :func:`deit.data.opening.lasting` writes it.
        teacher: as :meth:`Teacher.load` takes it, or None; likewise ``teacher_weights``.
        split_seed: by which a missing part of the data is set aside, ``validation_fraction`` of each class.
        skip_unreadable: leave unreadable images out and count them.
    """

    data: str
    teacher: str | None = None
    teacher_weights: str | None = None
    split_seed: int = 0
    validation_fraction: float = VALIDATION_FRACTION
    skip_unreadable: bool = False


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


def train(
    data: str | Path | None = None,
    recipe: str | Recipe = "small-data",
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
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
        teacher: a directory or a timm architecture; needed where the recipe distils.
        teacher_weights: a file with that architecture's weights.
        settings: values to change in the recipe, as :meth:`Recipe.with_settings` takes them.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: processes that make batches; by the cores when None.
        skip_unreadable: leave unreadable images out and count them.

    Raises:
        UserError: anything about the data, recipe, teacher or directory that does not fit, before the first step.
        WorkError: training diverged or was interrupted.
    """
    if resume is not None:
        directory, chosen, run = _resumed(Path(resume), data)
    else:
        if data is None:
            raise UserError("There is no data to train on", "pass a folder of images, or a name that `deit data list` shows")
        chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
        chosen = chosen.with_settings(settings or {})
        run = RunSettings(
            data=lasting(data),
            teacher=None if teacher is None else _lasting(teacher),
            teacher_weights=None if teacher_weights is None else _lasting(teacher_weights),
            skip_unreadable=skip_unreadable,
        )
        directory = _new_run_directory(out, run.data, chosen.name)
    splits = open_data(run.data, run.split_seed, run.validation_fraction)
    return train_on(splits, chosen, run, directory, device=device, workers=workers)


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
    place = choose_device(device)
    record = DataRecord(splits.fingerprint, run.split_seed, run.validation_fraction)
    splits, unreadable = without_unreadable(splits, run.skip_unreadable)
    recipe, notes = _fitted(recipe, splits)
    teacher = _teacher(recipe, run, splits)
    if teacher is not None:
        teacher.to(place)
    training = _prepare(directory, recipe, run, splits, teacher, place, workers, record)
    checkpoint = latest_checkpoint(directory / CHECKPOINTS_NAME)
    if checkpoint is not None:
        training.place = read_place(checkpoint)
        if training.place.data != record.fingerprint:
            raise CheckpointError(f"{run.data} is not the data that {directory} was trained on", "pass the same data")
        load_checkpoint(checkpoint, training.model, training.average, training.optimizer)
        notes.append(f"Resumed from {checkpoint}")
    if unreadable:
        notes.append(f"{unreadable} unreadable images are left out")
    _say_account(training, splits, run, teacher, notes)
    directory.mkdir(parents=True, exist_ok=True)
    recipe.save(directory / RECIPE_NAME)
    write_json(directory / RUN_NAME, asdict(run))
    training.fit()
    return _conclude(training, splits, run, teacher)


def _prepare(
    directory: Path,
    chosen: Recipe,
    run: RunSettings,
    splits: Splits,
    teacher: Teacher | None,
    device: torch.device,
    workers: int | None,
    record: DataRecord,
) -> Training:
    processor = chosen.processor()
    model = _fresh_model(chosen, splits.classes).to(device)
    layers = chosen.model.config().num_hidden_layers if isinstance(chosen.model, Transformer) else 0
    transform = TrainTransform(chosen.augmentation, *chosen.image_hw, *processor.rgb_statistics)
    return Training(
        directory=directory,
        model=model,
        average=MovingAverage(model, chosen.average) if chosen.average.decay else None,
        optimizer=make_optimizer(model, chosen.optimizer),
        place=Place(data=record.fingerprint),
        context=StepContext(chosen, device, choose_precision(chosen.precision, device), teacher, layers),
        samples=TrainSamples(splits.train, transform, chosen.mixing, chosen.seed, chosen.smoothing, run.skip_unreadable),
        validation=EvaluationSamples(splits.validation, processor, run.skip_unreadable),
        extras={RECORD_NAME: asdict(record)},
        workers=workers,
    )


def _fresh_model(chosen: Recipe, classes: tuple[str, ...]) -> Classifier:
    seed = torch_seed(chosen.seed, Stream.INIT)
    if isinstance(chosen.model, ConvNet):
        network = chosen.model
        return fresh_network(network.architecture, classes, chosen.processor(), dict(network.arguments), seed)
    return new_classifier(chosen.model.config(classes), torch.Generator().manual_seed(seed))


def _teacher(chosen: Recipe, run: RunSettings, splits: Splits) -> Teacher | None:
    if isinstance(chosen.model, ConvNet):
        check_architecture(chosen.model.architecture)
    if chosen.distillation.mode == "none":
        if run.teacher is not None:
            raise TeacherError(
                f"The recipe {chosen.name} learns from labels alone, but a teacher is given",
                "take a recipe with -distilled in its name, or leave the teacher out",
            )
        return None
    if run.teacher is None:
        raise TeacherError(
            f"The recipe {chosen.name} learns from a teacher, and none is given",
            "pass --teacher; to train one first: deit teacher train DATA --arch regnety_004",
        )
    return Teacher.load(run.teacher, splits.classes, chosen.processor(), run.teacher_weights)


def _fitted(chosen: Recipe, splits: Splits) -> tuple[Recipe, list[str]]:
    """The recipe for a data set that may be smaller than its batch, and what was changed."""
    images = len(splits.train.labels)
    if chosen.batch_size <= images:
        return chosen, []
    smaller = chosen.replace(batch_size=images)
    note = (
        f"The {images} training images are fewer than the recipe's batch of {chosen.batch_size}: "
        f"the batch is {images}, the peak learning rate {smaller.peak_lr:.3g} in place of {chosen.peak_lr:.3g}"
    )
    return smaller, [note]


def _say_account(training: Training, splits: Splits, run: RunSettings, teacher: Teacher | None, notes: list[str]) -> None:
    """What is about to run, for a person."""
    for label, text in account(training, splits, run, teacher).items():
        say(f"{label + ':':<11}{text}")
    for note in notes:
        say(f"Note:      {note}.")
    say(f"Time:      about {duration(_estimate(training))} on {describe(training.context.device)}")


def account(training: Training, splits: Splits, run: RunSettings, teacher: Teacher | None) -> dict[str, str]:
    """The facts of a run, label -> text: what the terminal and the report show."""
    chosen, context = training.context.recipe, training.context
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    height, width = chosen.image_hw
    counts = ", ".join(f"{count:,} {name}" for name, count in _counts(splits).items())
    shown = ", ".join(splits.classes[:5]) + (", ..." if len(splits.classes) > 5 else "")
    facts = {
        "Data": f"{run.data}: {counts} images ({splits.origin})",
        "Classes": f"{len(splits.classes)} ({shown})",
        "Model": f"{_model_name(chosen)} at {height} x {width}, {parameters:,} parameters",
        "Recipe": (
            f"{chosen.name}: {chosen.epochs} epochs of {training.steps} steps, batch {chosen.batch_size}, "
            f"peak learning rate {chosen.peak_lr:.3g}, seed {chosen.seed}"
        ),
        "Precision": f"{context.precision} on {context.device}",
        "Run": str(training.directory),
    }
    if teacher is not None:
        facts["Teacher"] = f"{teacher.name}, {chosen.distillation.mode} distillation"
    return facts


def _counts(splits: Splits) -> dict[str, int]:
    """Images in each part that there is."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: len(part.labels) for name, part in parts.items() if part is not None}


def _model_name(recipe: Recipe) -> str:
    """A published name, with what a recipe changed in the shape behind it."""
    model = recipe.model
    if isinstance(model, ConvNet):
        return model.architecture
    words = {"patch_size": "patch", "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}
    changes = [f"{word} {getattr(model, field)}" for field, word in words.items() if getattr(model, field) is not None]
    return f"{model.variant} with {', '.join(changes)}" if changes else model.variant


def _estimate(training: Training) -> float:
    """Seconds that the remaining epochs will take, from one batch on a copy of the model."""
    chosen, context = training.context.recipe, training.context
    count = len(training.samples.source.labels)
    first = epoch_steps(count, chosen.batch_size, chosen.seed, 0, chosen.augmentation.repeats)[0]
    start = time.perf_counter()
    batch = training.samples.batch(micro_batches(first, min(PROBE_IMAGES, chosen.micro_batch_size))[0])
    making = (time.perf_counter() - start) / max(training.workers or 1, 1)
    if not len(batch.labels):
        return 0.0
    model = copy.deepcopy(training.model).train()
    for _ in range(2):  # the first run of a shape pays for its set-up
        start = time.perf_counter()
        batch_loss(model, batch, context, 0, 0).backward()  # type: ignore[no-untyped-call]
        learning = time.perf_counter() - start
    images = (chosen.epochs - training.place.epoch) * training.images_an_epoch
    return images / len(batch.labels) * (making + learning if training.workers == 0 else max(making, learning))


def _conclude(training: Training, splits: Splits, run: RunSettings, teacher: Teacher | None) -> TrainResult:
    """Evaluate the best model, and the teacher beside it, on the part that was least looked at; write model cards and report.

    In fp32, whatever training ran in, so that `deit evaluate` gives the same figures.
    """
    directory, device = training.directory, training.context.device
    part, source = splits.held_out
    best = load_classifier(directory / BEST_NAME)
    best.model.to(device)
    samples = EvaluationSamples(source, best.processor, run.skip_unreadable)
    evaluation = evaluate_source(best.model, samples, workers=training.workers)
    taught = None
    if teacher is not None:
        known = teacher.classifier
        seen = EvaluationSamples(relabelled(source, known.classes), known.processor, run.skip_unreadable)
        taught = evaluate_source(known.model, seen, workers=training.workers)
    content: dict[str, Any] = {"part": part, "best_epoch": training.place.best["epoch"], **evaluation.to_dict()}
    content["data"] = {"images": _counts(splits), "origin": splits.origin}
    if taught is not None:
        content["teacher"] = taught.to_dict()
    write_json(directory / EVALUATION_NAME, content)
    for model in (directory / BEST_NAME, directory / LAST_NAME):
        write_text(model / CARD_NAME, model_card(model))
    report = ReportData(
        title=f"{training.context.recipe.name} on {title(run.data)}",
        facts=account(training, splits, run, teacher),
        history=read_log(directory),
        part=part,
        evaluation=evaluation,
        others={} if taught is None else {"teacher": taught},
        source=source,
    )
    try:
        write_report(directory / REPORT_NAME, report)
    except MissingExtraError as error:
        say(str(error))
    return TrainResult(directory, part, evaluation, taught)


def _resumed(directory: Path, data: str | Path | None) -> tuple[Path, Recipe, RunSettings]:
    if not (directory / RUN_NAME).is_file():
        raise CheckpointError(f"{directory} is no run directory", "pass the directory that an earlier `deit train` made")
    content = read_json(directory / RUN_NAME)
    if data is not None:
        content["data"] = lasting(data)
    try:
        run = RunSettings(**content)
    except TypeError as error:
        raise CheckpointError(f"{directory / RUN_NAME} is garbled", "train again") from error
    return directory, Recipe.load(directory / RECIPE_NAME), run


def _new_run_directory(out: str | Path | None, data: str, recipe_name: str) -> Path:
    if out is not None:
        directory = Path(out)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise RecipeError(f"{directory} exists already", "pass another --out, or --resume to go on in it")
        return directory
    stem = Path("runs") / f"{title(data)}-{recipe_name}"
    candidates = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in range(1, 1_000_000))
    return next(path for path in candidates if not path.exists())


def _lasting(name: str | Path) -> str:
    """A path as it is found from any folder; a name that is no path stays as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
