"""What a run says of itself before it starts: data, model, recipe, how long it will take."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import nn

from deit.checkpoints.metadata import shape_name
from deit.data.loader import Batch, Loader, cores, default_workers
from deit.data.sampler import BatchPlan
from deit.data.splits import Splits
from deit.distillation.cached_teacher import AnyTeacher
from deit.recipes.run_settings import RunSettings
from deit.recipes.samples import view_steps
from deit.recipes.schema import ConvNet
from deit.system.devices import autocast, describe
from deit.system.malloc import retained_memory
from deit.system.progress import duration, plural, print_status
from deit.training.loop import Training
from deit.training.optimization import make_optimizer, trainable_modules
from deit.training.step import StepContext, batch_loss

UNCOUNTED = 1  # batches before those that the estimate of the duration is made from
PROBED_SECONDS = 2.0  # that these take at least
MOST_PROBES = 64


def say_account(training: Training, splits: Splits, run: RunSettings, teacher: AnyTeacher | None, notes: list[str]) -> None:
    """What is about to run, for a person."""
    for label, text in account(training, splits, run, teacher).items():
        print_status(f"{label + ':':<11}{text}")
    for note in notes:
        print_status(f"Note:      {note}.")
    print_status(f"Time:      about {duration(_estimate(training))} on {describe(training.context.device)}")


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

    Batches are made while the model learns, as in training: on few cores the one slows the other. The optimizer's part is in
    it; the first batch, which pays for the set-up of its shapes, is not.
    """
    chosen, context = training.context.recipe, training.context
    count = len(training.samples.source.labels)
    plans = [piece for step in view_steps(chosen, count, 0) for piece in step]
    model = copy.deepcopy(training.model).train()
    context = replace(context, hints=copy.deepcopy(context.hints))
    optimizer = make_optimizer(trainable_modules(model, context.hints), chosen.optimizer)
    loader = Loader(training.samples, training.workers)
    images, seconds, batch = 0, 0.0, None
    with retained_memory(context.device):
        start = time.perf_counter()
        for place, made in enumerate(loader.run(list(islice(cycle(plans), MOST_PROBES)))):
            if not len(made.labels):
                continue
            batch = made
            batch_loss(model, batch, context, 0, 0).backward()  # type: ignore[no-untyped-call]
            learned = time.perf_counter()
            optimizer.step()
            _wait_for(context.device)
            end = time.perf_counter()
            if place >= UNCOUNTED:
                images += len(batch.labels)
                seconds += learned - start + (end - learned) * min(len(batch.labels) / chosen.batch_size, 1)
            if seconds > PROBED_SECONDS:
                break
            start = end
        if batch is None or not images:
            return 0.0
        judging = _judging(model, batch, context) / len(batch.labels)
    making = _making(training, plans[0])
    learning = seconds / images
    if context.device.type == "cpu":
        judging += making / cores()
    else:  # batches that were made ahead hide how long they take
        workers = training.workers or default_workers()
        learning, judging = max(learning, making / workers), max(judging, making / workers)
    share = len(training.validation.source.labels) / count  # images evaluated for each that is trained on
    return learning + share * judging


def _judging(model: nn.Module, batch: Batch, context: StepContext) -> float:
    """Seconds that a batch takes in evaluation."""
    model.eval()
    start = time.perf_counter()
    with torch.no_grad(), autocast(context.device, context.precision):
        model(batch.pixel_values.to(context.device))
    _wait_for(context.device)
    return time.perf_counter() - start


def _making(training: Training, plan: BatchPlan) -> float:
    """Seconds that one process takes for an image of a batch."""
    start = time.perf_counter()
    training.samples.batch(plan)
    return (time.perf_counter() - start) / len(plan.samples)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _estimate(training: Training) -> float:
    """Seconds that the remaining epochs will take."""
    images = (training.context.recipe.epochs - training.place.epoch) * training.images_an_epoch - training.place.images
    return images * image_seconds(training)
