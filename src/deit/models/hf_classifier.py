"""Image classifiers of other families (ConvNeXT, RegNet, ResNet, Swin, ...) in directories that transformers wrote.

They answer, as teachers or in evaluation; they are not trained here. transformers is optional, and imported only for them.
Nothing is unpickled and no code of a directory is run: safetensors alone, without ``auto_map``, without quantization.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.checkpoints.tensors import open_index, open_tensors
from deit.config import MAX_CLASSES
from deit.errors import CheckpointError, ConfigError, DeiTError, MissingExtraError
from deit.images.processor import DeiTImageProcessor
from deit.models.outputs import ImageClassifierOutput
from deit.system.files import CONFIG_NAME, INDEX_NAME, NESTED_PROCESSOR_NAME, PROCESSOR_NAME, WEIGHTS_NAME, read_json

OURS = ("deit", "vit")
# What would fetch or run something from elsewhere.
FORBIDDEN = ("auto_map", "quantization_config", "backbone", "backbone_config", "model_args", "use_timm_backbone")
# Processors that resize to `size` and crop to `crop_size`, each where it is switched on, as ours does.
PLAIN = ("ViT", "DeiT", "Bit", "Beit", "MobileNetV1", "MobileNetV2", "DINOv3ViT")
BY_RATIO = "ConvNext"  # `size` is the input's, and the crop's share of the resized image is `crop_pct`
SQUASHED_FROM = 384  # pixels; it crops nothing from this size on
SETTINGS = ("size", "crop_size", "resample", "image_mean", "image_std", "do_resize", "do_center_crop", "do_normalize")


class HFClassifier(nn.Module):
    """An image classifier of transformers.

    Args:
        network: answers ``network(pixel_values).logits``.
        classes: names, in the order of the logits.
        processor: how an image becomes its input.
    """

    def __init__(self, network: nn.Module, classes: tuple[str, ...], processor: DeiTImageProcessor) -> None:
        super().__init__()
        self.network, self.classes, self.processor = network, classes, processor

    def forward(self, pixel_values: Tensor, residual_scale: None = None) -> ImageClassifierOutput:
        """(B, 3, height, width) -> logits (B, K). ``residual_scale`` is there for the other models' sake."""
        assert residual_scale is None
        return ImageClassifierOutput(logits=self.network(pixel_values).logits)

    @classmethod
    def from_pretrained(cls, directory: Path) -> HFClassifier:
        """Read a directory, in evaluation mode and float32.

        Raises:
            CheckpointError: no classifier in it, a file that is missing or damaged, preprocessing that is not known here, or
                something that would have to be trusted.
            MissingExtraError: transformers is not installed.
        """
        content = read_json(directory / CONFIG_NAME)
        family = str(content.get("model_type"))[:40]
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError(f"A model of the family {family}", "teachers") from error
        if trusted := [name for name in FORBIDDEN if content.get(name)]:
            raise CheckpointError(
                f"{directory / CONFIG_NAME} has {trusted[0]}, which would load more than this directory",
                "save the model without it",
            )
        network, missing = _network(transformers, directory)
        if missing:
            raise CheckpointError(f"{directory} lacks {min(missing)}", "pass a model that was trained to classify images")
        names = dict(network.config.id2label)
        if not 0 < len(names) <= MAX_CLASSES:
            raise CheckpointError(f"{directory} names {len(names)} classes", "save the model with id2label")
        classes = tuple(str(names[place]) for place in sorted(names))
        return cls(network.eval(), classes, _processor(directory, content)).eval()


def is_hf_classifier(path: Path) -> bool:
    """Whether a directory's configuration names a model that is not ours and that transformers may know."""
    if not path.is_dir() or not (path / CONFIG_NAME).is_file():
        return False
    family = read_json(path / CONFIG_NAME).get("model_type")
    return isinstance(family, str) and family not in OURS


def _network(transformers: Any, directory: Path) -> tuple[Any, set[str]]:
    """The model in a directory, and the names of the tensors that its file lacks."""
    if (directory / INDEX_NAME).is_file():
        files = open_index(directory / INDEX_NAME)
    else:
        files = [open_tensors(directory / WEIGHTS_NAME)]
    stored = sum(math.prod(entry.shape) for file in files for entry in file.entries.values())
    options = {"trust_remote_code": False}
    local = {**options, "local_files_only": True}
    make = transformers.AutoModelForImageClassification
    with _as_one_error(f"transformers cannot read a classifier from {directory}"):
        config = transformers.AutoConfig.from_pretrained(directory, **local)
        with torch.device("meta"):
            needed = sum(tensor.numel() for tensor in make.from_config(config, **options).state_dict().values())
        if needed > stored:  # before memory is taken for what a configuration alone claims
            raise CheckpointError(
                f"{directory} holds {stored:,} values, and its configuration describes a classifier of {needed:,}",
                "pass a model that was trained to classify images",
            )
        network, report = make.from_pretrained(
            directory, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
    return network, set(report["missing_keys"])


@contextmanager
def _as_one_error(problem: str) -> Iterator[None]:
    """Whatever transformers makes of a hostile or unknown directory is one error of ours."""
    try:
        yield
    except DeiTError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise CheckpointError(problem, reason) from error


def _processor(directory: Path, config: Mapping[str, Any]) -> DeiTImageProcessor:
    """The preprocessing beside a model; the authors' evaluation at the configuration's size where there is none."""
    if not any((directory / name).is_file() for name in (PROCESSOR_NAME, NESTED_PROCESSOR_NAME)):
        size = config.get("image_size")
        return DeiTImageProcessor.for_size(size, size) if isinstance(size, int) else DeiTImageProcessor.for_size(224, 224)
    import transformers

    with _as_one_error(f"transformers cannot read the preprocessing in {directory}"):
        make: Any = transformers.AutoImageProcessor
        content = make.from_pretrained(directory, trust_remote_code=False, local_files_only=True).to_dict()
    try:
        return processor_from_hf(content)
    except ConfigError as error:
        raise CheckpointError(f"The preprocessing in {directory} is not known here: {error.problem}", error.remedy) from error


def processor_from_hf(content: Mapping[str, Any]) -> DeiTImageProcessor:
    """All settings of a processor of transformers -> ours that does the same.

    Raises:
        ConfigError: a kind or a setting that ours has no words for.
    """
    kind = str(content.get("image_processor_type"))
    settings = {name: content[name] for name in SETTINGS if content.get(name) is not None}
    settings |= {name: bool(content.get(name)) for name in SETTINGS if name.startswith("do_")}
    if not content.get("do_rescale", True) or abs(float(content.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ConfigError("pixels are not rescaled by 1/255", "save the model with another processor")
    if kind.startswith(BY_RATIO):
        edge = dict(settings["size"]).get("shortest_edge")
        if not isinstance(edge, int) or not settings["do_resize"]:
            raise ConfigError(f"{kind} without a shortest_edge", "save the model with another processor")
        ratio = float(content.get("crop_pct") or 1.0)
        squash = edge >= SQUASHED_FROM
        fixed = DeiTImageProcessor.for_size(edge, edge, 1.0 if squash else ratio, crop="squash" if squash else "keep")
        settings |= {name: getattr(fixed, name) for name in ("size", "crop_size", "do_center_crop")}
    elif not kind.startswith(PLAIN):
        raise ConfigError(f"the kind {kind[:60]}", "save the model with a ViTImageProcessor")
    processor = DeiTImageProcessor(**settings)
    _ = processor.input_hw, processor.rgb_statistics  # an input of one size, of three channels
    return processor
