"""Decides whether decoded images are kept, and where.

Whether it pays is estimated from the headers of some images, not measured: samples made from kept images differ slightly from
others, and the same command makes the same samples on every machine. Where they are kept depends on the space that is free.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from deit.data.cache_request import CacheMode, CacheRequest
from deit.data.image_cache import TRAINING, ImageCache, decoding_settings, finest_reduction
from deit.data.image_hashes import content_hashes
from deit.data.image_store import ImageStore
from deit.data.sources import ImageSource, encoded_file, open_encoded
from deit.data.splits import Splits
from deit.data.transforms.augment import TrainTransform
from deit.errors import ImageError
from deit.images.pyramid import PyramidShape
from deit.system.hardware import available_memory
from deit.system.home import cache_directory
from deit.system.private_directory import PrivateDirectory

GB, MB = 10**9, 10**6
FOLDER = "images"

SAMPLED_IMAGES = 64  # whose headers are read
MIN_SPEEDUP = 1.5  # of making a sample, for which images are kept
FREE_SHARE = 0.5  # of the free space that is used at most
# Seconds of one core, as `python -m benchmarks.data` measures them on an AMD EPYC.
SAMPLE_SECONDS, SAMPLE_PIXEL_SECONDS = 4e-4, 4e-8  # of everything but decoding, and per pixel of the output
JPEG_PIXEL_SECONDS = 2e-9  # of decoding at a reduced size, per pixel of the file
OTHER_PIXEL_SECONDS = 15e-9  # of WebP and PNG


@dataclass(frozen=True)
class CacheChoice:
    """What was decided.

    Attributes:
        splits: the splits, with their caches.
        mode: where images are kept: ``memory``, ``disk`` or ``off``.
        reduces: whether training samples are made from pyramids.
        notes: what the user should know.
    """

    splits: Splits
    mode: CacheMode
    reduces: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """Estimated costs of a training set.

    Attributes:
        decoding: seconds per sample for decoding.
        sample: seconds per sample for all else.
        nbytes: bytes of the kept training images.
    """

    decoding: float
    sample: float
    nbytes: int

    @property
    def speedup(self) -> float:
        """How many times as fast samples are made if no image is decoded."""
        return 1 + self.decoding / self.sample

    @property
    def share(self) -> float:
        """Fraction of the time of a sample that decoding takes."""
        return self.decoding / (self.decoding + self.sample)


def choose_cache(splits: Splits, request: CacheRequest, transform: TrainTransform) -> CacheChoice:
    """Decides whether and where to keep decoded images, makes room for them, and hashes the files of the images.

    Args:
        splits: the readable images.
        request: what the run asks for.
        transform: of the training samples.

    Raises:
        UserError: the request is invalid.
    """
    request.check()
    if request.mode == "off" or not _is_encoded(splits.train):
        return _without_store(splits, request)
    estimate = estimate_costs(splits.train, transform)
    is_undecided = request.mode == "auto" and request.reduces is None
    if (is_undecided and estimate.speedup < MIN_SPEEDUP) or (request.mode == "auto" and request.reduces is False):
        return _without_store(splits, request)
    needed = 3 * math.prod(transform.size) * len(splits.validation.labels)
    if request.reduces is not False:
        needed += estimate.nbytes
    mode, store, problems = _find_store(request, needed)
    if store is None:
        return _without_store(splits, request, f"Decoded images, {_size(needed)}, are not kept: {'; '.join(problems)}")
    return _with_store(splits, request, mode, store, needed, estimate)


def _find_store(request: CacheRequest, needed: int) -> tuple[CacheMode, ImageStore | None, list[str]]:
    """Returns the first store that can be used, and why others cannot."""
    is_automatic = request.mode == "auto"
    modes: tuple[CacheMode, ...] = ("disk", "memory") if is_automatic else (request.mode,)
    problems = []
    for mode in modes:
        place = "memory" if mode == "memory" else "the user's cache"
        try:
            store = _open_store(mode, request.limit)
        except OSError as error:
            problems.append(f"{place} cannot be written to ({error.strerror})")
            continue
        if needed <= store.capacity or not is_automatic:
            return mode, store, problems
        problems.append(f"{place} has space for {_size(store.capacity)}")
    return "off", None, problems


def estimate_costs(source: ImageSource, transform: TrainTransform) -> Estimate:
    """Estimates the costs of a training set from the headers of evenly spaced images."""
    count = len(source.labels)
    seconds, sizes = [], []
    for index in np.unique(np.linspace(0, count - 1, min(SAMPLED_IMAGES, count)).astype(int)).tolist():
        with suppress(ImageError), open_encoded(source, index) as image:
            pixels = image.width * image.height
            is_jpeg = len(image.reductions) > 1
            seconds.append((JPEG_PIXEL_SECONDS if is_jpeg else OTHER_PIXEL_SECONDS) * pixels)
            base = finest_reduction(transform.smallest_scale, image.width, image.height)
            sizes.append(PyramidShape.of(image.width, image.height, base, 1).nbytes)
    if not sizes:
        return Estimate(0.0, 1.0, 0)
    sample = SAMPLE_SECONDS + SAMPLE_PIXEL_SECONDS * math.prod(transform.size)
    return Estimate(float(np.mean(seconds)) / transform.settings.repeats, sample, int(np.mean(sizes) * count))


def disk_store(limit: float) -> ImageStore:
    """Returns the store in the user's cache.

    Raises:
        OSError: it cannot be written to.
    """
    directory = cache_directory() / FOLDER
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
    used = sum(file.size for file in ImageStore(directory, 0).files())
    return ImageStore(directory, _capacity(limit, shutil.disk_usage(directory).free + used))


def _open_store(mode: CacheMode, limit: float) -> ImageStore:
    if mode == "disk":
        return disk_store(limit)
    directory = PrivateDirectory("deit-images")
    free = min(shutil.disk_usage(directory.path).free, available_memory())
    return ImageStore(directory.path, _capacity(limit, free), owner=directory)


def _capacity(limit: float, free: int) -> int:
    return int(min(limit * GB, FREE_SHARE * free))


def _with_store(
    splits: Splits, request: CacheRequest, mode: CacheMode, store: ImageStore, needed: int, estimate: Estimate
) -> CacheChoice:
    reduces = request.reduces is not False
    decoding = decoding_settings(splits.value_range)
    train, validation = (
        ImageCache(content_hashes(source), decoding, store, reduces) for source in (splits.train, splits.validation)
    )
    names = {train.name(index, TRAINING) for index in range(len(train.keys))}
    present = sum(file.size for file in store.files() if file.name in names)
    store.make_room(max(needed - present, 0), names)
    where = "in memory" if mode == "memory" else f"in {store.directory}"
    notes = [f"Decoded images are kept {where}, {_size(needed)}: decoding takes {estimate.share:.0%} of the time of a sample"]
    if not reduces:
        notes = [f"The run began without a cache, so that only validation images are kept {where}"]
    elif needed > store.capacity:
        notes.append(f"There is space for {_size(store.capacity)} of them; the other images are decoded in each epoch")
    return CacheChoice(replace(splits, train_cache=train, validation_cache=validation), mode, reduces, tuple(notes))


def _without_store(splits: Splits, request: CacheRequest, *notes: str) -> CacheChoice:
    """Keeps nothing. Samples are still made from pyramids if that was decided before."""
    if not request.reduces:
        return CacheChoice(splits, "off", False, notes)
    keys = np.zeros(len(splits.train.labels), np.uint64)
    cache = ImageCache(keys, decoding_settings(splits.value_range), None, True)
    return CacheChoice(replace(splits, train_cache=cache), "off", True, notes)


def _size(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / MB:.1f} MB"


def _is_encoded(source: ImageSource) -> bool:
    """Whether the images of a source are files, and not in memory already."""
    indices: Iterable[int] = range(min(len(source.labels), 1))
    try:
        return any(encoded_file(source, index) is not None for index in indices)
    except ImageError:
        return True
