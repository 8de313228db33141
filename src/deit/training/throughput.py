"""Measures how fast a run trains and evaluates: for the estimate of its duration, and to plan it for a given time."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch
from torch import nn

from deit.data.loader import Batch, EvaluationSamples, Loader, TrainSamples, default_workers
from deit.data.sampler import BatchPlan
from deit.distillation.protocol import DistillationTeacher
from deit.errors import DataError
from deit.recipes.samples import view_steps
from deit.system.devices import autocast
from deit.system.hardware import cores
from deit.system.malloc import retained_memory
from deit.training.first_phase import first_phase, mean_cost
from deit.training.loop import Trainer
from deit.training.optimization import make_optimizer, trainable_modules
from deit.training.parallel_batches import parallel_batches
from deit.training.step import StepContext, accumulate_gradients

MEASURED_SECONDS = 2.0  # duration of the measured batches together
LONGEST = 3  # a measurement ends after this many times that duration, counting the batches that are not measured
MAX_BATCHES = 64
WAITED = 0.1  # share of a batch's time; a longer wait shows that no batches are left that were made ahead of time
MEASURED_IMAGES = 8  # images that loading is measured on
TEACHER_BATCH = 4  # images


@dataclass(frozen=True)
class Costs:
    """Measured durations.

    Attributes:
        sample: seconds per training sample of the last phase: loading, forward, backward, and its share of the optimizer step.
        evaluation: seconds per image of an evaluation after an epoch.
        loading: seconds to load an image for the final evaluation, where no image is kept.
        first_phase: duration of a sample of the first phase, relative to ``sample``.
        decoding: additional seconds per image of the first pass over the images, where decoded images are kept.
        not_kept: additional seconds per image of the final evaluation, which keeps no decoded images.
    """

    sample: float
    evaluation: float
    loading: float
    first_phase: float = 1.0
    decoding: float = 0.0
    not_kept: float = 0.0

    def per_sample(self, trainer: Trainer) -> float:
        """Returns the mean seconds per training sample, with its share of the evaluation after an epoch."""
        images = len(trainer.validation.source.labels) / len(trainer.samples.source.labels)
        share = first_phase(trainer.context.recipe.model)
        return self.sample * mean_cost(share, self.first_phase) + self.evaluation * images


@dataclass(frozen=True)
class _Timing:
    """Seconds of a micro-batch, how many images it has, and whether its step was one of the first phase."""

    images: int
    waiting: float
    step: float
    is_first_phase: bool = False

    @property
    def seconds(self) -> float:
        return self.waiting + self.step


def measure_costs(trainer: Trainer, seconds: float = MEASURED_SECONDS) -> Costs:
    """Measures training and evaluation on a copy of the model.

    Args:
        trainer: of the run; it is not changed.
        seconds: time of the batches that are measured.

    Raises:
        DataError: no image is readable.
    """
    model, features = copy.deepcopy(trainer.model).train(), copy.deepcopy(trainer.context.features)
    at_once = parallel_batches(trainer.context.recipe, trainer.device, model, features)
    context = replace(trainer.context, features=features, parallel=at_once)
    timings: list[_Timing] = []
    with retained_memory(trainer.device), closing(_train_batches(trainer, model, context)) as batches:
        for timing, last_batch in batches:
            timings.append(timing)
            pixels = last_batch.pixel_values
            measured = sum(row.seconds for row in _steady(timings))
            if len(timings) > 1 and (measured > seconds or sum(row.seconds for row in timings) > LONGEST * seconds):
                break
        if not timings:
            raise DataError("No image of the first batches is readable", "`deit data check` lists the unreadable files")
        forward = _forward_seconds(model, pixels, context, trainer.device) / len(pixels)
    sample, faster = (_seconds_per_image(_steady(timings), is_first_phase) for is_first_phase in (False, True))
    loading, kept_loading = _loading_seconds(trainer, seconds)
    decoding = _decoding_seconds(trainer, seconds)
    if trainer.device.type == "cpu":
        parallel = cores()
        evaluation = forward + kept_loading / parallel
    else:  # batches that were prefetched hide the time of the loader
        parallel = max(default_workers() if trainer.workers is None else trainer.workers, 1)
        evaluation = max(forward, kept_loading / parallel)
        sample, faster = (max(value, loading / parallel) for value in (sample, faster))
    return Costs(
        sample=sample,
        evaluation=evaluation,
        loading=loading / parallel,
        first_phase=faster / sample,
        decoding=decoding / parallel,
        not_kept=max(loading - kept_loading, 0.0) / parallel,
    )


def teacher_seconds(teacher: DistillationTeacher, device: torch.device) -> float:
    """Measures the teacher's forward pass per image, as in the final evaluation; 0 if it cannot be loaded."""
    classifier = teacher.for_evaluation()
    if classifier is None:
        return 0.0
    model = classifier.model.to(device).eval()
    pixels = torch.zeros(TEACHER_BATCH, 3, *classifier.processor.input_hw, device=device)
    with torch.no_grad():
        model(pixels)
        _synchronize(device)
        start = time.perf_counter()
        model(pixels)
        _synchronize(device)
    return (time.perf_counter() - start) / TEACHER_BATCH


def _train_batches(trainer: Trainer, model: nn.Module, context: StepContext) -> Generator[tuple[_Timing, Batch]]:
    """Trains on the first micro-batches, which are drawn from the whole data set, and yields how long each took.

    Where decoded images are kept, all samples are made from a few that are, so that decoding every image once is not measured.
    If there is a first phase, every second step is one of it. Batches are made while the model trains, as in training, since
    both compete for the cores. A micro-batch is timed alone, unless those of a step run at the same time.
    """
    recipe, device = context.recipe, trainer.device
    optimizer = make_optimizer(trainable_modules(model, context.features), recipe.optimizer, context.precision)
    plans = [plan for step in view_steps(recipe, len(trainer.samples.source.labels), 0) for plan in step]
    loader = Loader(trainer.samples.for_measuring(), trainer.workers)
    try:
        start = time.perf_counter()
        at_once = 1 if context.parallel is None else context.parallel.count
        loaded_batches = loader.run(list(islice(cycle(plans), MAX_BATCHES * at_once)))
        for index in range(MAX_BATCHES):
            is_first_phase = index % 2 == 1 and first_phase(recipe.model) > 0
            batches = [batch for batch in islice(loaded_batches, at_once) if len(batch.labels)]
            loaded = time.perf_counter()
            if not batches:
                continue
            accumulate_gradients(model, batches, context, 0, 0, progress=0.0 if is_first_phase else 1.0)
            backward_end = time.perf_counter()
            optimizer.step()
            _synchronize(device)
            end = time.perf_counter()
            images = sum(len(batch.labels) for batch in batches)
            steps = min(images / recipe.images_per_batch, 1)  # optimizer steps
            duration = backward_end - loaded + (end - backward_end) * steps
            yield _Timing(images, loaded - start, duration, is_first_phase), batches[-1]
            start = time.perf_counter()
    finally:
        loader.close()


def _seconds_per_image(timings: Sequence[_Timing], is_first_phase: bool) -> float:
    """Returns the seconds per image in one phase, or in both if it was not measured."""
    rows = [timing for timing in timings if timing.is_first_phase == is_first_phase] or timings
    return sum(row.seconds for row in rows) / sum(row.images for row in rows)


def _steady(timings: Sequence[_Timing]) -> Sequence[_Timing]:
    """Returns the timings without the first, which pays for initialization, and those before a wait.

    Batches that were made ahead of time hide how long loading takes, until training has to wait for one.
    """
    timings = timings[1:] or timings
    waited = (index for index, timing in enumerate(timings) if timing.waiting > WAITED * timing.seconds)
    return timings[next(waited, 0) :]


def _forward_seconds(model: nn.Module, pixels: torch.Tensor, context: StepContext, device: torch.device) -> float:
    """Measures the evaluation of a batch."""
    model.eval()
    start = time.perf_counter()
    with torch.no_grad(), autocast(device, context.precision):
        model(pixels.to(device))
    _synchronize(device)
    return time.perf_counter() - start


def _loading_seconds(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """Measures the time that one worker needs per image of an evaluation, without a cache and with that of the trainer."""
    samples = trainer.validation
    plans = _single_images(samples)
    loading = _seconds_per_plan(replace(samples, cache=None), plans, seconds)
    if samples.cache is None:
        return loading, loading
    _seconds_per_plan(samples, plans, seconds)  # keeps them
    return loading, _seconds_per_plan(samples, plans, seconds)


def _decoding_seconds(trainer: Trainer, seconds: float) -> float:
    """Measures how much longer one worker needs for an image of the first pass than for a kept one; 0 if none are kept."""
    samples = replace(trainer.samples, teacher_targets=None)  # cached ones belong to the images of a step
    if samples.cache is None:
        return 0.0
    plans = _single_images(samples)
    return max(_seconds_per_plan(samples, plans, seconds) - _seconds_per_plan(samples, plans, seconds), 0.0)


def _single_images(samples: TrainSamples | EvaluationSamples) -> list[BatchPlan]:
    """Returns batches of one image each. Each call draws other images: those of a call before may be kept by now."""
    count = len(samples.source.labels)
    indices = np.random.default_rng().choice(count, min(MEASURED_IMAGES, count), replace=False)
    return [BatchPlan(0, 0, np.asarray([[index, 0, 0]])) for index in indices]


def _seconds_per_plan(samples: TrainSamples | EvaluationSamples, plans: Sequence[BatchPlan], seconds: float) -> float:
    """Returns the mean duration of the first batches, at least one, within a time."""
    start, made = time.perf_counter(), 0
    for plan in plans:
        samples.batch(plan)
        made += 1
        if time.perf_counter() - start > seconds:
            break
    return (time.perf_counter() - start) / made


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
