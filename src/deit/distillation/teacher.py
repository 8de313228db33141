"""The live teacher: a frozen classifier that maps the student's batches to logits.

It sees the pixels that the student sees, augmented and mixed (section 4 of the paper), at its own input size and normalization,
and returns logits in the data set's class order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import timm
import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg
from torch import Tensor, nn

from deit.checkpoints.state_dicts import anchor_of
from deit.checkpoints.tensors import open_tensors
from deit.checkpoints.weights import load_network
from deit.data.class_names import BY_ORDER, IMAGENET_CLASSES, Matching, class_indices, imagenet_ids, placeholder_names
from deit.data.loader import Batch, TrainSamples
from deit.distillation.feature_reduction import FeatureReduction
from deit.distillation.protocol import TeacherOutput
from deit.errors import CheckpointError, ConfigError, DataError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import LoadedClassifier, load_classifier
from deit.models.fusion import fuse_batch_norms
from deit.models.outputs import ImageClassifierOutput
from deit.models.timm_classifier import TimmClassifier, check_architecture, to_channels_last
from deit.variants import VARIANTS

TRAIN_A_TEACHER = "train one on this data: deit teacher train DATA --arch regnety_004"


class Teacher:
    """A frozen classifier that sees the student's batches and predicts the data set's classes.

    Args:
        classifier: the model, its image processor and its class names.
        classes: class names of the data set, in the order of the student's logits.
        student: the student's image processor, whose normalization the batches have.
        name: name for log lines and reports.
        match: how the teacher's classes are matched with the data's, see :func:`deit.data.class_names.class_indices`.

    Attributes:
        notes: what the user should know about the teacher.

    Raises:
        TeacherError: the data set has a class that the teacher does not have.
    """

    views = None
    sample_targets = None

    def __init__(
        self,
        classifier: LoadedClassifier,
        classes: tuple[str, ...],
        student: DeiTImageProcessor,
        name: str,
        match: Matching = "name",
    ) -> None:
        self.name = name
        self.classes = classes
        self.classifier = classifier
        self._model = fuse_batch_norms(classifier.model.eval()).requires_grad_(False)
        self._class_indices = _match_classes(name, classifier.classes, classes, match)
        unused = len(classifier.classes) - len(classes)
        self.notes = [f"The teacher {name}: {note[0].lower()}{note[1:]}" for note in classifier.notes]
        if match == "order" and classifier.classes != classes:
            first = f"{classifier.classes[0]} is taken to be {classes[0]}"
            self.notes.append(f"The classes of the teacher {name} are matched with the data's by order: {first}")
        if unused:
            self.notes.append(f"The teacher {name} has {unused} more classes than the data; their logits are ignored")
        self._reductions: dict[str, FeatureReduction] = {}
        self._input_size = classifier.processor.input_hw
        # x * student_std + student_mean undoes the student's normalization, then the teacher's is applied.
        student_mean, student_std = map(_per_channel, student.rgb_statistics)
        mean, std = map(_per_channel, classifier.processor.rgb_statistics)
        self._scale, self._shift = student_std / std, (student_mean - mean) / std

    @classmethod
    def load(
        cls,
        name: str | Path,
        classes: tuple[str, ...],
        student: DeiTImageProcessor,
        weights: str | Path | None = None,
        match: Matching = "name",
    ) -> Self:
        """Loads a teacher by name.

        Args:
            name: a directory or file that :func:`deit.models.auto.load_classifier` reads (from ``deit teacher train``, any
                model trained here, a transformers classifier), a hub name, a variant's name, or a timm architecture.
            classes: class names of the data set.
            student: the student's image processor.
            weights: file with the weights of a timm architecture (``.safetensors``, or ``.pth`` with tensors only); None
                downloads them from the hub. It has no class names.
            match: how the teacher's classes are matched with the data's, see :func:`deit.data.class_names.class_indices`.

        Raises:
            TeacherError: there is no such teacher, its weights cannot be loaded, or it lacks a class of the data set.
        """
        text = str(name)
        if weights is None and (Path(name).exists() or "/" in text or text in VARIANTS):
            try:
                return cls(load_classifier(name), classes, student, text, match)
            except (CheckpointError, ConfigError) as error:
                raise TeacherError(f"The teacher {text} cannot be loaded: {error.problem}", error.remedy) from error
        if weights is not None and Path(name).exists() and not timm.is_model(text):
            raise TeacherError(f"The teacher {text} has weights of its own", "leave out --teacher-weights")
        check_architecture(text)
        classifier = _load_from_hub(text, classes, match) if weights is None else _load_from_file(text, Path(weights), classes)
        return cls(classifier, classes, student, text, match)

    def to(self, device: torch.device) -> Self:
        """Moves the teacher to a device, in place."""
        self._model.to(device)
        self._class_indices = self._class_indices.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        return self

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that its logits depend on: weights, preprocessing and class order."""
        settings = [self.classifier.processor.to_dict(), self._class_indices.tolist(), type(self.classifier.model).__name__]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.classifier.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Maps a batch as the student sees it, (B, 3, height, width), to logits (B, K) in the data set's class order."""
        logits: Tensor = list(self._model(self._preprocess(pixel_values)).heads.values())[-1]
        return logits[:, self._class_indices]

    @property
    def has_features(self) -> bool:
        """Whether the teacher exposes intermediate features, as convolutional networks from timm do."""
        return isinstance(self._model, TimmClassifier) and self._model.has_features

    @torch.no_grad()
    def forward_intermediates(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits (B, K) of a batch and the feature maps of the stages, each (B, C, h, w), first to last."""
        assert isinstance(self._model, TimmClassifier)  # has_features
        logits, feature_maps = self._model.forward_intermediates(self._preprocess(pixel_values))
        return logits[:, self._class_indices], feature_maps

    def feature_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Returns the shape (C, h, w) of each feature map for an image of a size; empty if the teacher has none."""
        if not self.has_features:
            return []
        _, feature_maps = self.forward_intermediates(torch.zeros(1, 3, height, width, device=self._scale.device))
        return [(channels, rows, columns) for _, channels, rows, columns in (features.shape for features in feature_maps)]

    def feature_reduction(self, batches: Iterable[Batch], settings: str) -> FeatureReduction:
        """Returns a reduction that is fitted to the feature maps of some batches, once for all batches with the same settings.

        Raises:
            DataError: there are no images.
            NonFiniteOutputError: a feature map has a value that is not finite.
        """
        if settings not in self._reductions:
            device = self._scale.device
            self._reductions[settings] = FeatureReduction.fit(
                self.forward_intermediates(batch.pixel_values.to(device))[1] for batch in batches if len(batch.labels)
            )
        return self._reductions[settings]

    def check(self, samples: TrainSamples) -> None:
        """Does nothing: a live teacher computes its targets from the samples themselves."""

    def targets(self, batch: Batch, features: bool = False) -> TeacherOutput:
        """Returns the logits of a batch, with feature maps if ``features``."""
        if features:
            return TeacherOutput(*self.forward_intermediates(batch.pixel_values))
        return TeacherOutput(self(batch.pixel_values))

    def for_evaluation(self) -> LoadedClassifier:
        """Returns a classifier that takes the teacher's own input and predicts the data set's classes."""
        model = _SelectClasses(self._model, self._class_indices)
        return LoadedClassifier(model, self.classifier.processor, self.classes, self.classifier.path)

    def _preprocess(self, pixel_values: Tensor) -> Tensor:
        """Converts a student's batch to the teacher's normalization and input size."""
        values = pixel_values * self._scale + self._shift
        if values.shape[-2:] != self._input_size:
            values = F.interpolate(values, size=self._input_size, mode="bicubic", align_corners=False, antialias=True)
        return values


class _SelectClasses(nn.Module):
    """A classifier reduced to some of its classes."""

    def __init__(self, model: nn.Module, class_indices: Tensor) -> None:
        super().__init__()
        self._model = model
        self._class_indices = class_indices

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        logits = list(self._model(pixel_values).heads.values())[-1]
        return ImageClassifierOutput(logits=logits[:, self._class_indices])


def _match_classes(name: str, teacher_classes: tuple[str, ...], classes: tuple[str, ...], match: Matching) -> Tensor:
    """Returns the index of each of the data set's classes among the teacher's logits.

    Raises:
        TeacherError: the teacher lacks one of them, or several of its classes have that name.
    """
    try:
        return torch.from_numpy(class_indices(classes, teacher_classes, match))
    except DataError as error:
        reason = error.problem[0].lower() + error.problem[1:]
        raise TeacherError(
            f"The teacher {name}, with {len(teacher_classes):,} classes such as {teacher_classes[0]!r}, does not fit: {reason}",
            error.remedy if match == "order" or BY_ORDER in error.remedy else TRAIN_A_TEACHER,
        ) from error


def _load_from_hub(name: str, classes: tuple[str, ...], match: Matching) -> LoadedClassifier:
    """Loads a timm network with its published weights."""
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise TeacherError(f"timm publishes no weights for {name}", TRAIN_A_TEACHER)
    teacher_classes = _published_classes(name, settings.num_classes)
    _match_classes(name, teacher_classes, classes, match)  # before the download
    processor = _published_processor(settings)
    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise TeacherError(
            f"The weights of {name} cannot be downloaded from the hub ({type(error).__name__})",
            "check the network, or pass a file with --teacher-weights",
        ) from error
    classifier = TimmClassifier(name, teacher_classes, processor)
    classifier.network = to_channels_last(network)
    return LoadedClassifier(classifier, processor, teacher_classes)


def _published_classes(name: str, count: int) -> tuple[str, ...]:
    """Returns the class names of published weights: ImageNet's WordNet IDs, which its folders are named by."""
    if count != IMAGENET_CLASSES:
        raise TeacherError(f"The published weights of {name} have {count} classes without names", TRAIN_A_TEACHER)
    return imagenet_ids()


def _load_from_file(name: str, path: Path, classes: tuple[str, ...]) -> LoadedClassifier:
    """Loads a timm network from a local file, which holds no class names, with as many classes as the data set."""
    names = placeholder_names(len(classes))
    classifier = TimmClassifier(name, names, _published_processor(timm.get_pretrained_cfg(name)))
    try:
        file = open_tensors(path, anchors=anchor_of(classifier.network.state_dict()))
        classifier.notes = load_network(classifier.network, [file], path)
    except CheckpointError as error:
        raise TeacherError(f"{path} does not fit {name} with {len(classes)} classes: {error.problem}", error.remedy) from error
    return LoadedClassifier(classifier, classifier.processor, names, notes=classifier.notes)


def _published_processor(settings: PretrainedCfg | None) -> DeiTImageProcessor:
    """Returns the preprocessing of an architecture's published weights; timm's defaults where there are none."""
    settings = settings or PretrainedCfg()
    height, width = settings.input_size[1:]
    return DeiTImageProcessor.for_size(height, width, settings.crop_pct, settings.mean, settings.std)


def _per_channel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).reshape(3, 1, 1)
