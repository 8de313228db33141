"""What a run says of itself before it starts: data, model, recipe, how long it will take."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace

import torch

from deit.checkpoints.facts import shape_name
from deit.data.loader import available_cores, default_workers
from deit.data.order import epoch_steps, micro_batches
from deit.data.sources import Splits
from deit.devices import autocast, describe
from deit.distillation.stored import AnyTeacher
from deit.progress import duration, plural, say
from deit.training.loop import Training
from deit.training.optimization import learners, make_optimizer
from deit.training.recipe import ConvNet
from deit.training.settings import RunSettings
from deit.training.step import batch_loss

PROBES = 2  # batches that the estimate of the duration is made from


def say_account(training: Training, splits: Splits, run: RunSettings, teacher: AnyTeacher | None, notes: list[str]) -> None:
    """What is about to run, for a person."""
    for label, text in account(training, splits, run, teacher).items():
        say(f"{label + ':':<11}{text}")
    for note in notes:
        say(f"Note:      {note}.")
    say(f"Time:      about {duration(_estimate(training))} on {describe(training.context.device)}")


def account(training: Training, splits: Splits, run: RunSettings, teacher: AnyTeacher | None) -> dict[str, str]:
    """The facts of a run, label -> text: what the terminal and the report show."""
    chosen, context = training.context.recipe, training.context
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    height, width = chosen.image_hw
    images = ", ".join(f"{count:,} {name}" for name, count in counts(splits).items())
    shown = ", ".join(splits.classes[:5]) + (", ..." if len(splits.classes) > 5 else "")
    facts = {
        "Data": f"{run.data}: {images} images ({splits.origin})",
        "Classes": "not looked at" if chosen.masked else f"{len(splits.classes)} ({shown})",
        "Model": f"{_model_name(training, run.init)} at {height} x {width}, {parameters:,} parameters{_learning(training)}",
        "Recipe": (
            f"{chosen.name}: {plural(chosen.epochs, 'epoch')} of {plural(training.steps, 'step')}, batch {chosen.batch_size}, "
            f"peak learning rate {chosen.peak_lr:.3g}, seed {chosen.seed}"
        ),
        "Precision": f"{context.precision} on {context.device}",
        "Run": str(training.directory),
    }
    if teacher is not None:
        maps = "" if context.hints is None else ", and its maps as hints"
        facts["Teacher"] = f"{teacher.name}, {chosen.distillation.mode} distillation{maps}"
    return facts


def counts(splits: Splits) -> dict[str, int]:
    """Images in each part that there is."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: len(part.labels) for name, part in parts.items() if part is not None}


def _model_name(training: Training, init: str | None) -> str:
    """A published name, with what a recipe changed in the shape behind it, and the checkpoint that the run started from."""
    model, config = training.context.recipe.model, training.context.config
    start = "" if init is None else f", from {init},"
    if isinstance(model, ConvNet):
        return f"{model.architecture}{start}"
    if model.variant is None:
        assert config is not None
        return f"{shape_name(config)}{start}"
    words = {"patch_size": "patch", "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}
    changes = [f"{word} {getattr(model, field)}" for field, word in words.items() if getattr(model, field) is not None]
    return f"{model.variant} with {', '.join(changes)}" if changes else model.variant


def _learning(training: Training) -> str:
    """How many of the parameters learn, where that is not all of them."""
    learning = sum(parameter.numel() for parameter in training.model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in training.model.parameters())
    return "" if learning == whole else f", of which {learning:,} learn"


def image_seconds(training: Training) -> float:
    """Seconds that each image of training takes, with its share of evaluation, measured on a copy of the model.

    The optimizer's part is in it; the first batch, which pays for the set-up of its shapes, is not.
    """
    chosen, context = training.context.recipe, training.context
    count = len(training.samples.source.labels)
    first = epoch_steps(count, chosen.batch_size, chosen.seed, 0, chosen.augmentation.repeats)[0]
    start = time.perf_counter()
    batch = training.samples.batch(micro_batches(first, chosen.micro_batch_size)[0])
    making = time.perf_counter() - start
    if not len(batch.labels):
        return 0.0
    model = copy.deepcopy(training.model).train()
    context = replace(context, hints=copy.deepcopy(context.hints))
    optimizer = make_optimizer(learners(model, context.hints), chosen.optimizer)
    micro_batch = len(batch.labels)
    times = []
    for _ in range(PROBES + 1):
        start = time.perf_counter()
        batch_loss(model, batch, context, 0, 0).backward()  # type: ignore[no-untyped-call]
        learned = time.perf_counter()
        optimizer.step()
        if context.device.type != "cpu":
            torch.accelerator.synchronize(context.device)
        times.append(learned - start + (time.perf_counter() - learned) * min(micro_batch / chosen.batch_size, 1))
    model.eval()
    with torch.no_grad(), autocast(context.device, context.precision):
        start = time.perf_counter()
        model(batch.pixel_values.to(context.device))
        judging = time.perf_counter() - start
    learning = statistics.median(times[1:])
    share = len(training.validation.source.labels) / count  # images evaluated for each that is trained on
    return (_together(training, making, learning) + share * _together(training, making, judging)) / micro_batch


def _together(training: Training, making: float, working: float) -> float:
    """Seconds of a batch: made by one process in ``making`` seconds, gone through by the model in ``working``."""
    if training.workers == 0:
        return making + working
    if training.context.device.type == "cpu":  # the processes that make batches take their time from the same cores
        return making / available_cores() + working
    return max(making / (training.workers or default_workers()), working)


def _estimate(training: Training) -> float:
    """Seconds that the remaining epochs will take."""
    images = (training.context.recipe.epochs - training.place.epoch) * training.images_an_epoch - training.place.images
    return images * image_seconds(training)
