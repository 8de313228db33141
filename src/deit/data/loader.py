"""Loads samples and batches in worker processes, whose number changes only the speed."""

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
from deit.images.decoding import configure_pillow, reduction_of
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
    """A batch for training or evaluation.

    Attributes:
        pixel_values: (B, 3, height, width) float32, normalized.
        labels: (B,) int64.
        targets: (B, K) float32, smoothed and mixed labels; one-hot labels in evaluation.
        samples: (B, 3) int64: index in the data set, repeat, and position in the global batch.
        skipped: number of unreadable images that were left out.
        teacher_targets: (B,) int64 class indices or (B, K) float32 logits, from cached teacher logits; None without a cache.
    """

    pixel_values: Tensor
    labels: Tensor
    targets: Tensor
    samples: Tensor
    skipped: int = 0
    teacher_targets: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Returns the batch on a device. Copies from pinned memory are asynchronous."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if field.name != "samples" and isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """Pins the memory of the tensors that training copies to a GPU. Called by PyTorch's data loader."""
        self.pixel_values, self.targets = self.pixel_values.pin_memory(), self.targets.pin_memory()
        self.teacher_targets = None if self.teacher_targets is None else self.teacher_targets.pin_memory()
        return self


@dataclass(frozen=True)
class TrainSamples:
    """Makes training batches, and single samples of them, from integers.

    Attributes:
        source: the training images.
        transform: augmentation of single images.
        mixing: settings of mixup and cutmix.
        seed: seed of the run.
        smoothing: label smoothing, in 0..1.
        skip_unreadable: leave unreadable images out of their batch, instead of raising an error.
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
        """Returns an augmented image before mixing, a pure function of the arguments: (3, height, width) float32.

        Raises:
            ImageError: the image is unreadable.
        """
        values = np.empty((3, *self.transform.size), np.float32)
        self._write(epoch, index, [repeat], [values])
        return values

    def batch(self, plan: BatchPlan) -> Batch:
        """Returns the mixed batch of a plan; it is empty if all its images are unreadable and skipped.

        Raises:
            ImageError: an image is unreadable, unless ``skip_unreadable``.
            TeacherError: the cached teacher logits belong to other images.
        """
        pixels, kept = self._pixels(plan)
        samples = plan.samples[kept]
        mix = draw(self.mixing, self.seed, plan.epoch, plan.samples, *self.transform.size).select(kept)
        mix_images(pixels, mix)
        labels = torch.from_numpy(self.source.labels[samples[:, 0]])
        targets = soft_targets(labels, mix, len(self.source.classes), self.smoothing)
        skipped = len(plan.samples) - len(kept)
        teacher_targets = None if self.teacher_targets is None else self.teacher_targets.read(plan, kept)
        return Batch(pixels, labels, targets, torch.from_numpy(samples), skipped=skipped, teacher_targets=teacher_targets)

    def _pixels(self, plan: BatchPlan) -> tuple[Tensor, np.ndarray]:
        """Returns the augmented images of a plan and their rows in it. Every file is decoded once."""
        pixels = np.empty((len(plan.samples), 3, *self.transform.size), np.float32)
        readable = np.ones(len(plan.samples), bool)
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(plan.samples[:, 0].tolist()):
            rows.setdefault(index, []).append(row)
        for index, positions in rows.items():
            try:
                self._write(plan.epoch, index, plan.samples[positions, 1].tolist(), [pixels[row] for row in positions])
            except ImageError:
                if not self.skip_unreadable:
                    raise
                readable[positions] = False
        return torch.from_numpy(pixels if readable.all() else pixels[readable]), np.flatnonzero(readable)

    def _write(self, epoch: int, index: int, repeats: Sequence[int], outputs: Sequence[np.ndarray]) -> None:
        """Writes some repeats of an image, which is decoded once.

        The JPEG reduction follows from the crops of all repeats, including those of other batches: otherwise the pixels of a
        sample would depend on how batches are cut.
        """
        transform = self.transform
        all_repeats = range(transform.settings.repeats)
        rngs = {repeat: generator(self.seed, RngStream.AUGMENT, epoch, index, repeat) for repeat in {*all_repeats, *repeats}}
        with open_encoded(self.source, index) as encoded:
            boxes = {repeat: transform.box(encoded.width, encoded.height, rng) for repeat, rng in rngs.items()}
            image = encoded.decode(transform.reduction(boxes[repeat] for repeat in all_repeats))
            reduction = reduction_of(encoded, image)
        pixels = np.asarray(image)
        for repeat, output in zip(repeats, outputs, strict=True):
            transform.write(pixels, reduced_box(boxes[repeat], reduction), rngs[repeat], output)


@dataclass(frozen=True)
class EvaluationSamples:
    """Makes evaluation batches: every image once, preprocessed by the image processor, in the order of the source.

    Attributes:
        source: the images.
        processor: preprocessing of the model.
        skip_unreadable: leave unreadable images out of their batch, instead of raising an error.
    """

    source: ImageSource
    processor: DeiTImageProcessor
    skip_unreadable: bool = False

    def batch(self, plan: BatchPlan) -> Batch:
        """Returns the batch of a plan, without augmentation and mixing; empty if all its images are skipped.

        Raises:
            ImageError: an image is unreadable, unless ``skip_unreadable``.
        """
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
        """Returns batches of every image once."""
        count = len(self.source.labels)
        samples = np.column_stack([np.arange(count), np.zeros(count, np.int64), np.arange(count)])
        return [
            BatchPlan(0, step, samples[start : start + batch_size]) for step, start in enumerate(range(0, count, batch_size))
        ]


class Loader:
    """Data loader: makes the batches of plans ahead of time in worker processes, which persist over epochs.

    Args:
        samples: makes a batch from a plan.
        workers: worker processes; 0 loads in the main process, None chooses by the number of cores.
        pin: pin the memory of batches, for a GPU.

    Example:
        for batch in loader.run(plans): ...
    """

    def __init__(self, samples: TrainSamples | EvaluationSamples, workers: int | None = None, pin: bool = False) -> None:
        workers = default_workers() if workers is None else workers
        self._sampler = _PlanSampler()
        self._loader = DataLoader(
            _BatchDataset(samples),
            batch_size=None,
            sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
            worker_init_fn=_start_worker if workers else None,
        )

    def run(self, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """Yields the batch of every plan, in order.

        Raises:
            DeiTError: an error of :meth:`TrainSamples.batch` in a worker process, unchanged.
        """
        self._sampler.plans = list(plans)
        for batch in self._loader:
            if isinstance(batch, DeiTError):
                try:
                    raise batch
                finally:
                    del batch  # breaks the reference cycle of error and frame, which would keep the worker processes alive
            yield batch


def default_workers() -> int:
    """Returns one worker process per core except for one, which trains: at least 1, at most ``MAX_WORKERS``."""
    return min(max(cores() - 1, 1), MAX_WORKERS)


class _BatchDataset(Dataset[Batch | DeiTError]):
    def __init__(self, samples: TrainSamples | EvaluationSamples) -> None:
        self._samples = samples

    def __getitem__(self, plan: BatchPlan) -> Batch | DeiTError:
        try:
            return self._samples.batch(plan)
        except DeiTError as error:  # returned, since torch would put the worker's traceback into the message of a raised one
            return error


class _PlanSampler(Sampler[BatchPlan]):
    """The plans of the next epoch. Worker processes persist, so the plans are replaced, not the loader."""

    def __init__(self) -> None:
        self.plans: list[BatchPlan] = []

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


def _start_worker(_worker: int) -> None:
    configure_pillow()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles interrupts
