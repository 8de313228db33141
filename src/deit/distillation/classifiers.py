"""Any saved classifier, ours or a convolutional one of timm, behind one face: a model, its preprocessing, its classes.

A convolutional network trains, saves and answers like our models. Its directory is the one that timm writes for the hub:
``config.json`` with ``architecture`` and ``pretrained_cfg``, and ``model.safetensors``.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from deit.checkpoints.weights import WEIGHTS_NAME, load_into, read_tensors, write_tensors
from deit.config import CONFIG_NAME, MAX_CLASSES
from deit.errors import CheckpointError, TeacherError
from deit.files import read_json, write_json
from deit.image_processor import PROCESSOR_NAME, DeiTImageProcessor
from deit.modeling import TransformerClassifier, load_model
from deit.outputs import ImageClassifierOutput

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
            self.network: nn.Module = timm.create_model(architecture, num_classes=len(classes), **self.arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise TeacherError(f"timm cannot make {architecture} with {self.arguments}", str(error)) from error

    def forward(self, pixel_values: Tensor, residual_scale: None = None) -> ImageClassifierOutput:
        """(B, 3, height, width) -> logits (B, K). ``residual_scale`` is there for the transformers' sake."""
        assert residual_scale is None
        return ImageClassifierOutput(logits=self.network(pixel_values))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that ``timm.create_model("local-dir:...")`` and this class read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(directory / WEIGHTS_NAME, self.network.state_dict())
        height, width = self.processor.crop_size["height"], self.processor.crop_size["width"]
        content = {
            "architecture": self.architecture,
            "num_classes": len(self.classes),
            "model_args": self.arguments,
            "pretrained_cfg": {
                "input_size": [3, height, width],
                "fixed_input_size": False,
                "interpolation": "bicubic",
                "crop_pct": _crop_ratio(self.processor),
                "mean": list(self.processor.image_mean),
                "std": list(self.processor.image_std),
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
        settings = content.get("pretrained_cfg", {})
        try:
            _, height, width = (int(side) for side in settings["input_size"])
            names = settings.get("label_names") or range(int(content["num_classes"]))
            if not 0 < len(names) <= MAX_CLASSES:
                raise ValueError("the number of classes")
            processor = DeiTImageProcessor.for_size(
                height, width, float(settings["crop_pct"]), settings["mean"], settings["std"]
            )
            arguments = dict(content.get("model_args") or {})
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory / CONFIG_NAME} lacks or garbles {error}", "save the model again") from error
        model = cls(str(content.get("architecture")), tuple(map(str, names)), processor, arguments)
        load_into(model.network, read_tensors(directory / WEIGHTS_NAME))
        return model.eval()


Classifier = TransformerClassifier | TimmClassifier


@dataclass
class LoadedClassifier:
    """A model that answers ``model(pixel_values).heads``, with what it needs to be asked."""

    model: Classifier
    processor: DeiTImageProcessor
    classes: tuple[str, ...]


def load_classifier(directory: str | Path) -> LoadedClassifier:
    """A saved classifier, in evaluation mode. A run's directory stands for its best model.

    Raises:
        CheckpointError: no such directory, or no classifier in it.
    """
    path = model_directory(directory)
    if "architecture" in read_json(path / CONFIG_NAME):
        network = TimmClassifier.from_pretrained(path)
        return LoadedClassifier(network, network.processor, network.classes)
    model = load_model(path)
    if not (path / PROCESSOR_NAME).is_file():
        height, width = model.config.image_hw
        return LoadedClassifier(model, DeiTImageProcessor.for_size(height, width), model.config.classes)
    return LoadedClassifier(model, DeiTImageProcessor.from_pretrained(path), model.config.classes)


def model_directory(directory: str | Path) -> Path:
    """The model directory that a user means: itself, or a run's ``best``.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(directory)
    for candidate in (path, path / "best"):
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "check the path of the model or run directory")
    raise CheckpointError(f"{path} holds no {CONFIG_NAME}", "pass a model directory, or a run directory with a finished epoch")


def check_architecture(name: str) -> None:
    """Whether timm has an architecture.

    Raises:
        TeacherError: it has not; the message names the nearest.
    """
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


def _crop_ratio(processor: DeiTImageProcessor) -> float:
    height, edge = processor.crop_size["height"], processor.size.get("shortest_edge", processor.size.get("height", 1))
    ratio = height / edge
    return ratio if int(height / ratio) == edge else math.nextafter(ratio, 0)  # rounding must not lose a pixel on the way back
