"""Evaluates a classifier on a data set: metrics of each head, confusion and throughput."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deit.data.class_names import Matching, class_indices
from deit.data.datasets.named import named_reference
from deit.data.image_hashes import content_hashes, leave_out_seen, read_image_hashes
from deit.data.loader import EvaluationSamples, Loader
from deit.data.opening import read_splits
from deit.data.sources import ImageSource, MultiLabelSource, relabeled
from deit.data.splits import VALIDATION_FRACTION, DataRecord, make_splits, read_record
from deit.errors import DataError, NonFiniteOutputError, UserError
from deit.evaluation.metrics import Evaluation, Scores
from deit.images.crops import Crop
from deit.inference.bundle import is_bundle
from deit.inference.bundle_classifier import load_bundle_classifier
from deit.inference.logits import DIVERGED, check_logits
from deit.models.auto import load_classifier
from deit.system.devices import Precision, autocast, choose_device
from deit.system.distributed import gathered, group_rank, group_size, process_group, together
from deit.system.progress import Progress, print_status

BATCH_SIZE = 64

Combine = Literal["mean", "softmax"]
SplitName = Literal["auto", "all", "train", "validation", "test"]
CandidateClasses = Literal["auto", "all", "data"]


@dataclass(frozen=True)
class _ScoredBatch:
    """The images of a batch that were readable, the scores of each head, and how many images were skipped."""

    indices: np.ndarray
    scores: dict[str, Scores]
    skipped: int


def evaluate_source(
    model: nn.Module,
    samples: EvaluationSamples,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    loader: Loader | None = None,
    precision: Precision = "fp32",
    combine: Combine = "mean",
    candidates: np.ndarray | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Evaluates a model on a source. The model is in evaluation mode meanwhile, and in its previous mode afterwards.

    Connected processes (:func:`deit.system.distributed.process_group`) each evaluate a share of the batches, and all return the
    result of the whole.

    Args:
        model: classifier whose output has ``heads``: name -> logits (B, K).
        samples: the images, preprocessed.
        batch_size: images per batch.
        workers: worker processes of the data loader; None chooses by the number of cores.
        loader: data loader of the same samples whose worker processes are running already; None creates one.
        precision: of the matrix products.
        combine: how the predictions of two heads are combined: mean of the logits, or sum of the softmaxes (section 4).
        candidates: class indices that predictions are restricted to; None allows all. Other classes get probability 0.
        quiet: print no progress.

    Raises:
        DataError: no image of the source is readable.
        NonFiniteOutputError: the model predicts NaN or infinite values.
        InterruptedWorkError: a signal was received in a context of :func:`deit.system.signals.stop_on_signals`.
    """
    device = next(model.parameters(), torch.empty(0)).device  # an exported model has no parameters and places its own input
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    loader = loader or Loader(samples, workers, pin=device.type == "cuda")
    share = samples.plans(batch_size)[group_rank() :: group_size()]
    scored: list[_ScoredBatch] = []
    with together(), Progress("Evaluating", sum(len(plan.samples) for plan in share), quiet=quiet) as progress:
        for batch in loader.run(share, interruptible=True):
            rows, scores = batch.samples[:, 0].numpy(), {}
            if len(rows):
                with torch.inference_mode(), autocast(device, precision):
                    heads = model(batch.pixel_values.to(device, non_blocking=True)).heads
                for name, logits in _combine_heads(_restrict_classes(heads, candidates), combine).items():
                    scores[name] = _score(samples.source, logits.float().cpu(), batch.labels, rows)
            scored.append(_ScoredBatch(rows, scores, batch.skipped))
            progress.advance(len(rows))
    model.train(was_training)
    everything = [batch for batches in zip_longest(*gathered(scored)) for batch in batches if batch is not None]
    readable = [batch for batch in everything if len(batch.indices)]
    with together():
        if not readable:
            raise DataError("No image of the data set is readable", "`deit data check` lists the unreadable files")
    heads_scores = {name: Scores.join([batch.scores[name] for batch in readable]) for name in readable[0].scores}
    return Evaluation(
        classes=samples.source.classes,
        heads={name: scores.metrics() for name, scores in heads_scores.items()},
        scores=list(heads_scores.values())[-1],
        indices=np.concatenate([batch.indices for batch in readable]),
        skipped=sum(batch.skipped for batch in everything),
        seconds=time.perf_counter() - start,
        num_classes_evaluated=None if candidates is None else len(candidates),
        head_predictions={name: scores.predictions for name, scores in heads_scores.items()},
    )


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: SplitName = "auto",
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    combine: Combine = "mean",
    classes: CandidateClasses = "auto",
    match_classes: Matching = "name",
    skip_unreadable: bool = False,
    crop: Crop | None = None,
    ema: bool = False,
    revision: str | None = None,
) -> Evaluation:
    """Evaluates a saved model on a data set.

    By default, a data set with splits is evaluated on its test split, or on its validation split if it has no test split. A
    data set without splits is evaluated whole. Images that the model was trained on are left out, and counted in ``seen`` of
    the result: a model that was trained here keeps hashes of them (:mod:`deit.data.image_hashes`). With the splits ``train``
    and ``all`` they are evaluated, too.

    Args:
        model: a bundle, a model of any format, a run, a teacher, a name on the hub (with ``revision``), or a variant's name.
        data: a data set, as :func:`deit.data.opening.open_data` takes it; also ``imagenet-v2``, ``imagenet-real``,
            ``imagenet-a`` and ``imagenet-r``, and ``imagenet`` without its training split.
        split: ``train``, ``validation``, ``test``, ``all`` images of a data set without splits, or ``auto``.
        device: ``auto``, ``cpu``, ``cuda``, ...
        batch_size: images per batch.
        workers: worker processes of the data loader; None chooses by the number of cores.
        combine: ``mean`` or ``softmax``, see :func:`evaluate_source`.
        classes: whether the model predicts ``all`` of its classes or only those of the ``data``; ``auto`` is ``data`` for
            ImageNet-A and -R, as their authors evaluate, and ``all`` for any other data set.
        match_classes: whether the classes of model and data are matched by ``name`` or by ``order``, for a model whose classes
            have no names: see :func:`deit.data.class_names.class_indices`.
        skip_unreadable: leave out unreadable images and count them.
        crop: ``keep``, ``squash`` or ``pad``, see :meth:`DeiTImageProcessor.for_size`; None takes the model's own.
        ema: load the exponential moving average of the weights from a training checkpoint.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: the model is not readable.
        ConfigError: unknown crop.
        DataError: the data set is unusable, has classes that the model does not know, or has only images that the model was
            trained on.
        NonFiniteOutputError: the model predicts NaN or infinite values.
        UserError: ``ema`` or ``revision`` of a bundle.
    """
    if is_bundle(model):
        if ema or revision is not None:
            raise UserError(f"{model} is a bundle, which has one set of weights", "leave --ema and --revision out")
        classifier = load_bundle_classifier(model, device, crop)
    else:
        classifier = load_classifier(model, ema=ema, revision=revision)
        classifier.model.to(choose_device(device))
    record = read_record(classifier.path) if classifier.path else None
    hashes = read_image_hashes(classifier.path) if classifier.path else None
    images = evaluation_split(data, split, record, classifier.classes)
    if match_classes == "order":
        class_indices(images.classes, classifier.classes, match_classes)  # raises if they cannot be
        classifier = replace(classifier, classes=images.classes)
    seen = None
    if hashes is not None:
        images, seen = leave_out_seen(images, content_hashes(images), hashes, keep=split in ("train", "all"))
        if not len(images.labels):
            raise _all_seen(data, seen.left_out)
    source = relabeled(images, classifier.classes)
    candidates = np.unique(class_indices(images.classes, classifier.classes)) if _only_data_classes(data, classes) else None
    processor = classifier.processor if crop is None else classifier.processor.with_crop(crop)
    samples = EvaluationSamples(source, processor, skip_unreadable)
    with process_group(choose_device(device)):
        result = evaluate_source(
            classifier.model, samples, batch_size=batch_size, workers=workers, combine=combine, candidates=candidates
        )
    return replace(result, seen=seen)


def evaluation_split(
    data: str | Path, split: SplitName = "auto", record: DataRecord | None = None, known_classes: Sequence[str] = ()
) -> ImageSource:
    """Returns the images of a data set that :func:`evaluate` evaluates a model on, apart from those that it leaves out.

    Args:
        data: a data set, as :func:`evaluate` takes it.
        split: as :func:`evaluate` takes it.
        record: of the data that the model was trained on; a missing split is set aside as it was for training. None if unknown.
        known_classes: classes of the model.

    Raises:
        DataError: the data set is unusable or has no such split.
    """
    reference = named_reference(str(data))
    if reference is not None and reference.data.evaluate is not None:
        evaluated: tuple[SplitName, ...] = ("auto", "test", "all") if reference.data.read is None else ("auto", "validation")
        if split in evaluated:
            return reference.data.evaluate(reference.root)
        if reference.data.read is None:
            raise DataError(f"{reference.name} has no {split} split", "leave --split out")
    dataset = read_splits(data, known_classes)
    for note in dataset.all_notes:
        print_status(f"Note: {note}.")
    if dataset.train_or_none is None:
        return _existing_split(data, split, dataset.sources)
    if split == "all" and not dataset.unsplit:
        raise DataError(f"{data} has separate splits", "evaluate one of them: --split train, validation or test")
    if split == "all" or (split == "auto" and dataset.unsplit):
        return dataset.train
    existing = {"auto": dataset.test or dataset.validation, "validation": dataset.validation, "test": dataset.test}
    if (images := existing.get(split)) is not None:
        return images
    seed, fraction = (record.split_seed, record.validation_fraction) if record else (0, VALIDATION_FRACTION)
    splits = make_splits(dataset, seed, fraction)
    if split == "train":
        return splits.train
    if split == "validation":
        return splits.validation
    if split == "test" and splits.test is None:
        raise DataError(f"{data} has no test split", "evaluate on --split validation, or add a folder `test`")
    return splits.held_out[1]


def _all_seen(data: str | Path, count: int) -> DataError:
    return DataError(
        f"The model was trained on all {count:,} images of {data}",
        "evaluate it on other images; --split all or train measures how well it fits its training images",
    )


def _existing_split(data: str | Path, split: SplitName, sources: Mapping[str, ImageSource]) -> ImageSource:
    """Returns a split of a data set without a training split; for ``auto``, the test split if there is one."""
    if split == "all" and len(sources) == 1:
        return next(iter(sources.values()))
    name = ("test" if "test" in sources else "validation") if split == "auto" else split
    if name == "all":
        raise DataError(f"{data} has separate splits", f"evaluate on one of them: --split {' or '.join(sources)}")
    if name not in sources:
        raise DataError(f"{data} has no {name} split", f"evaluate on --split {' or '.join(sources)}")
    return sources[name]


def _only_data_classes(data: str | Path, classes: CandidateClasses) -> bool:
    """Whether predictions are restricted to the classes of the data."""
    reference = named_reference(str(data))
    return classes == "data" or (classes == "auto" and reference is not None and reference.data.own_classes)


def _restrict_classes(heads: dict[str, torch.Tensor], candidates: np.ndarray | None) -> dict[str, torch.Tensor]:
    """Returns the logits with those of all classes but the candidates set to minus infinity."""
    if candidates is None:
        return heads
    excluded = torch.ones(next(iter(heads.values())).shape[-1], dtype=torch.bool)
    excluded[torch.from_numpy(candidates)] = False
    return {name: logits.masked_fill(excluded.to(logits.device), -torch.inf) for name, logits in heads.items()}


def _combine_heads(heads: dict[str, torch.Tensor], combine: Combine) -> dict[str, torch.Tensor]:
    """Returns the logits; with ``softmax``, those of ``both`` are the logarithm of the sum of the heads' softmaxes."""
    if combine == "softmax" and "both" in heads:
        log_probabilities = [F.log_softmax(heads[name].float(), dim=-1) for name in ("class", "distillation")]
        return {**heads, "both": torch.logaddexp(*log_probabilities)}
    return heads


def _score(source: ImageSource, logits: torch.Tensor, labels: torch.Tensor, indices: np.ndarray) -> Scores:
    """Scores the logits (B, K) of a batch; of several correct classes, the one with the highest logit is the label.

    Raises:
        NonFiniteOutputError: the logits or the losses are not finite.
    """
    check_logits(logits.numpy())
    if isinstance(source, MultiLabelSource):
        correct = torch.from_numpy(source.correct_classes(indices))
        labels = logits.masked_fill(~correct, -torch.inf).argmax(dim=-1)
    scores = Scores.of(logits, labels)
    of_labels = logits.gather(1, labels[:, None]).squeeze(1).numpy()
    if (np.isinf(scores.losses) & np.isfinite(of_labels)).any():  # the loss of a class that is left out is infinite
        raise NonFiniteOutputError("The loss of the model is infinite", DIVERGED)
    return scores
