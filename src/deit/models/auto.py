"""Any saved classifier, ours or a convolutional one of timm, behind one face: a model, its preprocessing, its classes.

A convolutional network trains, saves and answers like our models. Its directory is the one that timm writes for the hub:
``config.json`` with ``architecture`` and ``pretrained_cfg``, and ``model.safetensors``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from deit.checkpoints.reading import Checkpoint, model_path, open_checkpoint
from deit.checkpoints.timm_config import is_transformer
from deit.checkpoints.weights import load_into, read_tensors, write_tensors
from deit.config import MAX_CLASSES, ViTConfig
from deit.errors import CheckpointError, TeacherError
from deit.hub import fetch, hub_arguments
from deit.images.processor import Crop, DeiTImageProcessor
from deit.models import plain_convnet  # noqa: F401 - registers the architecture with timm
from deit.models.hf_classifier import HFClassifier, is_hf_classifier
from deit.models.modeling import TransformerClassifier, classifier_of
from deit.models.outputs import ImageClassifierOutput
from deit.system.files import CONFIG_NAME, NESTED_PROCESSOR_NAME, PROCESSOR_NAME, WEIGHTS_NAME, read_json, write_json

# With these, timm.create_model would fetch or unpickle weights from elsewhere.
LOADING_ARGUMENTS = frozenset({"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})


class TimmClassifier(nn.Module):
    """A classifier of timm.

    Args:
        architecture: timm's name of it, such as ``regnety_004``.
        classes: names, in the order of the logits.
        processor: how an image becomes its input.
        arguments: further arguments of ``timm.create_model``.

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
        self.architecture, self.classes, self.processor = architecture, classes, processor
        self.arguments = dict(arguments or {})
        check_architecture(architecture)
        if loading := LOADING_ARGUMENTS & self.arguments.keys():
            raise TeacherError(f"The argument {min(loading)!r} of timm is not allowed here", "remove it")
        try:
            network: nn.Module = timm.create_model(architecture, num_classes=len(classes), **self.arguments)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise TeacherError(f"timm cannot make {architecture} with {self.arguments}", reason) from error
        self.network = fast_layout(network)

    def forward(self, pixel_values: Tensor, residual_scale: None = None) -> ImageClassifierOutput:
        """(B, 3, height, width) -> logits (B, K). ``residual_scale`` is there for the transformers' sake."""
        assert residual_scale is None
        return ImageClassifierOutput(logits=self.network(pixel_values))

    @property
    def has_features(self) -> bool:
        """Whether :meth:`forward_intermediates` works: most of timm's networks have what it takes."""
        return hasattr(self.network, "forward_intermediates")

    def forward_intermediates(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, height, width) -> logits (B, K), and what its stages made of the images: maps (B, C, h, w), first to last."""
        last, maps = self.network.forward_intermediates(pixel_values)  # type: ignore[operator]
        return self.network.forward_head(last), maps  # type: ignore[operator]

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """Replace the last layer by a fresh one for other classes, with weights that depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):  # timm draws from torch's global generator
            torch.manual_seed(seed)
            self.network.reset_classifier(len(classes))  # type: ignore[operator]
        self.classes = classes

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that ``timm.create_model("local-dir:...")`` and this class read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(directory / WEIGHTS_NAME, self.network.state_dict())
        content = {
            "architecture": self.architecture,
            "num_classes": len(self.classes),
            "model_args": self.arguments,
            "pretrained_cfg": {
                **timm_preprocessing(self.processor),
                "fixed_input_size": False,
                "num_classes": len(self.classes),
                "label_names": list(self.classes),
            },
        }
        write_json(directory / CONFIG_NAME, content)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> TimmClassifier:
        """Read such a directory, in evaluation mode.

        Raises:
            CheckpointError: a file is missing or damaged.
            TeacherError: an architecture that this timm does not have.
        """
        directory = Path(directory)
        content = read_json(directory / CONFIG_NAME)
        settings = content.get("pretrained_cfg")
        processor = processor_from_timm(settings if isinstance(settings, dict) else {})
        try:
            assert isinstance(settings, dict)  # or processor_from_timm has refused it
            names = settings.get("label_names") or range(int(content["num_classes"]))
            if not 0 < len(names) <= MAX_CLASSES:
                raise ValueError("the number of classes")
            arguments = dict(content.get("model_args") or {})
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory / CONFIG_NAME} lacks or garbles {error}", "save the model again") from error
        model = cls(str(content.get("architecture")), tuple(map(str, names)), processor, arguments)
        load_into(model.network, read_tensors(directory / WEIGHTS_NAME))
        return model.eval()


def fast_layout(network: nn.Module) -> nn.Module:
    """The network with its channels last in memory, in which convolutions run up to half as fast again; in place."""
    return network.to(memory_format=torch.channels_last)


INTERPOLATIONS = {
    "nearest": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}
CROP_MODES: dict[str, Crop] = {"center": "keep", "squash": "squash", "border": "pad"}

Classifier = TransformerClassifier | TimmClassifier  # what is trained here


@dataclass
class LoadedClassifier:
    """A model that answers ``model(pixel_values).heads``, with what it needs to be asked.

    Attributes:
        path: where it was read; None for one that was not.
    """

    model: nn.Module
    processor: DeiTImageProcessor
    classes: tuple[str, ...]
    path: Path | None = None


def load_classifier(name: str | Path, *, ema: bool = False, **arguments: Any) -> LoadedClassifier:
    """A saved classifier, in evaluation mode.

    Args:
        name: a directory or file in any format that :func:`deit.load_model` reads, a directory of timm, one of another
            family of transformers, a name on the hub, or a variant's name. A run's directory stands for its best model.
        ema: take the moving average of the weights, where a training checkpoint holds both.
        arguments: where on the hub, and fields of the configuration, as in :func:`deit.load_model`.

    Raises:
        CheckpointError: there is no such checkpoint, or no classifier in it.
        MissingExtraError: another family's, and transformers is not installed.
    """
    options, fields = hub_arguments(arguments)
    path = model_path(fetch(name, **options))
    if is_convolutional(path):
        network = TimmClassifier.from_pretrained(path)
        return LoadedClassifier(network, network.processor, network.classes, path)
    if is_hf_classifier(path):
        other = HFClassifier.from_pretrained(path)
        return LoadedClassifier(other, other.processor, other.classes, path)
    checkpoint = open_checkpoint(path, ema=ema, fields=fields)
    model = classifier_of(checkpoint, fields)
    model.config.return_dict = True  # whatever its file says: here it is asked by name
    return LoadedClassifier(model, processor_beside(checkpoint, model.config), model.config.classes, path)


def processor_beside(checkpoint: Checkpoint, config: ViTConfig) -> DeiTImageProcessor:
    """How images become a checkpoint's input: as it says itself, or the authors' evaluation where it says nothing."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if checkpoint.preprocessing:
        processor = processor_from_timm(checkpoint.preprocessing)
    elif (folder / PROCESSOR_NAME).is_file() or (folder / NESTED_PROCESSOR_NAME).is_file():
        processor = DeiTImageProcessor.from_pretrained(folder)
    else:
        return DeiTImageProcessor.for_size(*config.image_hw)
    if checkpoint.config.image_hw == config.image_hw:
        return processor
    return processor.with_input_size(*config.image_hw)


def is_convolutional(path: Path) -> bool:
    """Whether a directory holds a network that only timm can build."""
    if not path.is_dir() or not (path / CONFIG_NAME).is_file():
        return False
    architecture = read_json(path / CONFIG_NAME).get("architecture")
    return architecture is not None and not is_transformer(str(architecture))


def check_architecture(name: str) -> None:
    """Whether timm has an architecture.

    Raises:
        TeacherError: it has not; the message names the nearest.
    """
    if Path(name).is_absolute():  # it was there when the run began
        raise TeacherError(f"{name} does not exist", "put it back, or check the path")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)
        raise TeacherError(f"timm has no architecture {name!r}", f"did you mean {near[0]}")


def fresh_network(
    architecture: str,
    classes: tuple[str, ...],
    processor: DeiTImageProcessor,
    arguments: dict[str, Any],
    seed: int,
) -> TimmClassifier:
    """A network to train, with weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):  # timm draws from torch's global generator
        torch.manual_seed(seed)
        return TimmClassifier(architecture, classes, processor, arguments)


def processor_from_timm(settings: Mapping[str, Any]) -> DeiTImageProcessor:
    """timm's ``pretrained_cfg`` -> preprocessing.

    Raises:
        CheckpointError: a value is missing or garbled, or a way to crop or resample that we do not have.
    """
    interpolation, mode = settings.get("interpolation", "bicubic"), settings.get("crop_mode") or "center"
    if interpolation not in INTERPOLATIONS or mode not in CROP_MODES:
        raise CheckpointError(f"timm's preprocessing {interpolation}, {mode} is not known here", "save the model with another")
    try:
        _, height, width = (int(side) for side in settings["input_size"])
        processor = DeiTImageProcessor.for_size(
            height, width, float(settings["crop_pct"]), settings["mean"], settings["std"], CROP_MODES[mode]
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"timm's preprocessing lacks or garbles {error}", "save the model again") from error
    processor.resample = INTERPOLATIONS[interpolation]
    return processor


def timm_preprocessing(processor: DeiTImageProcessor) -> dict[str, Any]:
    """The inverse of :func:`processor_from_timm`.

    Raises:
        CheckpointError: timm has no words for what the processor does.
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
    if not _same_pixels(processor, processor_from_timm(settings), channels):
        raise CheckpointError("timm has no words for this image processor's settings", "choose another format or crop")
    return settings


def _same_pixels(one: DeiTImageProcessor, other: DeiTImageProcessor, channels: int) -> bool:
    """Whether two processors make the same of three odd images."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, channels), np.uint8) for height, width in ((300, 201), (97, 190), (64, 64))]
    return all(
        np.array_equal(*(processor(image, "np", input_data_format="channels_last").pixel_values for processor in (one, other)))
        for image in images
    )


def _crop_ratio(processor: DeiTImageProcessor) -> float:
    """The ratio by which :meth:`DeiTImageProcessor.for_size` finds the sides before the crop again."""
    height, width = processor.input_hw
    if processor.do_pad:
        return 1.0
    edge = processor.size.get("shortest_edge")
    edges = processor.size.get("height", edge or height), processor.size.get("width", edge or width)
    ratio = min(height / edges[0], width / edges[1])
    # Rounding must not lose a pixel on the way back.
    return ratio if int(height / ratio) >= edges[0] and int(width / ratio) >= edges[1] else math.nextafter(ratio, 0)
