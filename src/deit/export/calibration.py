"""Real images for an export: to calibrate int8 on, and to compare predictions on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from deit.data.image_hashes import ImageHashes, content_hashes, leave_out_seen
from deit.data.opening import open_unlabeled, short_name
from deit.data.sources import UNLABELED, ImageSource, select
from deit.data.splits import VALIDATION_FRACTION, DataRecord
from deit.data.value_range import with_value_range
from deit.errors import DataError, ImageError
from deit.images.conversion import ValueRange
from deit.system.progress import print_status
from deit.system.threads import thread_map

MIN_IMAGES = 8  # with fewer, neither activation ranges nor agreement are meaningful
MAX_HASHED = 2000
NUM_CROPS = 500
CROP_SIDES = (120, 420)  # pixels, smallest and largest


@dataclass(frozen=True)
class CalibrationImages:
    """Images, and how a report describes them."""

    source: ImageSource
    description: str

    def pixels(self, prepare: Callable[[Image.Image], np.ndarray], count: int) -> np.ndarray:
        """Returns evenly spaced images, prepared for a model; see :meth:`indexed_pixels`."""
        return self.indexed_pixels(prepare, count)[0]

    def indexed_pixels(self, prepare: Callable[[Image.Image], np.ndarray], count: int) -> tuple[np.ndarray, list[int]]:
        """Returns evenly spaced images, prepared for a model, and the index of each in the source.

        Args:
            prepare: turns an image into an array (C, height, width).
            count: maximum number of images.

        Returns:
            (n, C, height, width), and n indices.

        Raises:
            DataError: too few images are readable.
        """
        total = len(self.source.labels)
        indices = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()

        def load(index: int) -> np.ndarray | None:
            try:
                return prepare(self.source.load(index))
            except ImageError:
                return None

        images = zip(thread_map(load, indices), indices, strict=True)
        readable = [(image, index) for image, index in images if image is not None]
        if len(readable) < MIN_IMAGES:
            raise DataError(
                f"Too few images are readable: {len(readable)} {self.description}",
                f"pass a data set with at least {MIN_IMAGES}",
            )
        return np.stack([image for image, _ in readable]), [index for _, index in readable]


def calibration_images(
    data: str | Path | None,
    record: DataRecord | None,
    hashes: ImageHashes | None = None,
    value_range: ValueRange | None = None,
) -> tuple[CalibrationImages, CalibrationImages]:
    """Returns images to calibrate on and images to compare on: the train and validation splits of a data set.

    Args:
        data: a data set with labels or without, as :func:`deit.data.opening.open_unlabeled` takes it; None takes crops of two
            photographs for both.
        record: of the data that the model was trained on, if known: a data set without splits is then split as for training.
        hashes: of the images that the model was trained on, if known: it is not compared on them, unless there are no others.
        value_range: black and white of images with more than 8 bits, as the model was trained on them.

    Returns:
        The two. Both are the training split if the validation split has fewer than ``MIN_IMAGES`` images.

    Raises:
        DataError: the data set is unusable.
    """
    if data is None:
        crops = CalibrationImages(SampleCrops(), "crops of scikit-learn's two sample photographs")
        return crops, crops
    seed, fraction = (record.split_seed, record.validation_fraction) if record else (0, VALIDATION_FRACTION)
    splits = open_unlabeled(data, seed, fraction)
    for note in splits.all_notes:
        print_status(f"Note: {note}.")
    name = short_name(data)
    calibration = CalibrationImages(with_value_range(splits.train, value_range), f"images of {name}")
    if len(splits.validation.labels) < MIN_IMAGES:  # the held-out images of a small data set are too few to compare on
        return calibration, calibration
    return calibration, _held_out(with_value_range(splits.validation, value_range), hashes, name)


def _held_out(source: ImageSource, hashes: ImageHashes | None, name: str) -> CalibrationImages:
    """Returns the images that the model was not trained on; of a large data set, evenly spaced ones."""
    if hashes is None:
        return CalibrationImages(source, f"held-out images of {name}")
    some = select(source, np.unique(np.linspace(0, len(source.labels) - 1, MAX_HASHED).round().astype(int)))
    unseen, _ = leave_out_seen(some, content_hashes(some), hashes)
    if len(unseen.labels) < MIN_IMAGES:
        return CalibrationImages(source, f"images of {name}, which the model was trained on")
    return CalibrationImages(unseen, f"held-out images of {name}")


class SampleCrops:
    """Square crops of many sizes from scikit-learn's two sample photographs; an image source."""

    classes = UNLABELED
    labels = np.zeros(NUM_CROPS, np.int64)

    @cached_property
    def _photographs(self) -> list[np.ndarray]:
        from sklearn.datasets import load_sample_images

        return list(load_sample_images().images)

    def load(self, index: int) -> Image.Image:
        """Returns a crop, which depends on the index only."""
        rng = np.random.default_rng(index)
        photograph = self._photographs[index % 2]
        side = int(rng.integers(*CROP_SIDES))
        top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        return Image.fromarray(photograph[top : top + side, left : left + side])

    def name(self, index: int) -> str:
        """Returns the name of a crop for error messages."""
        return f"crop {index}"
