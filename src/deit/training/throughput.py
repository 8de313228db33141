"""Measures how fast a run trains: for the estimate of its duration, and to plan it for a given time."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import nn

from deit.data.loader import Batch, Loader, default_workers
from deit.data.sampler import BatchPlan
from deit.recipes.samples import view_steps
from deit.system.devices import autocast
from deit.system.hardware import cores
from deit.system.malloc import retained_memory
from deit.training.loop import Trainer
from deit.training.optimization import make_optimizer, trainable_modules
from deit.training.step import TOTAL, StepContext, batch_losses

WARMUP_BATCHES = 1
MIN_SECONDS = 2.0  # that the measured batches take together
MAX_BATCHES = 64


def seconds_per_image(trainer: Trainer) -> float:
    """Measures the time per training sample, with its share of the evaluation, on a copy of the model.

    Batches are made while the model trains, as in training, since both compete for the cores. The optimizer step is included;
    the first batch, which pays for initialization, is not.
    """
    recipe = trainer.context.recipe
    count = len(trainer.samples.source.labels)
    plans = [plan for step in view_steps(recipe, count, 0) for plan in step]
    model = copy.deepcopy(trainer.model).train()
    context = replace(trainer.context, features=copy.deepcopy(trainer.context.features))
    optimizer = make_optimizer(trainable_modules(model, context.features), recipe.optimizer, context.precision)
    loader = Loader(trainer.samples, trainer.workers)
    device = trainer.device
    images, seconds, last_batch = 0, 0.0, None
    with retained_memory(device):
        start = time.perf_counter()
        for index, batch in enumerate(loader.run(list(islice(cycle(plans), MAX_BATCHES)))):
            if not len(batch.labels):
                continue
            last_batch = batch
            batch_losses(model, batch, context, 0, 0)[TOTAL].backward()  # type: ignore[no-untyped-call]
            backward_end = time.perf_counter()
            optimizer.step()
            _synchronize(device)
            end = time.perf_counter()
            if index >= WARMUP_BATCHES:
                images += len(batch.labels)
                steps = min(len(batch.labels) / recipe.batch_size, 1)  # optimizer steps per micro-batch
                seconds += backward_end - start + (end - backward_end) * steps
            if seconds > MIN_SECONDS:
                break
            start = end
        if last_batch is None or not images:
            return 0.0
        evaluation = _forward_seconds(model, last_batch, context, device) / len(last_batch.labels)
    loading = _loading_seconds(trainer, plans[0])
    training = seconds / images
    if device.type == "cpu":
        evaluation += loading / cores()
    else:  # batches that were prefetched hide the time of the loader
        workers = trainer.workers or default_workers()
        training, evaluation = max(training, loading / workers), max(evaluation, loading / workers)
    return training + evaluation * len(trainer.validation.source.labels) / count


def remaining_seconds(trainer: Trainer) -> float:
    """Estimates the duration of the remaining epochs."""
    return trainer.remaining_images * seconds_per_image(trainer)


def _forward_seconds(model: nn.Module, batch: Batch, context: StepContext, device: torch.device) -> float:
    """Measures the evaluation of a batch."""
    model.eval()
    start = time.perf_counter()
    with torch.no_grad(), autocast(device, context.precision):
        model(batch.pixel_values.to(device))
    _synchronize(device)
    return time.perf_counter() - start


def _loading_seconds(trainer: Trainer, plan: BatchPlan) -> float:
    """Measures the time that one worker needs per image."""
    start = time.perf_counter()
    trainer.samples.batch(plan)
    return (time.perf_counter() - start) / len(plan.samples)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
