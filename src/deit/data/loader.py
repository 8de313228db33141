"""Samples -> batches, on several cores. The number of workers changes the speed and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit.data.sampler import BatchPlan
from deit.data.sources import ImageSource, open_encoded
from deit.data.transforms.augment import TrainTransform
from deit.data.transforms.crops import reduced_box
from deit.data.transforms.mixing import Mixing, draw, mix_images, soft_targets
from deit.errors import DeiTError, ImageError
from deit.images.decoding import configure_pillow
from deit.images.processor import DeiTImageProcessor
from deit.rng import RngStream, generator
from deit.system.hardware import cores

MAX_WORKERS = 8


class TeacherTargets(Protocol):
    """Cached teacher logits that a training batch carries."""

    def read(self, plan: BatchPlan, kept: np.ndarray) -> Tensor:
        """Returns the targets of the samples of ``plan`` at the positions ``kept``: (B,) int64 or (B, K) float32.

        Raises:
            TeacherError: the cached logits belong to other images.
        """


@dataclass
class Batch:
    """What the model learns from or is tested on.

    Attributes:
        pixel_values: (B, 3, height, width), float32, normalized.
        labels: (B,), int64.
        targets: (B, K), float32, smoothed and mixed; equal to one-hot labels in evaluation.
        samples: (B, 3), int64: index in the data set, repeat, position in the global batch.
        skipped: how many unreadable images are missing from it.
        teacher_targets: (B,) int64 class indices or (B, K) float32 logits, from cached teacher logits; None without a cache.
    """

    pixel_values: Tensor
    labels: Tensor
    targets: Tensor
    samples: Tensor
    skipped: int = 0
    teacher_targets: Tensor | None = None

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
        self.teacher_targets = None if self.teacher_targets is None else self.teacher_targets.pin_memory()
        return self


@dataclass(frozen=True)
class TrainSamples:
    """Makes any training batch, or any sample of it alone, from integers.

    Attributes:
        seed: of the run.
        smoothing: of the labels.
        skip_unreadable: leave an unreadable image out of its batch, instead of an error.
        teacher_targets: cached teacher logits, read along with the samples; None without a cache.
    """

    source: ImageSource
    transform: TrainTransform
    mixing: Mixing
    seed: int
    smoothing: float = 0.0
    skip_unreadable: bool = False
    teacher_targets: TeacherTargets | None = None

    def sample(self, epoch: int, index: int, repeat: int = 0) -> np.ndarray:
        """One augmented image before mixing: (3, height, width), float32, a function of its arguments alone.

        Raises:
            ImageError: the image is unreadable.
        """
        values = np.empty((3, *self.transform.size), np.float32)
        self._write(epoch, index, [repeat], [values])
        return values

    def batch(self, plan: BatchPlan) -> Batch:
        """The mixed batch of a plan; empty where unreadable images are skipped and all of them are.

        Raises:
            ImageError: an unreadable image, unless they are skipped.
            TeacherError: the cached teacher logits belong to other images.
        """
        pixels, kept = self._pixels(plan)
        samples = plan.samples[kept]
        mix = draw(self.mixing, self.seed, plan.epoch, plan.samples, *self.transform.size).kept(kept)
        mix_images(pixels, mix)
        labels = torch.from_numpy(self.source.labels[samples[:, 0]])
        targets = soft_targets(labels, mix, len(self.source.classes), self.smoothing)
        skipped = len(plan.samples) - len(kept)
        teacher_targets = None if self.teacher_targets is None else self.teacher_targets.read(plan, kept)
        return Batch(pixels, labels, targets, torch.from_numpy(samples), skipped=skipped, teacher_targets=teacher_targets)

    def _pixels(self, plan: BatchPlan) -> tuple[Tensor, np.ndarray]:
        """The augmented images of a plan, each file decoded once, and the rows of the plan that they are."""
        pixels = np.empty((len(plan.samples), 3, *self.transform.size), np.float32)
        readable = np.ones(len(plan.samples), bool)
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(plan.samples[:, 0].tolist()):
            rows.setdefault(index, []).append(row)
        for index, places in rows.items():
            try:
                self._write(plan.epoch, index, plan.samples[places, 1].tolist(), [pixels[place] for place in places])
            except ImageError:
                if not self.skip_unreadable:
                    raise
                readable[places] = False
        return torch.from_numpy(pixels if readable.all() else pixels[readable]), np.flatnonzero(readable)

    def _write(self, epoch: int, index: int, repeats: Sequence[int], outputs: Sequence[np.ndarray]) -> None:
        """Makes some repeats of an image, which is decoded once.

        The crops of all repeats decide how much smaller it may be decoded, including those of other batches: otherwise the
        pixels of a sample would depend on how batches are cut.
        """
        transform = self.transform
        all_repeats = range(transform.settings.repeats)
        rngs = {repeat: generator(self.seed, RngStream.AUGMENT, epoch, index, repeat) for repeat in {*all_repeats, *repeats}}
        with open_encoded(self.source, index) as encoded:
            boxes = {repeat: transform.box(encoded.width, encoded.height, rng) for repeat, rng in rngs.items()}
            reduction = transform.reduction(boxes[repeat] for repeat in all_repeats)
            image = encoded.decode(reduction)
            if image.width == encoded.width:  # not a JPEG
                reduction = 1
        pixels = np.asarray(image)
        for repeat, output in zip(repeats, outputs, strict=True):
            transform.write(pixels, reduced_box(boxes[repeat], reduction), rngs[repeat], output)


@dataclass(frozen=True)
class EvaluationSamples:
    """Makes evaluation batches: each image as the processor sees it, in the source's order."""

    source: ImageSource
    processor: DeiTImageProcessor
    skip_unreadable: bool = False

    def batch(self, plan: BatchPlan) -> Batch:
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
        values = torch.from_numpy(self.processor.normalize(pixels))
        return Batch(values, labels, targets, torch.from_numpy(samples), skipped=len(plan.samples) - len(kept))

    def plans(self, batch_size: int) -> list[BatchPlan]:
        """Every image once."""
        count = len(self.source.labels)
        samples = np.column_stack([np.arange(count), np.zeros(count, np.int64), np.arange(count)])
        return [
            BatchPlan(0, step, samples[start : start + batch_size]) for step, start in enumerate(range(0, count, batch_size))
        ]


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
            worker_init_fn=_start_worker if workers else None,
        )

    def run(self, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
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
    return min(max(cores() - 1, 1), MAX_WORKERS)


class _Batches(Dataset[Batch | DeiTError]):
    def __init__(self, samples: TrainSamples | EvaluationSamples) -> None:
        self._samples = samples

    def __getitem__(self, plan: BatchPlan) -> Batch | DeiTError:
        try:
            return self._samples.batch(plan)
        except DeiTError as error:  # handed over as it is: torch would put a worker's whole traceback into its message
            return error


class _Order(Sampler[BatchPlan]):
    """The plans of the epoch to come: the workers live on from epoch to epoch."""

    def __init__(self) -> None:
        self.plans: list[BatchPlan] = []

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


def _start_worker(_worker: int) -> None:
    configure_pillow()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles interrupts
