"""Model and data -> how often it is right, how sure it is, and how fast; for each head."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deit.data.class_names import places_among
from deit.data.datasets.named import named_reference
from deit.data.loader import EvaluationSamples, Loader
from deit.data.opening import read_splits
from deit.data.sources import ImageSource, ManyLabels, fingerprint, relabeled
from deit.data.splits import VALIDATION_FRACTION, DataRecord, make_splits, read_record
from deit.errors import DataError, UserError
from deit.images.processor import Crop
from deit.inference.bundle import is_bundle
from deit.inference.bundle_classifier import load_bundle_classifier
from deit.models.auto import load_classifier
from deit.system.devices import Precision, autocast, choose_device
from deit.system.progress import Progress

BINS = 15  # of the calibration error, as in Guo et al., arXiv 1706.04599
BATCH_SIZE = 64

Combine = Literal["mean", "softmax"]
Part = Literal["auto", "all", "train", "validation", "test"]
Among = Literal["auto", "all", "data"]


@dataclass(frozen=True)
class HeadMetrics:
    """How one head did.

    Attributes:
        top1: share of images whose first answer is right, in 0..1; likewise ``top5``, of the first five (or of all
            classes, where there are fewer).
        loss: mean cross-entropy with the true labels, in nats.
        calibration_error: expected difference of confidence and accuracy over 15 bins.
    """

    top1: float
    top5: float
    loss: float
    calibration_error: float


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a data set.

    Attributes:
        classes: names, in the order of the labels.
        heads: by name; the last is the model's answer.
        confusion: (K, K), int64: true class by row, answer by column, of the model's answer.
        probabilities: (n, K), float32, of the model's answer; likewise ``labels``, (n,), and ``indices``, (n,), in the source.
        skipped: unreadable images that were left out.
        seconds: of the whole evaluation, loading included.
        among: how many classes the model could answer with; all of its own when None.

    Where several classes are right, an image's label is the one of them that the model holds likeliest: it is right if any is.
    """

    classes: tuple[str, ...]
    heads: dict[str, HeadMetrics]
    confusion: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    skipped: int
    seconds: float
    among: int | None = None

    @property
    def answer(self) -> HeadMetrics:
        """The head that the model answers with."""
        return list(self.heads.values())[-1]

    @property
    def images(self) -> int:
        """How many images were classified."""
        return len(self.labels)

    @property
    def images_per_second(self) -> float:
        """From file to logits, start of the worker processes included."""
        return self.images / self.seconds

    @property
    def per_class(self) -> dict[str, float]:
        """Share of each class's images that were classified right; classes without images are left out."""
        totals = self.confusion.sum(axis=1)
        return {name: float(self.confusion[i, i] / totals[i]) for i, name in enumerate(self.classes) if totals[i]}

    def most_confused(self, count: int) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: true class, what it was taken for, how often."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        places = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(place, wrong.shape) for place in places]
        return [
            (self.classes[row], self.classes[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column]
        ]

    def to_dict(self) -> dict[str, Any]:
        """For programs: plain values, without the probabilities of each image."""
        return {
            "images": self.images,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "heads": {name: asdict(head) for name, head in self.heads.items()},
            "per_class": self.per_class,
            "answered_among": len(self.classes) if self.among is None else self.among,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
        }


def calibration_bins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Confidence against accuracy.

    Args:
        probabilities: (n, K).
        labels: (n,).

    Returns:
        (15, 3): number of images, mean confidence, accuracy in each bin of confidence; zeros where a bin is empty.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    filled = np.maximum(counts, 1)
    mean_confidence = np.bincount(place, weights=confidence, minlength=BINS) / filled
    accuracy = np.bincount(place, weights=right, minlength=BINS) / filled
    return np.stack([counts, mean_confidence, accuracy], axis=1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: the bins' gaps between confidence and accuracy, weighted by their images."""
    counts, confidence, accuracy = calibration_bins(probabilities, labels).T
    return float((counts * np.abs(confidence - accuracy)).sum() / max(counts.sum(), 1))


def evaluate_source(
    model: nn.Module,
    samples: EvaluationSamples,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    loader: Loader | None = None,
    precision: Precision = "fp32",
    combine: Combine = "mean",
    among: np.ndarray | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Classify every image of a source. The model is put into evaluation mode for it and back afterwards.

    Args:
        workers: processes that make batches; by the cores when None.
        loader: one of these samples whose processes are running already, in place of a new one.
        combine: how two heads answer together: the mean of their logits, or the sum of their softmaxes (section 4).
        among: the classes that the model may answer with, by their places; all when None. The others do not exist for it:
            they have no share in its confidence either.

    Raises:
        DataError: nothing in the source is readable.
    """
    device = next(model.parameters(), torch.empty(0)).device  # what runs elsewhere has no parameters and takes its own care
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    loader = loader or Loader(samples, workers, pin=device.type == "cuda")
    parts: dict[str, list[torch.Tensor]] = {}
    labels, indices, skipped = [], [], 0
    with Progress("Evaluating", len(samples.source.labels), quiet=quiet) as progress:
        for batch in loader.run(samples.plans(batch_size)):
            with torch.inference_mode(), autocast(device, precision):
                heads = model(batch.pixel_values.to(device, non_blocking=True)).heads
            for name, logits in _combined(_among(heads, among), combine).items():
                parts.setdefault(name, []).append(logits.float().cpu())
            labels.append(batch.labels)
            indices.append(batch.samples[:, 0])
            skipped += batch.skipped
            progress.advance(len(batch.labels))
    model.train(was_training)
    seconds = time.perf_counter() - start
    if not sum(map(len, labels)):
        raise DataError("No image of the data set is readable", "`deit data check` lists the unreadable files")
    return _summarize(
        samples.source,
        {name: torch.cat(logits) for name, logits in parts.items()},
        torch.cat(labels),
        torch.cat(indices).numpy(),
        skipped,
        seconds,
        None if among is None else len(among),
    )


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    part: Part = "auto",
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    combine: Combine = "mean",
    classes: Among = "auto",
    skip_unreadable: bool = False,
    crop: Crop | None = None,
    ema: bool = False,
    revision: str | None = None,
) -> Evaluation:
    """Evaluate a saved model on a data set.

    By default a data set with parts is evaluated on its test part, or on its validation part where it has no test part; a
    plain data set is evaluated whole, unless the model was trained on this very one: then on the images that were set aside
    from training.

    Args:
        model: a bundle, a model of any format, a run, a teacher, a name on the hub (with ``revision``), or a variant's name.
        data: as :func:`deit.data.opening.open_data` takes it; also ``imagenet-v2``, ``imagenet-real``, ``imagenet-a`` and
            ``imagenet-r``, and ``imagenet`` without its training part.
        device: ``auto``, ``cpu``, ``cuda``, ...
        classes: whether the model answers among ``all`` of its classes or among those of the ``data``; ``auto`` is ``data`` for
            ImageNet-A and -R, as their authors do, and ``all`` for any other.
        crop: ``keep``, ``squash`` or ``pad``, as :meth:`DeiTImageProcessor.for_size` says; the model's own when None.
        ema: take the average of the weights of a training checkpoint.

    Raises:
        CheckpointError: no readable model.
        ConfigError: no such crop.
        DataError: no usable data, or classes that the model does not know.
    """
    if is_bundle(model):
        if ema or revision is not None:
            raise UserError(f"{model} is a bundle, which has one set of weights", "leave --ema and --revision out")
        classifier = load_bundle_classifier(model, device, crop)
    else:
        classifier = load_classifier(model, ema=ema, revision=revision)
        classifier.model.to(choose_device(device))
    record = read_record(classifier.path) if classifier.path else None
    shown = evaluation_part(data, part, record)
    source = relabeled(shown, classifier.classes)
    among = np.unique(places_among(shown.classes, classifier.classes)) if _own_classes(data, classes) else None
    processor = classifier.processor if crop is None else classifier.processor.with_crop(crop)
    samples = EvaluationSamples(source, processor, skip_unreadable)
    return evaluate_source(classifier.model, samples, batch_size=batch_size, workers=workers, combine=combine, among=among)


def evaluation_part(data: str | Path, part: Part = "auto", record: DataRecord | None = None) -> ImageSource:
    """The images of a data set that a model is evaluated on; :func:`evaluate` says which.

    Args:
        record: of the data that the model was trained on, where that is known.
    """
    reference = named_reference(str(data))
    if reference is not None and reference.data.evaluate is not None:
        own: tuple[Part, ...] = ("auto", "test", "all") if reference.data.read is None else ("auto", "validation")
        if part in own:
            return reference.data.evaluate(reference.root)
        if reference.data.read is None:
            raise DataError(f"{reference.name} has no {part} part", "leave --part out")
    parts = read_splits(data)
    if part == "all" and not parts.plain:
        raise DataError(f"{data} comes in parts", "evaluate one of them: --part train, validation or test")
    whole = part == "all" or (part == "auto" and parts.plain)
    if whole and (part == "all" or record is None or record.fingerprint != fingerprint(parts.train)):
        return parts.train
    seed, fraction = (record.split_seed, record.validation_fraction) if record else (0, VALIDATION_FRACTION)
    splits = make_splits(parts, seed, fraction)
    if part == "train":
        return splits.train
    if part == "validation":
        return splits.validation
    if part == "test" and splits.test is None:
        raise DataError(f"{data} has no test part", "evaluate on --part validation, or make a folder `test`")
    return splits.held_out[1]


def _own_classes(data: str | Path, classes: Among) -> bool:
    """Whether a model answers among the data's classes alone."""
    reference = named_reference(str(data))
    return classes == "data" or (classes == "auto" and reference is not None and reference.data.own_classes)


def _among(heads: dict[str, torch.Tensor], among: np.ndarray | None) -> dict[str, torch.Tensor]:
    """The logits with every other class's at minus infinity."""
    if among is None:
        return heads
    others = torch.ones(next(iter(heads.values())).shape[-1], dtype=torch.bool)
    others[torch.from_numpy(among)] = False
    return {name: logits.masked_fill(others.to(logits.device), -torch.inf) for name, logits in heads.items()}


def _combined(heads: dict[str, torch.Tensor], combine: Combine) -> dict[str, torch.Tensor]:
    """With ``softmax``, two heads answer with the sum of their softmaxes, kept here as its logarithm."""
    if combine == "softmax" and "both" in heads:
        each = [F.log_softmax(heads[name].float(), dim=-1) for name in ("class", "distillation")]
        return {**heads, "both": torch.logaddexp(*each)}
    return heads


def _summarize(
    source: ImageSource,
    heads: dict[str, torch.Tensor],
    labels: torch.Tensor,
    indices: np.ndarray,
    skipped: int,
    seconds: float,
    among: int | None,
) -> Evaluation:
    right = torch.from_numpy(source.right_classes(indices)) if isinstance(source, ManyLabels) else None
    results = {name: _judge(logits, _likeliest(logits, right, labels)) for name, logits in heads.items()}
    last = list(heads.values())[-1]
    true = _likeliest(last, right, labels).numpy()
    answer = last.softmax(dim=-1).numpy()
    confusion = np.zeros((len(source.classes), len(source.classes)), np.int64)
    np.add.at(confusion, (true, answer.argmax(axis=1)), 1)
    return Evaluation(source.classes, results, confusion, answer, true, indices, skipped, seconds, among)


def _likeliest(logits: torch.Tensor, right: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    """The labels, (n,): where several classes are ``right``, (n, K), the one with the highest logit."""
    return labels if right is None else logits.masked_fill(~right, -torch.inf).argmax(dim=-1)


def _judge(logits: torch.Tensor, labels: torch.Tensor) -> HeadMetrics:
    ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    return HeadMetrics(
        top1=ranked[:, 0].float().mean().item(),
        top5=ranked.any(dim=-1).float().mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        calibration_error=calibration_error(logits.softmax(dim=-1).numpy(), labels.numpy()),
    )
