"""A teacher: a frozen classifier that answers a student's batch with logits.

It sees the very pixels that the student sees, augmented and mixed (section 4 of the paper), but in its own size and
normalization, and it answers in the data's order of classes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg
from torch import Tensor, nn

from deit.checkpoints.tensors import open_tensors
from deit.checkpoints.weights import load_into
from deit.data.class_names import IMAGENET_CLASSES, imagenet_ids, places_among
from deit.errors import CheckpointError, ConfigError, DataError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import LoadedClassifier, TimmClassifier, check_architecture, fast_layout, load_classifier
from deit.models.outputs import ImageClassifierOutput
from deit.variants import VARIANTS

TRAIN_ONE = "train one on this data: deit teacher train DATA --arch regnety_004"


class Teacher:
    """A frozen classifier with the student's view of images and classes.

    Args:
        classifier: the model, its preprocessing, its class names.
        classes: of the data set, in the order in which the student answers.
        student: the student's preprocessing, whose normalization its batches carry.
        name: what to call the teacher.

    Attributes:
        notes: what a user should know of it.

    Raises:
        TeacherError: the data has a class that the teacher does not know.
    """

    def __init__(self, classifier: LoadedClassifier, classes: tuple[str, ...], student: DeiTImageProcessor, name: str) -> None:
        self.name = name
        self.classifier = classifier
        self._model = classifier.model.eval().requires_grad_(False)
        self._order = _matched(name, classifier.classes, classes)
        more = len(classifier.classes) - len(classes)
        self.notes = (
            [f"The teacher {name} knows {more} classes more than the data has; their logits are left out"] if more else []
        )
        self._size = classifier.processor.input_hw
        # values * std_s + mean_s undoes the student's normalization; the teacher's own follows.
        mean_s, std_s = map(_column, student.rgb_statistics)
        mean_t, std_t = map(_column, classifier.processor.rgb_statistics)
        self._scale, self._shift = std_s / std_t, (mean_s - mean_t) / std_t

    @classmethod
    def load(
        cls,
        name: str | Path,
        classes: tuple[str, ...],
        student: DeiTImageProcessor,
        weights: str | Path | None = None,
    ) -> Teacher:
        """A teacher by name.

        Args:
            name: a directory or file that :func:`load_classifier` reads (of ``deit teacher train``, any model of ours, a
                classifier of transformers), a name on the hub, a variant's name, or an architecture of timm.
            classes: of the data set.
            student: the student's preprocessing.
            weights: a file with the weights of a timm architecture (``.safetensors``, or ``.pth`` with tensors alone);
                from the hub when None.

        Raises:
            TeacherError: no such teacher, weights that cannot be had, or other classes than the data's.
        """
        text = str(name)
        if weights is None and (Path(name).exists() or "/" in text or text in VARIANTS):
            try:
                return cls(load_classifier(name), classes, student, text)
            except (CheckpointError, ConfigError) as error:
                raise TeacherError(f"The teacher {text} cannot be loaded: {error.problem}", error.remedy) from error
        check_architecture(text)
        if weights is not None:
            return cls(_from_file(str(name), Path(weights), classes), classes, student, str(name))
        return cls(_from_hub(str(name), classes), classes, student, str(name))

    def to(self, device: torch.device) -> Teacher:
        """Move the teacher to a device, in place."""
        self._model.to(device)
        self._order = self._order.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        return self

    def fingerprint(self) -> str:
        """SHA-256 of all that its answers depend on: weights, preprocessing, and which logits are taken."""
        settings = [self.classifier.processor.to_dict(), self._order.tolist(), type(self._model).__name__]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def evaluated(self) -> nn.Module:
        """The classifier as a model that answers its own input in the data's order of classes."""
        return _InOrder(self._model, self._order)

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """A batch as the student sees it, (B, 3, height, width) -> logits (B, K) in the data's order of classes."""
        answer: Tensor = list(self._model(self._seen(pixel_values)).heads.values())[-1]
        return answer[:, self._order]

    @property
    def has_features(self) -> bool:
        """Whether :meth:`forward_intermediates` works."""
        return isinstance(self._model, TimmClassifier) and self._model.has_features

    @torch.no_grad()
    def forward_intermediates(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`__call__`, and what its stages saw on the way: maps (B, C, h, w), from the first to the last."""
        assert isinstance(self._model, TimmClassifier)  # or it shows none
        logits, maps = self._model.forward_intermediates(self._seen(pixel_values))
        return logits[:, self._order], maps

    def feature_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Of the maps for a student's image of a size, each (C, h, w)."""
        _, maps = self.forward_intermediates(torch.zeros(1, 3, height, width, device=self._scale.device))
        return [(channels, rows, columns) for _, channels, rows, columns in (one.shape for one in maps)]

    def _seen(self, pixel_values: Tensor) -> Tensor:
        """A student's batch in the teacher's own normalization and size."""
        values = pixel_values * self._scale + self._shift
        if values.shape[-2:] != self._size:
            values = F.interpolate(values, size=self._size, mode="bicubic", align_corners=False, antialias=True)
        return values


class _InOrder(nn.Module):
    def __init__(self, model: nn.Module, order: Tensor) -> None:
        super().__init__()
        self._model = model
        self._order = order

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=list(self._model(pixel_values).heads.values())[-1][:, self._order])


def _matched(name: str, own: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Where each of the data's classes stands among the teacher's logits.

    Raises:
        TeacherError: the teacher does not know one of them, or several of its own have that name.
    """
    try:
        return torch.from_numpy(places_among(wanted, own))
    except DataError as error:
        reason = error.problem[0].lower() + error.problem[1:]
        raise TeacherError(
            f"The teacher {name}, of {len(own):,} classes such as {own[0]!r}, does not fit: {reason}", TRAIN_ONE
        ) from error


def _from_hub(name: str, classes: tuple[str, ...]) -> LoadedClassifier:
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise TeacherError(f"timm publishes no weights for {name}", TRAIN_ONE)
    names = _published_classes(name, settings.num_classes)
    _matched(name, names, classes)  # before anything is downloaded
    processor = _published_processor(settings)
    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise TeacherError(
            f"The weights of {name} cannot be fetched from the hub ({type(error).__name__})",
            "check the network, or pass a file with --teacher-weights",
        ) from error
    classifier = TimmClassifier(name, names, processor)
    classifier.network = fast_layout(network)
    return LoadedClassifier(classifier, processor, names)


def _published_classes(name: str, count: int) -> tuple[str, ...]:
    """The class names of published weights: ImageNet's, by their WordNet numbers, as its folders are called."""
    if count != IMAGENET_CLASSES:
        raise TeacherError(f"The published weights of {name} know {count} classes without names", TRAIN_ONE)
    return imagenet_ids()


def _from_file(name: str, path: Path, classes: tuple[str, ...]) -> LoadedClassifier:
    """A local file carries no class names: they are taken to be the data's, in the data's order."""
    network = TimmClassifier(name, classes, _published_processor(timm.get_pretrained_cfg(name)))
    try:
        file = open_tensors(path)
        load_into(network.network, file.read(file.entries))
    except CheckpointError as error:
        raise TeacherError(f"{path} does not fit {name} with {len(classes)} classes", str(error)) from error
    return LoadedClassifier(network, network.processor, classes)


def _published_processor(settings: PretrainedCfg | None) -> DeiTImageProcessor:
    """How timm's own weights of an architecture were made to see; the authors' way where it says nothing."""
    settings = settings or PretrainedCfg()
    height, width = settings.input_size[1:]
    return DeiTImageProcessor.for_size(height, width, settings.crop_pct, settings.mean, settings.std)


def _column(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).reshape(3, 1, 1)
