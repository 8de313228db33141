"""Real images for an export: to find int8's ranges on, and to compare answers on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from deit.data.opening import open_unlabeled, title
from deit.data.sources import UNLABELED, ImageSource
from deit.data.splits import VALIDATION_FRACTION, DataRecord
from deit.errors import DataError, ImageError
from deit.system.threads import thread_map

FEWEST = 8  # with fewer, neither ranges nor agreement mean anything
CUTS = 500
CUT_SIDES = (120, 420)


@dataclass(frozen=True)
class RealImages:
    """Some images, and what to call them in a report."""

    source: ImageSource
    description: str

    def pixels(self, prepare: Callable[[Image.Image], np.ndarray], count: int) -> np.ndarray:
        """As many of the images as there are, at most ``count``, evenly spread, as a model takes them: (n, C, height, width).

        Raises:
            DataError: too few of them are readable.
        """
        total = len(self.source.labels)
        places = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()

        def one(place: int) -> np.ndarray | None:
            try:
                return prepare(self.source.load(place))
            except ImageError:
                return None

        readable = [image for image in thread_map(one, places) if image is not None]
        if len(readable) < FEWEST:
            raise DataError(f"Of {self.description} {len(readable)} are readable", f"pass a data set with {FEWEST} or more")
        return np.stack(readable)


def real_images(data: str | Path | None, record: DataRecord | None) -> tuple[RealImages, RealImages]:
    """The training part of a data set, and what is set aside from it; cut-outs of two photographs where there is none.

    Args:
        data: with labels or without, as :func:`deit.data.opening.open_unlabeled` takes it.
        record: of the data that the model was trained on, where that is known: then it is cut as it was for training.

    Raises:
        DataError: no usable data.
    """
    if data is None:
        photographs = RealImages(CutOuts(), "cut-outs of scikit-learn's two photographs")
        return photographs, photographs
    seed, fraction = (record.split_seed, record.validation_fraction) if record else (0, VALIDATION_FRACTION)
    splits = open_unlabeled(data, seed, fraction)
    name = title(data)
    return RealImages(splits.train, f"images of {name}"), RealImages(splits.validation, f"images of {name}, set aside")


class CutOuts:
    """Squares of many sizes from all over two photographs that come with a library we have."""

    classes = UNLABELED
    labels = np.zeros(CUTS, np.int64)

    @cached_property
    def _photographs(self) -> list[np.ndarray]:
        from sklearn.datasets import load_sample_images

        return list(load_sample_images().images)

    def load(self, index: int) -> Image.Image:
        """The same square each time."""
        rng = np.random.default_rng(index)
        photograph = self._photographs[index % 2]
        side = int(rng.integers(*CUT_SIDES))
        top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        return Image.fromarray(photograph[top : top + side, left : left + side])

    def name(self, index: int) -> str:
        """For an error."""
        return f"cut-out {index}"
