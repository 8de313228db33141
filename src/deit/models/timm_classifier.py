"""Classifiers of timm with a classifier's interface: preprocessing, class names, saving and loading.

A directory of such a classifier is one that timm writes for the hub: ``config.json`` with ``architecture`` and
``pretrained_cfg``, and ``model.safetensors``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from deit.checkpoints.reading import open_directory
from deit.checkpoints.state_dicts import anchor_of
from deit.checkpoints.weights import load_network, write_tensors
from deit.config import MAX_CLASSES
from deit.data.class_names import placeholder_names
from deit.errors import CheckpointError, ConfigError, TeacherError, did_you_mean
from deit.images.processor import DeiTImageProcessor
from deit.images.timm_preprocessing import INTERPOLATIONS, settings_from_timm
from deit.models import plain_convnet  # noqa: F401 - registers the architecture with timm
from deit.models.channels import RGB, check_channels, for_rgb, to_gray
from deit.models.outputs import ImageClassifierOutput
from deit.system.files import CONFIG_NAME, WEIGHTS_NAME, read_json, write_json

# Arguments that make timm.create_model download or unpickle weights.
LOADING_ARGUMENTS = frozenset({"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})


class TimmClassifier(nn.Module):
    """A network of timm with its preprocessing and class names.

    Args:
        architecture: timm's name of the architecture, such as ``regnety_004``.
        classes: class names, in the order of the logits.
        processor: preprocessing of the network's input.
        arguments: further arguments of ``timm.create_model``.

    Attributes:
        notes: how the stored weights were selected, one sentence each.

    Raises:
        TeacherError: timm has no such architecture, or refuses the arguments.
    """

    def __init__(
        self,
        architecture: str,
        classes: tuple[str, ...],
        processor: DeiTImageProcessor,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.notes: tuple[str, ...] = ()
        self.architecture, self.classes, self.processor = architecture, classes, processor
        self.arguments = dict(arguments or {})
        check_architecture(architecture)
        channels = self.arguments.get("in_chans", RGB)
        try:
            check_channels(channels, architecture)
        except CheckpointError as error:
            raise TeacherError(error.problem, error.remedy) from error
        self.is_gray = channels == 1
        if loading := LOADING_ARGUMENTS & self.arguments.keys():
            raise TeacherError(f"The argument {min(loading)!r} of timm is not allowed here", "remove it")
        try:
            network: nn.Module = timm.create_model(architecture, num_classes=len(classes), **self.arguments)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise TeacherError(f"timm cannot create {architecture} with {self.arguments}", reason) from error
        self.network = to_channels_last(network)

    def forward(self, pixel_values: Tensor, residual_scale: None = None) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, 3, height, width), normalized.
            residual_scale: None; transformers take stochastic depth from outside, networks of timm do not.
        """
        assert residual_scale is None
        return ImageClassifierOutput(logits=self.network(self._input(pixel_values)))  # (B, K)

    @property
    def has_features(self) -> bool:
        """Whether the network supports :meth:`forward_intermediates`, as most of timm's networks do."""
        return hasattr(self.network, "forward_intermediates")

    def forward_intermediates(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits and the feature maps of the network's stages.

        Args:
            pixel_values: (B, 3, height, width), normalized.

        Returns:
            Logits (B, K), and feature maps (B, C, rows, columns) from the first stage to the last.
        """
        last, features = self.network.forward_intermediates(self._input(pixel_values))  # type: ignore[operator]
        return self.network.forward_head(last), features  # type: ignore[operator]

    def _input(self, pixel_values: Tensor) -> Tensor:
        return to_gray(pixel_values) if self.is_gray else pixel_values

    def reset_classifier(self, classes: tuple[str, ...], seed: int) -> None:
        """Replaces the classification layer by a newly initialized one for other classes.

        Args:
            classes: class names, in the order of the new logits.
            seed: the only source of randomness of the new weights.
        """
        with torch.random.fork_rng(devices=[]):  # timm draws from torch's global generator
            torch.manual_seed(seed)
            self.network.reset_classifier(len(classes))  # type: ignore[operator]
        self.classes = classes

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a directory that :meth:`from_pretrained` and ``timm.create_model("local-dir:...")`` load."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(directory / WEIGHTS_NAME, self.network.state_dict())
        preprocessing = timm_preprocessing(self.processor)
        if self.is_gray:
            preprocessing["input_size"][0] = 1
        content = {
            "architecture": self.architecture,
            "num_classes": len(self.classes),
            "model_args": self.arguments,
            "pretrained_cfg": {
                **preprocessing,
                "fixed_input_size": False,
                "num_classes": len(self.classes),
                "label_names": list(self.classes),
            },
        }
        if self.processor.value_range is not None:
            content["value_range"] = self.processor.value_range  # of images with more than 8 bits; not known to timm
        write_json(directory / CONFIG_NAME, content)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> TimmClassifier:
        """Loads a directory in timm's format, in evaluation mode.

        Raises:
            CheckpointError: a file is missing or corrupt.
            TeacherError: the installed timm does not have the architecture.
        """
        directory = Path(directory)
        content = read_json(directory / CONFIG_NAME)
        settings = content.get("pretrained_cfg")
        processor = for_rgb(processor_from_timm(settings if isinstance(settings, dict) else {}, content.get("value_range")))
        try:
            assert isinstance(settings, dict)  # processor_from_timm refuses anything else
            count = int(content["num_classes"])
            if not 0 < count <= MAX_CLASSES:
                raise ValueError("number of classes")
            names = settings.get("label_names") or placeholder_names(count)
            arguments = dict(content.get("model_args") or {})
            if settings["input_size"][0] == 1:
                arguments.setdefault("in_chans", 1)
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"A value in {directory / CONFIG_NAME} is missing or malformed ({error})", "save the model again"
            ) from error
        model = cls(str(content.get("architecture")), tuple(map(str, names)), processor, arguments)
        files = open_directory(directory, anchors=anchor_of(model.network.state_dict()))
        model.notes = load_network(model.network, files, directory)
        return model.eval()


def new_timm_classifier(
    architecture: str,
    classes: tuple[str, ...],
    processor: DeiTImageProcessor,
    arguments: dict[str, Any],
    seed: int,
) -> TimmClassifier:
    """Builds a newly initialized classifier, whose weights depend only on the seed; see :class:`TimmClassifier`."""
    with torch.random.fork_rng(devices=[]):  # timm draws from torch's global generator
        torch.manual_seed(seed)
        return TimmClassifier(architecture, classes, processor, arguments)


def check_architecture(name: str) -> None:
    """Checks that timm has an architecture.

    Raises:
        TeacherError: it does not; the message suggests the most similar name.
    """
    if Path(name).is_absolute():  # a path that existed when the run began
        raise TeacherError(f"{name} does not exist", "restore it, or check the path")
    if not timm.is_model(name):
        raise TeacherError(f"timm has no architecture {name!r}", did_you_mean(name, timm.list_models()))


def to_channels_last(network: nn.Module) -> nn.Module:
    """Converts a network to channels-last memory format, in place: convolutions run up to 1.5 times as fast."""
    return network.to(memory_format=torch.channels_last)


def processor_from_timm(settings: Mapping[str, Any], value_range: Any = None) -> DeiTImageProcessor:
    """Converts timm's ``pretrained_cfg`` to an image processor.

    Args:
        settings: timm's ``pretrained_cfg``.
        value_range: of images with more than 8 bits, as saved next to it; None if unknown.

    Raises:
        CheckpointError: a value is missing or malformed, or the crop mode or interpolation is not supported.
    """
    try:
        return DeiTImageProcessor(**settings_from_timm(settings), value_range=value_range)
    except ConfigError as error:
        raise CheckpointError(
            f"A value of timm's preprocessing is missing or malformed ({error.problem})", "save the model again"
        ) from error


def timm_preprocessing(processor: DeiTImageProcessor) -> dict[str, Any]:
    """Converts an image processor to timm's ``pretrained_cfg``; the inverse of :func:`processor_from_timm`.

    timm rounds the offset of an odd center crop half to even. Where the processor rounds down, as transformers does, timm's
    crop is a pixel apart.

    Raises:
        CheckpointError: ``pretrained_cfg`` cannot express what the processor does.
    """
    height, width = processor.input_hw
    channels = len(processor.image_mean) if isinstance(processor.image_mean, tuple) else 3
    statistics = processor.image_mean, processor.image_std
    mean, std = (value if isinstance(value, tuple) else (value,) * channels for value in statistics)
    mode = "border" if processor.do_pad else "center" if "shortest_edge" in processor.size or height != width else "squash"
    settings = {
        "input_size": [channels, height, width],
        "interpolation": next(name for name, value in INTERPOLATIONS.items() if value == processor.resample),
        "crop_pct": _crop_ratio(processor),
        "crop_mode": mode,
        "mean": list(mean),
        "std": list(std),
    }
    restored = processor_from_timm(settings).replace(crop_rounding=processor.crop_rounding)
    if not _same_pixels(processor, restored, channels):
        raise CheckpointError(
            "timm's pretrained_cfg cannot express the settings of this image processor", "use another format or crop"
        )
    return settings


def _same_pixels(first: DeiTImageProcessor, second: DeiTImageProcessor, channels: int) -> bool:
    """Returns whether two processors have the same output for three random images, including sides of odd length."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, channels), np.uint8) for height, width in ((300, 201), (97, 190), (64, 64))]
    return all(
        np.array_equal(
            *(
                processor(image, return_tensors="np", input_data_format="channels_last").pixel_values
                for processor in (first, second)
            )
        )
        for image in images
    )


def _crop_ratio(processor: DeiTImageProcessor) -> float:
    """Returns the ratio from which :meth:`DeiTImageProcessor.for_size` computes the same size before the crop."""
    height, width = processor.input_hw
    if processor.do_pad:
        return 1.0
    edge = processor.size.get("shortest_edge")
    resized = processor.size.get("height", edge or height), processor.size.get("width", edge or width)
    ratio = min(height / resized[0], width / resized[1])
    # for_size truncates height / ratio: rounding must not lose a pixel.
    return ratio if int(height / ratio) >= resized[0] and int(width / ratio) >= resized[1] else math.nextafter(ratio, 0)
