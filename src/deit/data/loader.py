"""Samples -> batches, on several cores. The number of workers changes the speed and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit.data.augment import TrainTransform
from deit.data.mixing import MixDraw, Mixing, draw, mix_images, soft_targets
from deit.data.order import Plan
from deit.data.sources import ImageSource
from deit.distillation.answers import StoredAnswers
from deit.draws import Stream, generator
from deit.errors import DeiTError, ImageError
from deit.image_processor import DeiTImageProcessor

MAX_WORKERS = 8


@dataclass
class Batch:
    """What the model learns from or is tested on.

    Attributes:
        pixel_values: (B, 3, height, width), float32, normalised.
        labels: (B,), int64.
        targets: (B, K), float32, smoothed and mixed; equal to one-hot labels in evaluation.
        samples: (B, 3), int64: index in the data set, repeat, position in the global batch.
        skipped: how many unreadable images are missing from it.
        answers: of a stored teacher, (B,) int64 labels or (B, K) float32 logits; None without one.
    """

    pixel_values: Tensor
    labels: Tensor
    targets: Tensor
    samples: Tensor
    skipped: int = 0
    answers: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The batch on a device; the copy does not wait where the memory is pinned."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if field.name != "samples" and isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """Called by the loader where a GPU waits for the batch."""
        self.pixel_values, self.targets = self.pixel_values.pin_memory(), self.targets.pin_memory()
        self.answers = None if self.answers is None else self.answers.pin_memory()
        return self


@dataclass(frozen=True)
class TrainSamples:
    """Makes any training batch, or any sample of it alone, from integers.

    Attributes:
        seed: of the run.
        smoothing: of the labels.
        skip_unreadable: leave an unreadable image out of its batch, instead of an error.
        answers: of a stored teacher, which go with the samples.
    """

    source: ImageSource
    transform: TrainTransform
    mixing: Mixing
    seed: int
    smoothing: float = 0.0
    skip_unreadable: bool = False
    answers: StoredAnswers | None = None

    def sample(self, epoch: int, index: int, repeat: int = 0) -> np.ndarray:
        """One augmented image before mixing: (3, height, width), float32, a function of its arguments alone."""
        return self.transform(self.source.load(index), generator(self.seed, Stream.AUGMENT, epoch, index, repeat))

    def batch(self, plan: Plan) -> Batch:
        """The mixed batch of a plan; empty where unreadable images are skipped and all of them are.

        Raises:
            ImageError: an unreadable image, unless they are skipped.
            TeacherError: the stored teacher's answers belong to other images.
        """
        images: dict[int, np.ndarray] = {}
        for position, (index, repeat, _) in enumerate(plan.samples.tolist()):
            try:
                images[position] = self.sample(plan.epoch, index, repeat)
            except ImageError:
                if not self.skip_unreadable:
                    raise
        kept = np.asarray(list(images), np.int64)
        mix = draw(self.mixing, self.seed, plan.epoch, plan.samples, *self.transform.size)
        # A pair that lost one of its two is not mixed.
        place = {position: rank for rank, position in enumerate(images)}
        partner = [place.get(int(mix.partner[position]), place[position]) for position in kept]
        mix = MixDraw(np.asarray(partner, np.int64), mix.weight[kept], mix.box[kept])
        pixels = np.stack(list(images.values())) if images else np.zeros((0, 3, *self.transform.size), np.float32)
        labels = torch.from_numpy(self.source.labels[plan.samples[kept, 0]])
        return Batch(
            mix_images(torch.from_numpy(pixels), mix),
            labels,
            soft_targets(labels, mix, len(self.source.classes), self.smoothing),
            torch.from_numpy(plan.samples[kept]),
            skipped=len(plan.samples) - len(kept),
            answers=None if self.answers is None else self.answers.read(plan, kept),
        )


@dataclass(frozen=True)
class EvaluationSamples:
    """Makes evaluation batches: each image as the processor sees it, in the source's order."""

    source: ImageSource
    processor: DeiTImageProcessor
    skip_unreadable: bool = False

    def batch(self, plan: Plan) -> Batch:
        """As :meth:`TrainSamples.batch`, without augmentation and mixing."""
        pixels, kept = [], []
        for position, index in enumerate(plan.samples[:, 0].tolist()):
            try:
                pixels.append(self.processor.pixels(self.source.load(index)))
                kept.append(position)
            except ImageError:
                if not self.skip_unreadable:
                    raise
        samples = plan.samples[kept]
        labels = torch.from_numpy(self.source.labels[samples[:, 0]])
        targets = torch.nn.functional.one_hot(labels, len(self.source.classes)).float()
        values = torch.from_numpy(self.processor.normalise(pixels))
        return Batch(values, labels, targets, torch.from_numpy(samples), skipped=len(plan.samples) - len(kept))

    def plans(self, batch_size: int) -> list[Plan]:
        """Every image once."""
        count = len(self.source.labels)
        samples = np.column_stack([np.arange(count), np.zeros(count, np.int64), np.arange(count)])
        return [Plan(0, step, samples[start : start + batch_size]) for step, start in enumerate(range(0, count, batch_size))]


class Loader:
    """Batches of plans, made ahead on worker processes.

    Args:
        samples: what makes a batch of a plan.
        workers: processes; 0 makes batches here, None chooses by the cores.
        pin: put batches into memory that a GPU reads fast.

    Example:
        for batch in loader.run(plans): ...
    """

    def __init__(self, samples: TrainSamples | EvaluationSamples, workers: int | None = None, pin: bool = False) -> None:
        workers = default_workers() if workers is None else workers
        self._order = _Order()
        self._loader = DataLoader(
            _Batches(samples),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
            worker_init_fn=_leave_interrupts_to_the_main_process if workers else None,
        )

    def run(self, plans: Sequence[Plan]) -> Iterator[Batch]:
        """One batch for each plan, in their order.

        Raises:
            DeiTError: whatever :meth:`TrainSamples.batch` raises, in its own words.
        """
        self._order.plans = list(plans)
        for batch in self._loader:
            if isinstance(batch, DeiTError):
                try:
                    raise batch
                finally:
                    del batch  # the error and this frame would hold each other, and the workers would not be let go
            yield batch


def default_workers() -> int:
    """One process for every core but the one that trains, within bounds."""
    return min(max(available_cores() - 1, 1), MAX_WORKERS)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Batches(Dataset[Batch | DeiTError]):
    def __init__(self, samples: TrainSamples | EvaluationSamples) -> None:
        self._samples = samples

    def __getitem__(self, plan: Plan) -> Batch | DeiTError:
        try:
            return self._samples.batch(plan)
        except DeiTError as error:  # handed over as it is: torch would put a worker's whole traceback into its message
            return error


class _Order(Sampler[Plan]):
    """The plans of the epoch to come: the workers live on from epoch to epoch."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def __iter__(self) -> Iterator[Plan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


def _leave_interrupts_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
