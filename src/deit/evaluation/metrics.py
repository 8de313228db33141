"""Metrics of a classifier: accuracy, confusion, calibration and confidence intervals.

Shapes: n images, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from deit.data.image_hashes import SeenImages
from deit.evaluation.confusion import Confusion

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
class Scores:
    """What the metrics of one head are computed from: four numbers per image instead of K logits.

    Attributes:
        labels: (n,), true classes.
        predictions: (n,), most likely classes.
        confidence: (n,), their probabilities, in 0..1.
        losses: (n,), cross-entropies with the labels, in nats.
        in_top5: (n,), bool, whether the label is among the five most likely classes.
    """

    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray
    in_top5: np.ndarray

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor) -> Scores:
        """Computes the scores of logits (n, K), float32, and class indices (n,)."""
        probabilities = logits.softmax(dim=-1).numpy()
        predictions = probabilities.argmax(axis=1)  # the first of equal ones, as in inference
        confidence = np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0]
        top5 = (logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]).any(dim=-1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        in_top5 = top5.numpy() | (predictions == labels.numpy())
        return cls(labels.numpy(), predictions, confidence, losses.numpy(), in_top5)

    @classmethod
    def join(cls, batches: Sequence[Scores]) -> Scores:
        """Concatenates the scores of several batches."""
        return cls(*(np.concatenate([getattr(batch, field.name) for batch in batches]) for field in fields(cls)))

    @property
    def correct(self) -> np.ndarray:
        """(n,), bool, whether the prediction is the label."""
        return np.asarray(self.predictions == self.labels)

    def metrics(self) -> HeadMetrics:
        """Computes the metrics of at least one image."""
        return HeadMetrics(
            top1=float(self.correct.mean()),
            top5=float(self.in_top5.mean()),
            loss=float(self.losses.mean(dtype=np.float64)),
            calibration_error=calibration_error(self.confidence, self.correct),
        )


@dataclass(frozen=True)
class Evaluation:
    """Metrics and predictions of a model on a data set.

    If an image has several correct classes, its label is the correct class with the highest logit: a prediction of any correct
    class counts.

    Attributes:
        classes: class names, in the order of the labels.
        heads: metrics by the name of the head; the last head is the model's prediction.
        scores: labels, predictions and confidence of the model's prediction.
        indices: (n,), index of each image in the source.
        skipped: number of unreadable images that were left out.
        seconds: duration of the whole evaluation, loading included.
        num_classes_evaluated: number of classes that predictions were restricted to; None if they were not.
        seen: how many images training saw; None if the model has no record of its training images.
        head_predictions: (n,), predicted classes of each head, by its name.
    """

    classes: tuple[str, ...]
    heads: dict[str, HeadMetrics]
    scores: Scores
    indices: np.ndarray
    skipped: int
    seconds: float
    num_classes_evaluated: int | None = None
    seen: SeenImages | None = None
    head_predictions: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def main(self) -> HeadMetrics:
        """Metrics of the model's prediction: of both heads together, or of the only head."""
        return list(self.heads.values())[-1]

    @property
    def labels(self) -> np.ndarray:
        """True classes, (n,)."""
        return self.scores.labels

    @property
    def predictions(self) -> np.ndarray:
        """Predicted classes, (n,)."""
        return self.scores.predictions

    @property
    def confidence(self) -> np.ndarray:
        """Probability of each predicted class, (n,), in 0..1."""
        return self.scores.confidence

    @cached_property
    def confusion(self) -> Confusion:
        """Number of images by true and predicted class."""
        return Confusion.of(self.labels, self.predictions, len(self.classes))

    @property
    def images(self) -> int:
        """Number of images classified."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """Number of images classified correctly."""
        return int(self.scores.correct.sum())

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95% confidence interval of the top-1 accuracy, given the number of images."""
        return wilson_interval(self.correct, self.images)

    @property
    def images_per_second(self) -> float:
        """Throughput from file to logits, start of the worker processes included."""
        return self.images / self.seconds

    @cached_property
    def per_class(self) -> dict[str, float]:
        """Accuracy by class, in 0..1; classes without images are left out.

        Of several classes with one name, each is followed by its index, as in ``crane [134]``.
        """
        totals, correct = self.confusion.totals, self.confusion.correct
        names, counts = self.classes, Counter(self.classes)
        return {
            names[i] if counts[names[i]] == 1 else f"{names[i]} [{i}]": float(correct[i] / totals[i])
            for i in np.flatnonzero(totals).tolist()
        }

    def most_confused(self, count: int) -> list[tuple[str, str, int]]:
        """Returns the most frequent mistakes: true class, predicted class, number of images."""
        confusion, names = self.confusion, self.classes
        return [
            (names[confusion.truth[cell]], names[confusion.predicted[cell]], int(confusion.counts[cell]))
            for cell in confusion.mistakes(count)
        ]

    def summary(self) -> dict[str, Any]:
        """Returns the metrics as JSON values, without those of each class."""
        low, high = self.top1_interval
        return {
            "images": self.images,
            "skipped": self.skipped,
            "seen": None if self.seen is None else asdict(self.seen),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "heads": {name: asdict(head) for name, head in self.heads.items()},
            "top1_interval": {"low": low, "high": high},
            "num_classes_evaluated": len(self.classes) if self.num_classes_evaluated is None else self.num_classes_evaluated,
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the metrics as JSON values, without the prediction for each image. See :meth:`Confusion.to_dict`."""
        return {
            **self.summary(),
            "per_class": self.per_class,
            "classes": list(self.classes),
            "confusion": self.confusion.to_dict(),
        }


def head_metrics(logits: torch.Tensor, labels: torch.Tensor) -> HeadMetrics:
    """Computes the metrics of one head.

    Args:
        logits: (n, K), float32.
        labels: (n,), class indices.
    """
    return Scores.of(logits, labels).metrics()


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Computes accuracy as a function of confidence.

    Args:
        confidence: (n,), probability of each prediction, in 0..1.
        correct: (n,), bool, whether it is correct.

    Returns:
        (15, 3): number of images, mean confidence and accuracy of each confidence bin; zeros where a bin is empty.
    """
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    divisors = np.maximum(counts, 1)
    mean_confidence = np.bincount(bins, weights=confidence, minlength=NUM_BINS) / divisors
    accuracy = np.bincount(bins, weights=correct, minlength=NUM_BINS) / divisors
    return np.stack([counts, mean_confidence, accuracy], axis=1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Computes the expected calibration error: the mean gap between confidence and accuracy, weighted by images per bin.

    Args:
        confidence: (n,), as :func:`calibration_bins` takes it.
        correct: (n,), bool.
    """
    counts, means, accuracy = calibration_bins(confidence, correct).T
    return float((counts * np.abs(means - accuracy)).sum() / max(counts.sum(), 1))


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Computes Wilson's 95% score interval of an accuracy, in 0..1: the uncertainty due to the number of images alone."""
    share, scale = correct / images, 1 + Z_95**2 / images
    center = (share + Z_95**2 / (2 * images)) / scale
    half_width = Z_95 / scale * (share * (1 - share) / images + Z_95**2 / (4 * images**2)) ** 0.5
    return max(center - half_width, 0.0), min(center + half_width, 1.0)
