"""Metrics of a classifier: accuracy, confusion, calibration and confidence intervals.

Shapes: n images, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

NUM_BINS = 15  # of the calibration error, as in Guo et al., arXiv 1706.04599
Z_95 = 1.96  # standard normal quantile of a two-sided 95% interval


@dataclass(frozen=True)
class HeadMetrics:
    """Metrics of one head.

    Attributes:
        top1: accuracy of the most likely class, in 0..1.
        top5: share of images whose label is among the five most likely classes (all classes if there are fewer), in 0..1.
        loss: mean cross-entropy with the labels, in nats.
        calibration_error: expected calibration error over 15 bins, in 0..1.
    """

    top1: float
    top5: float
    loss: float
    calibration_error: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics and predictions of a model on a data set.

    If an image has several correct classes, its label is the correct class with the highest logit: a prediction of any correct
    class counts.

    Attributes:
        classes: class names, in the order of the labels.
        heads: metrics by the name of the head; the last head is the model's prediction.
        confusion: (K, K), int64; row: true class, column: predicted class.
        probabilities: (n, K), float32, of the model's prediction.
        labels: (n,), true classes.
        indices: (n,), index of each image in the source.
        skipped: number of unreadable images that were left out.
        seconds: duration of the whole evaluation, loading included.
        num_classes_evaluated: number of classes that predictions were restricted to; None if they were not.
    """

    classes: tuple[str, ...]
    heads: dict[str, HeadMetrics]
    confusion: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    skipped: int
    seconds: float
    num_classes_evaluated: int | None = None

    @property
    def main(self) -> HeadMetrics:
        """Metrics of the model's prediction: of both heads together, or of the only head."""
        return list(self.heads.values())[-1]

    @property
    def images(self) -> int:
        """Number of images classified."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """Number of images classified correctly."""
        return int(np.trace(self.confusion))

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95% confidence interval of the top-1 accuracy, given the number of images."""
        return wilson_interval(self.correct, self.images)

    @property
    def images_per_second(self) -> float:
        """Throughput from file to logits, start of the worker processes included."""
        return self.images / self.seconds

    @property
    def per_class(self) -> dict[str, float]:
        """Accuracy by class, in 0..1; classes without images are left out."""
        totals = self.confusion.sum(axis=1)
        return {name: float(self.confusion[i, i] / totals[i]) for i, name in enumerate(self.classes) if totals[i]}

    def most_confused(self, count: int) -> list[tuple[str, str, int]]:
        """Returns the most frequent mistakes: true class, predicted class, number of images."""
        mistakes = self.confusion.copy()
        np.fill_diagonal(mistakes, 0)
        cells = np.argsort(-mistakes, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(cell, mistakes.shape) for cell in cells]
        return [
            (self.classes[row], self.classes[column], int(mistakes[row, column]))
            for row, column in pairs
            if mistakes[row, column]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the metrics as JSON values, without the probabilities of each image."""
        low, high = self.top1_interval
        return {
            "images": self.images,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "heads": {name: asdict(head) for name, head in self.heads.items()},
            "top1_interval": {"low": low, "high": high},
            "per_class": self.per_class,
            "num_classes_evaluated": len(self.classes) if self.num_classes_evaluated is None else self.num_classes_evaluated,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


def head_metrics(logits: torch.Tensor, labels: torch.Tensor) -> HeadMetrics:
    """Computes the metrics of one head.

    Args:
        logits: (n, K), float32.
        labels: (n,), class indices.
    """
    hits = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    return HeadMetrics(
        top1=hits[:, 0].float().mean().item(),
        top5=hits.any(dim=-1).float().mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        calibration_error=calibration_error(logits.softmax(dim=-1).numpy(), labels.numpy()),
    )


def calibration_bins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes accuracy as a function of confidence.

    Args:
        probabilities: (n, K).
        labels: (n,).

    Returns:
        (15, 3): number of images, mean confidence and accuracy of each confidence bin; zeros where a bin is empty.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    divisors = np.maximum(counts, 1)
    mean_confidence = np.bincount(bins, weights=confidence, minlength=NUM_BINS) / divisors
    accuracy = np.bincount(bins, weights=correct, minlength=NUM_BINS) / divisors
    return np.stack([counts, mean_confidence, accuracy], axis=1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Computes the expected calibration error: the mean gap between confidence and accuracy, weighted by images per bin."""
    counts, confidence, accuracy = calibration_bins(probabilities, labels).T
    return float((counts * np.abs(confidence - accuracy)).sum() / max(counts.sum(), 1))


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Computes Wilson's 95% score interval of an accuracy, in 0..1: the uncertainty due to the number of images alone."""
    share, scale = correct / images, 1 + Z_95**2 / images
    center = (share + Z_95**2 / (2 * images)) / scale
    half_width = Z_95 / scale * (share * (1 - share) / images + Z_95**2 / (4 * images**2)) ** 0.5
    return max(center - half_width, 0.0), min(center + half_width, 1.0)
