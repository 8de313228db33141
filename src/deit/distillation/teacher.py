"""A teacher: a frozen classifier that answers a student's batch with logits.

It sees the very pixels that the student sees, augmented and mixed (section 4 of the paper), but in its own size and
normalisation, and it answers in the data's order of classes.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo
from timm.models import PretrainedCfg
from torch import Tensor

from deit.checkpoints.tensors import open_tensors
from deit.checkpoints.weights import load_into
from deit.distillation.classifiers import LoadedClassifier, TimmClassifier, check_architecture, load_classifier
from deit.errors import CheckpointError, TeacherError
from deit.image_processor import DeiTImageProcessor

IMAGENET_CLASSES = 1000
TRAIN_ONE = "train one on this data: deit teacher train DATA --arch regnety_004"


class Teacher:
    """A frozen classifier with the student's view of images and classes.

    Args:
        classifier: the model, its preprocessing, its class names.
        classes: of the data set, in the order in which the student answers.
        student: the student's preprocessing, whose normalisation its batches carry.
        name: what to call the teacher.

    Raises:
        TeacherError: the teacher's classes are not those of the data.
    """

    def __init__(self, classifier: LoadedClassifier, classes: tuple[str, ...], student: DeiTImageProcessor, name: str) -> None:
        self.name = name
        self.classifier = classifier
        self._model = classifier.model.eval().requires_grad_(False)
        self._order = _matched(name, classifier.classes, classes)
        self._size = classifier.processor.input_hw
        # values * std_s + mean_s undoes the student's normalisation; the teacher's own follows.
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
            name: a directory (of ``deit teacher train``, or any model of ours), or an architecture of timm.
            classes: of the data set.
            student: the student's preprocessing.
            weights: a file with the weights of a timm architecture (``.safetensors``, or ``.pth`` with tensors alone);
                from the hub when None.

        Raises:
            TeacherError: no such teacher, weights that cannot be had, or other classes than the data's.
        """
        if Path(name).is_dir():
            return cls(load_classifier(name), classes, student, str(name))
        check_architecture(str(name))
        if weights is not None:
            return cls(_from_file(str(name), Path(weights), classes), classes, student, str(name))
        return cls(_from_hub(str(name), classes), classes, student, str(name))

    def to(self, device: torch.device) -> Teacher:
        """Move the teacher to a device, in place."""
        self._model.to(device)
        self._order = self._order.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """A batch as the student sees it, (B, 3, height, width) -> logits (B, K) in the data's order of classes."""
        values = pixel_values * self._scale + self._shift
        if values.shape[-2:] != self._size:
            values = F.interpolate(values, size=self._size, mode="bicubic", align_corners=False, antialias=True)
        answer: Tensor = list(self._model(values).heads.values())[-1]
        return answer[:, self._order]


def _matched(name: str, own: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Where each of the data's classes stands among the teacher's logits.

    Raises:
        TeacherError: the two are not the same set of names.
    """
    if len(own) != len(wanted):
        raise TeacherError(f"The teacher {name} knows {len(own)} classes, the data has {len(wanted)}", TRAIN_ONE)
    place = {label: index for index, label in enumerate(own)}
    unknown = [label for label in wanted if label not in place]
    if unknown:
        raise TeacherError(f"The teacher {name} does not know the data's class {unknown[0]!r}", TRAIN_ONE)
    return torch.tensor([place[label] for label in wanted])


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
    classifier.network = network
    return LoadedClassifier(classifier, processor, names)


def _published_classes(name: str, count: int) -> tuple[str, ...]:
    """The class names of published weights: ImageNet's, by their WordNet numbers, as its folders are called."""
    if count != IMAGENET_CLASSES:
        raise TeacherError(f"The published weights of {name} know {count} classes without names", TRAIN_ONE)
    names: list[str] = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    return tuple(names)


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
