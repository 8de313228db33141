"""Loads samples and batches in worker processes, whose number changes only the speed."""

from __future__ import annotations

import atexit
import math
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit.data.image_cache import ImageCache
from deit.data.sampler import BatchPlan
from deit.data.sources import ImageSource, open_encoded
from deit.data.transforms.augment import TrainTransform
from deit.data.transforms.crops import reduced_box
from deit.data.transforms.mixing import Mixing, draw, mix_images, soft_targets
from deit.data.value_range import with_value_range
from deit.data.workers import Parcel, WorkerPlan, plan_workers, print_note_once, worker_error
from deit.errors import ConfigError, DeiTError, ImageError, LoadingError
from deit.images.decoding import configure_pillow, reduction_of
from deit.images.processor import DeiTImageProcessor
from deit.rng import RngStream, generator
from deit.system.hardware import cores
from deit.system.processes import end_with_parent, hidden_main_module, hide_closed_connections, worker_context
from deit.system.signals import blocked_signals, check_stop, ignore_stop_signals
from deit.system.torchrun import local_world_size

MAX_WORKERS = 8
FLOAT_BYTES = 4
MEASURED_IMAGES = 8
_SIGCHLD = getattr(signal, "SIGCHLD", None)  # not on Windows
_running: weakref.WeakSet[Loader] = weakref.WeakSet()  # loaders that have worker processes


class TeacherTargets(Protocol):
    """Cached teacher logits and feature maps that a training batch carries.

    Attributes:
        feature_bytes: bytes per sample of the feature maps; 0 if there are none.
    """

    @property
    def feature_bytes(self) -> int: ...

    def read(self, plan: BatchPlan, kept: np.ndarray) -> Tensor:
        """Returns the targets of the samples of ``plan`` at the positions ``kept``: (B,) int64 or (B, K) float32.

        Raises:
            TeacherError: the cached logits belong to other images.
        """

    def read_features(self, plan: BatchPlan, kept: np.ndarray) -> Tensor | None:
        """Returns the encoded feature maps of the same samples, (B, feature_bytes) int8; None if there are none.

        Raises:
            TeacherError: the cache is damaged.
        """

    def for_measuring(self) -> TeacherTargets:
        """Returns targets that are valid for any images, whichever of them are readable, to measure the speed of training."""


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
        teacher_features: (B, n) int8, encoded feature maps of a cached teacher; None without.
    """

    pixel_values: Tensor
    labels: Tensor
    targets: Tensor
    samples: Tensor
    skipped: int = 0
    teacher_targets: Tensor | None = None
    teacher_features: Tensor | None = None

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
        self.teacher_features = None if self.teacher_features is None else self.teacher_features.pin_memory()
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
        teacher_targets: cached teacher logits and feature maps, read along with the samples; None without a cache.
        cache: decoded images; None decodes every image anew.
    """

    source: ImageSource
    transform: TrainTransform
    mixing: Mixing
    seed: int
    smoothing: float = 0.0
    skip_unreadable: bool = False
    teacher_targets: TeacherTargets | None = None
    cache: ImageCache | None = None

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
        batch = Batch(pixels, labels, targets, torch.from_numpy(samples), skipped=skipped)
        if self.teacher_targets is not None:
            batch.teacher_targets = self.teacher_targets.read(plan, kept)
            batch.teacher_features = self.teacher_targets.read_features(plan, kept)
        return batch

    def for_measuring(self) -> TrainSamples:
        """Returns samples to measure the speed of loading with: of a few images that are in the cache already.

        Decoding every image once is not measured; it takes place in the first epoch.
        """
        if self.cache is None or not self.cache.reduces or self.cache.store is None:
            return self
        cache = self.cache.for_measuring(MEASURED_IMAGES)
        for index in range(len(cache.measured)):
            with suppress(ImageError), cache.open(self.source, index, self.transform.smallest_scale):
                pass
        targets = None if self.teacher_targets is None else self.teacher_targets.for_measuring()
        return replace(self, cache=cache, teacher_targets=targets)

    def batch_bytes(self, size: int) -> int:
        """Returns the bytes of the tensors of a batch of ``size`` samples."""
        heads = 1 if self.teacher_targets is None else 2
        feature_bytes = 0 if self.teacher_targets is None else self.teacher_targets.feature_bytes
        values = 3 * math.prod(self.transform.size) + heads * len(self.source.classes)
        return size * (FLOAT_BYTES * values + feature_bytes)

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
        if self.cache is not None and self.cache.reduces:
            self._write_cached(self.cache, epoch, index, repeats, outputs)
            return
        transform = self.transform
        all_repeats = range(transform.settings.repeats)
        rngs = {repeat: generator(self.seed, RngStream.AUGMENT, epoch, index, repeat) for repeat in {*all_repeats, *repeats}}
        with open_encoded(self.source, index) as encoded:
            boxes = {repeat: transform.box(encoded.width, encoded.height, rng) for repeat, rng in rngs.items()}
            image = encoded.decode(transform.reduction(boxes[repeat] for repeat in all_repeats))
            reduction = reduction_of(encoded, image)
        pixels = np.asarray(image)
        for repeat, output in zip(repeats, outputs, strict=True):
            transform.write(
                pixels, reduced_box(boxes[repeat], reduction), rngs[repeat], output, (encoded.height, encoded.width)
            )

    def _write_cached(
        self, cache: ImageCache, epoch: int, index: int, repeats: Sequence[int], outputs: Sequence[np.ndarray]
    ) -> None:
        """Writes some repeats of an image that is kept at several sizes. Each is cropped from the size that it needs."""
        transform = self.transform
        with cache.open(self.source, index, transform.smallest_scale) as image:
            for repeat, output in zip(repeats, outputs, strict=True):
                rng = generator(self.seed, RngStream.AUGMENT, epoch, index, repeat)
                box = transform.box(image.width, image.height, rng)
                pixels, box_in_pixels = image.crop(box, *transform.size)
                transform.write(pixels, box_in_pixels, rng, output, (image.height, image.width))


@dataclass(frozen=True)
class EvaluationSamples:
    """Makes evaluation batches: every image once, preprocessed by the image processor, in the order of the source.

    Attributes:
        source: the images.
        processor: preprocessing of the model.
        skip_unreadable: leave unreadable images out of their batch, instead of raising an error.
        cache: preprocessed images; None preprocesses every image anew.
    """

    source: ImageSource
    processor: DeiTImageProcessor
    skip_unreadable: bool = False
    cache: ImageCache | None = None

    def __post_init__(self) -> None:
        # Images of more than 8 bits are converted as in the training of the model.
        object.__setattr__(self, "source", with_value_range(self.source, self.processor.file_range))

    def batch(self, plan: BatchPlan) -> Batch:
        """Returns the batch of a plan, without augmentation and mixing; empty if all its images are skipped.

        Raises:
            ImageError: an image is unreadable, unless ``skip_unreadable``.
        """
        pixels, kept = [], []
        for position, index in enumerate(plan.samples[:, 0].tolist()):
            try:
                pixels.append(self._pixels(index))
                kept.append(position)
            except ImageError:
                if not self.skip_unreadable:
                    raise
        samples = plan.samples[kept]
        labels = torch.from_numpy(self.source.labels[samples[:, 0]])
        targets = torch.nn.functional.one_hot(labels, len(self.source.classes)).float()
        values = torch.from_numpy(self.processor.normalize(pixels))
        return Batch(values, labels, targets, torch.from_numpy(samples), skipped=len(plan.samples) - len(kept))

    def _pixels(self, index: int) -> np.ndarray:
        def load() -> np.ndarray:
            return self.processor.pixels(self.source.load(index))

        return load() if self.cache is None else self.cache.pixels(index, self._processor_settings, load)

    @cached_property
    def _processor_settings(self) -> str:
        return self.processor.to_json_string()

    def batch_bytes(self, size: int) -> int:
        """Returns the bytes of the tensors of a batch of ``size`` images; 0 if the images decide their size."""
        try:
            pixels = math.prod(self.processor.input_hw)
        except ConfigError:
            return 0
        return size * FLOAT_BYTES * (3 * pixels + len(self.source.classes))

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
        workers: worker processes; 0 loads in the main process, None chooses by the number of cores. Fewer are used where
            shared memory or the program does not allow for them, which is said.
        pin: pin the memory of batches, for a GPU.

    Example:
        for batch in loader.run(plans): ...
    """

    def __init__(self, samples: TrainSamples | EvaluationSamples, workers: int | None = None, pin: bool = False) -> None:
        self._samples = samples
        self._requested = default_workers() if workers is None else workers
        self._pin = pin
        self._sampler = _PlanSampler()
        self._loader: DataLoader[Batch | DeiTError] | None = None
        self._hides_main = False

    def run(self, plans: Sequence[BatchPlan], interruptible: bool = False) -> Iterator[Batch]:
        """Yields the batch of every plan, in order.

        Args:
            plans: the batches to make.
            interruptible: stop before the next batch if a signal requests it (:func:`deit.system.signals.stop_on_signals`).

        Raises:
            DeiTError: an error of :meth:`TrainSamples.batch` in a worker process, unchanged.
            LoadingError: memory ran out, or a worker process failed.
            InterruptedWorkError: a signal was received, and ``interruptible``.
        """
        if not plans:
            return
        self._sampler.plans = list(plans)
        batches = self._start(max(len(plan.samples) for plan in plans))
        while (batch := self._next(batches)) is not None:
            if interruptible:
                check_stop()
            if isinstance(batch, MemoryError):
                raise LoadingError("Memory ran out while images were loaded", "pass a smaller batch size or fewer --workers")
            if isinstance(batch, Exception):
                try:
                    raise batch
                finally:
                    del batch  # breaks the reference cycle of error and frame, which would keep the worker processes alive
            yield batch

    def close(self) -> None:
        """Ends the worker processes. They also end with the loader and with the main process."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            if any(process.exitcode for process in iterator._workers):
                self._end_after_failure(iterator)
            iterator._shutdown_workers()
            for process in iterator._workers:
                if process.is_alive():  # it ignores the signal that torch has sent
                    process.kill()
        self._loader = None

    @staticmethod
    def _end_after_failure(iterator: Any) -> None:
        """Ends the workers that are left. One that was killed may have held the lock of the event by which torch asks the
        others to end, and torch would wait for that lock forever.
        """
        for process in iterator._workers:
            process.kill()
            process.join()
        iterator._workers_done_event = worker_context().Event()

    def _start(self, batch_size: int) -> Iterator[Batch | Exception]:
        """Starts an epoch, and the worker processes before the first."""
        if self._loader is None:
            plan = plan_workers(self._requested, self._samples.batch_bytes(batch_size), self._samples)
            self._loader, self._hides_main = self._data_loader(plan), plan.hides_main
            if plan.note:
                print_note_once(plan.note)
        try:
            return self._iterate(self._loader)
        except OSError as error:
            if getattr(self._loader, "_iterator", None) is not None:
                raise
            print_note_once(f"Images are loaded in the main process, since worker processes cannot start: {error.strerror}")
            self._loader = self._data_loader(WorkerPlan(0))
            return self._iterate(self._loader)

    def _data_loader(self, plan: WorkerPlan) -> DataLoader[Batch | DeiTError]:
        options: dict[str, Any] = {}
        if plan.workers:
            options = {
                "num_workers": plan.workers,
                "persistent_workers": True,
                "prefetch_factor": plan.prefetch,
                "worker_init_fn": _start_worker,
                "multiprocessing_context": worker_context(),
            }
            _running.add(self)
        dataset = _BatchDataset(self._samples, shared=plan.shared if plan.workers else None)
        return DataLoader(dataset, batch_size=None, sampler=self._sampler, pin_memory=self._pin, **options)

    def _iterate(self, loader: DataLoader[Batch | DeiTError]) -> Iterator[Batch | Exception]:
        """Calls ``iter`` on the data loader. Without its handler of SIGCHLD, a dead worker is found between two batches, where
        the state of training can be saved, and not wherever the main process is.
        """
        handler = signal.getsignal(_SIGCHLD) if _SIGCHLD is not None else None
        try:
            with blocked_signals(), hidden_main_module() if self._hides_main else nullcontext():
                iterator: Iterator[Batch | Exception] = iter(loader)
        except RuntimeError as error:
            raise self._failure(error) from error
        finally:
            if _SIGCHLD is not None and handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(_SIGCHLD, handler)
        return iterator

    def _next(self, batches: Iterator[Batch | Exception]) -> Batch | Exception | None:
        try:
            return next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:  # the last two if a worker dies while it hands over a tensor
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Exception:
        """Returns the error of the user for one of torch's data loader, and ends the workers that are left."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is None or (isinstance(error, RuntimeError) and "worker" not in str(error)):
            return error
        failure = worker_error(iterator._workers, error)
        self.close()
        return failure


def default_workers() -> int:
    """Returns one worker process per core except for one, which trains: at least 1, at most ``MAX_WORKERS``.

    The processes that torchrun has started on this machine share its cores.
    """
    return min(max(cores() // local_world_size() - 1, 1), MAX_WORKERS)


class _BatchDataset(Dataset[Any]):
    """Makes batches, and hands them to the main process.

    Args:
        samples: makes a batch from a plan.
        shared: pass large tensors through shared memory; None in the main process.
    """

    def __init__(self, samples: TrainSamples | EvaluationSamples, shared: bool | None) -> None:
        self._samples, self._shared = samples, shared

    def __getitem__(self, plan: BatchPlan) -> Batch | Parcel | Exception:
        try:
            batch = self._samples.batch(plan)
            return batch if self._shared is None else Parcel(batch, self._shared)
        except (DeiTError, OSError, MemoryError) as error:
            return error  # torch would put the worker's traceback into the message of an error that is raised


class _PlanSampler(Sampler[BatchPlan]):
    """The plans of the next epoch. Worker processes persist, so the plans are replaced, not the loader."""

    def __init__(self) -> None:
        self.plans: list[BatchPlan] = []

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


def _start_worker(_worker: int) -> None:
    end_with_parent()
    hide_closed_connections()
    configure_pillow()
    ignore_stop_signals()  # the main process saves the work, and its end is theirs
    if hasattr(signal, "SIGBUS"):
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler prints; the main process reports the signal


@atexit.register
def _close_loaders() -> None:
    """Ends worker processes before :mod:`multiprocessing` waits for them at the exit of the program."""
    for loader in list(_running):
        loader.close()
