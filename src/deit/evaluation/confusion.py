"""Confusion matrix as a list of its cells that are not zero, of which there are at most as many as images.

Of a thousand classes, the matrix has a million cells; of the 21,841 classes of ImageNet-21k, 477 million.

Shapes: n images, K classes, m cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MAX_STORED_CELLS = 100_000  # in JSON, about 2 MB


@dataclass(frozen=True)
class Confusion:
    """Number of images by true and predicted class.

    Attributes:
        num_classes: K.
        truth: (m,), true class of each cell, ascending.
        predicted: (m,), predicted class of each cell, ascending within a true class.
        counts: (m,), number of images, at least 1.
    """

    num_classes: int
    truth: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> Confusion:
        """Counts labels (n,) and predictions (n,), which are class indices."""
        cells, counts = np.unique(labels.astype(np.int64) * num_classes + predictions, return_counts=True)
        return cls(num_classes, *np.divmod(cells, num_classes), counts)

    @cached_property
    def totals(self) -> np.ndarray:
        """Number of images of each class, (K,) int64."""
        return np.bincount(self.truth, self.counts, self.num_classes).astype(np.int64)

    @cached_property
    def correct(self) -> np.ndarray:
        """Number of images of each class that are classified correctly, (K,) int64."""
        diagonal = self.truth == self.predicted
        return np.bincount(self.truth[diagonal], self.counts[diagonal], self.num_classes).astype(np.int64)

    @property
    def shares(self) -> np.ndarray:
        """Share of each cell in the images of its true class, (m,), in 0..1."""
        return np.asarray(self.counts / self.totals[self.truth])

    def mistakes(self, count: int | None = None) -> np.ndarray:
        """Returns the indices of the ``count`` most frequent mistakes, or of all: by number of images, then by share."""
        wrong = np.flatnonzero(self.truth != self.predicted)
        return np.asarray(wrong[np.lexsort((-self.shares[wrong], -self.counts[wrong]))][:count])

    def to_array(self) -> np.ndarray:
        """Returns the matrix (K, K), int64. Row: true class, column: predicted class."""
        matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        matrix[self.truth, self.predicted] = self.counts
        return matrix

    def to_dict(self) -> dict[str, Any]:
        """Returns the cells as JSON values: indices of the ``true`` and the ``predicted`` class, and number of ``images``.

        Of more than 100,000 cells, those with the most images are kept, and ``omitted`` is the number of images in the others.
        """
        kept = np.sort(np.argsort(-self.counts, kind="stable")[:MAX_STORED_CELLS])
        return {
            "true": self.truth[kept].tolist(),
            "predicted": self.predicted[kept].tolist(),
            "images": self.counts[kept].tolist(),
            "omitted": int(self.counts.sum() - self.counts[kept].sum()),
        }
