"""Image classifiers of transformers (ConvNeXT, RegNet, ResNet, Swin, ...), for evaluation and as teachers.

transformers is optional and imported only here. No code from a directory is run: its weights are read by our own readers, and
``auto_map`` and quantization are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.checkpoints.reading import open_directory
from deit.checkpoints.state_dicts import unwrap_names
from deit.config import MAX_CLASSES
from deit.errors import CheckpointError, ConfigError, DeiTError, MissingExtraError
from deit.images.processor import DeiTImageProcessor
from deit.models.channels import RGB, check_channels, for_rgb, to_gray
from deit.models.outputs import ImageClassifierOutput
from deit.system.files import CONFIG_NAME, NESTED_PROCESSOR_NAME, PROCESSOR_NAME, read_json

# Entries of config.json with which transformers would download or run something from outside the directory.
FORBIDDEN_ENTRIES = ("auto_map", "quantization_config", "backbone", "backbone_config", "model_args", "use_timm_backbone")
STEPS = ("do_resize", "do_center_crop", "do_normalize")
SETTINGS = ("size", "crop_size", "crop_pct", "resample", "image_mean", "image_std", *STEPS)


class HFClassifier(nn.Module):
    """An image classifier of transformers.

    Args:
        network: returns logits as ``network(pixel_values).logits``.
        classes: class names, in the order of the logits.
        processor: preprocessing of the network's input.

    Attributes:
        notes: how the stored weights were selected, one sentence each.
    """

    def __init__(self, network: nn.Module, classes: tuple[str, ...], processor: DeiTImageProcessor) -> None:
        super().__init__()
        self.notes: tuple[str, ...] = ()
        self.network, self.classes, self.processor = network, classes, processor
        self.is_gray = getattr(getattr(network, "config", None), "num_channels", RGB) == 1

    def forward(self, pixel_values: Tensor, residual_scale: None = None) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, 3, height, width), normalized.
            residual_scale: None; transformers take stochastic depth from outside, these networks do not.
        """
        assert residual_scale is None
        values = to_gray(pixel_values) if self.is_gray else pixel_values
        return ImageClassifierOutput(logits=self.network(values).logits)  # (B, K)

    @classmethod
    def from_pretrained(cls, directory: Path) -> HFClassifier:
        """Loads a directory, in evaluation mode and float32.

        Raises:
            CheckpointError: the model is not a classifier, a file is missing or corrupt, the preprocessing is not supported,
                or the configuration would load something from outside the directory.
            MissingExtraError: transformers is not installed.
        """
        content = read_json(directory / CONFIG_NAME)
        family = str(content.get("model_type"))[:40]
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError(f"A model of the family {family}", "teachers") from error
        if forbidden := [name for name in FORBIDDEN_ENTRIES if content.get(name)]:
            raise CheckpointError(
                f"{directory / CONFIG_NAME} has {forbidden[0]}, which would load more than this directory",
                "save the model without it",
            )
        check_channels(content.get("num_channels", RGB), directory)
        network, missing, notes = _load_network(transformers, directory)
        if missing:
            raise CheckpointError(f"{directory} lacks {min(missing)}", "pass a model that was trained to classify images")
        id2label = dict(network.config.id2label)
        if not 0 < len(id2label) <= MAX_CLASSES:
            raise CheckpointError(f"{directory} names {len(id2label)} classes", "save the model with id2label")
        classes = tuple(str(id2label[index]) for index in sorted(id2label))
        classifier = cls(network.eval(), classes, _load_processor(directory, content))
        classifier.notes = notes
        return classifier.eval()


def _load_network(transformers: Any, directory: Path) -> tuple[Any, set[str], tuple[str, ...]]:
    """Loads the model of a directory; returns it, the names of the tensors that its file lacks, and notes for the user."""
    options = {"trust_remote_code": False}
    local = {**options, "local_files_only": True}
    auto_class = transformers.AutoModelForImageClassification
    with _as_checkpoint_error(f"transformers cannot read a classifier from {directory}"):
        config = transformers.AutoConfig.from_pretrained(directory, **local)
        with torch.device("meta"):
            model = auto_class.from_config(config, **options)
        described = model.state_dict()
        anchors = (list(described)[-1],)  # of the head, whose name is the same in all versions of transformers
        files = open_directory(directory, anchors=anchors)
        stored = sum(math.prod(entry.shape) for file in files for entry in file.entries.values())
        needed = sum(tensor.numel() for tensor in described.values())
        if needed > stored:  # checked before memory is allocated for the sizes that a configuration claims
            raise CheckpointError(
                f"{directory} holds {stored:,} values, and its configuration describes a classifier of {needed:,}",
                "pass a model that was trained to classify images",
            )
        names = unwrap_names([name for file in files for name in file.entries], anchors, False, str(directory), known=None)
        read = {name: tensor for file in files for name, tensor in file.read(file.entries).items()}
        state = {name: read[stored_name] for name, stored_name in names.stored.items()}
        network, report = type(model).from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    return network, set(report["missing_keys"]), (*(note for file in files for note in file.notes), *names.notes)


@contextmanager
def _as_checkpoint_error(problem: str) -> Iterator[None]:
    """Turns any exception that transformers raises for a malformed directory into a :class:`CheckpointError`."""
    try:
        yield
    except DeiTError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise CheckpointError(problem, reason) from error


def _load_processor(directory: Path, config: Mapping[str, Any]) -> DeiTImageProcessor:
    """Loads the preprocessing saved with a model; without one, returns the DeiT paper's evaluation at the input size."""
    if not any((directory / name).is_file() for name in (PROCESSOR_NAME, NESTED_PROCESSOR_NAME)):
        size = config.get("image_size")
        return DeiTImageProcessor.for_size(size, size) if isinstance(size, int) else DeiTImageProcessor.for_size(224, 224)
    import transformers

    with _as_checkpoint_error(f"transformers cannot read the preprocessing in {directory}"):
        auto_class: Any = transformers.AutoImageProcessor
        content = auto_class.from_pretrained(directory, trust_remote_code=False, local_files_only=True).to_dict()
    try:
        return processor_from_hf(content)
    except ConfigError as error:
        raise CheckpointError(f"The preprocessing in {directory} is not supported: {error.problem}", error.remedy) from error


def processor_from_hf(content: Mapping[str, Any]) -> DeiTImageProcessor:
    """Converts an image processor of transformers to one that has the same output.

    Args:
        content: all settings, as its ``to_dict`` returns them.

    Raises:
        ConfigError: processor class or setting that :class:`DeiTImageProcessor` does not support.
    """
    processor_type = str(content.get("image_processor_type"))
    settings = {name: content[name] for name in SETTINGS if content.get(name) is not None}
    settings |= {name: bool(content.get(name)) for name in STEPS}
    if not content.get("do_rescale", True) or abs(float(content.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ConfigError("pixels are not rescaled by 1/255", "save the model with another processor")
    processor = for_rgb(DeiTImageProcessor(**settings, image_processor_type=processor_type))
    _ = processor.input_hw, processor.rgb_statistics  # raise unless the input has one size and three channels
    return processor
