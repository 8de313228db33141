"""Loads any saved classifier: DeiT and ViT models, networks of timm, and classifiers of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from deit.checkpoints.reading import Checkpoint, open_checkpoint
from deit.checkpoints.timm_config import is_transformer
from deit.config import ViTConfig
from deit.hub import PROCESSOR_FILES, directory_of, fetch, hub_arguments
from deit.images.processor import DeiTImageProcessor
from deit.models.channels import GRAY_NOTE, RGB, for_rgb, rgb_fields
from deit.models.hf_classifier import HFClassifier
from deit.models.modeling import classifier_from_checkpoint
from deit.models.timm_classifier import TimmClassifier, processor_from_timm
from deit.system.files import CONFIG_NAME, read_json

MODEL_TYPES = ("deit", "vit")  # of config.json, which deit.models.modeling implements


@dataclass
class LoadedClassifier:
    """A classifier with its preprocessing and class names.

    Attributes:
        model: returns logits as ``model(pixel_values).heads``.
        processor: preprocessing of the model's input.
        classes: class names, in the order of the logits.
        path: file or directory that the model was loaded from; None for a model that was built in memory.
        notes: how its weights were selected and changed, one sentence each.
    """

    model: nn.Module
    processor: DeiTImageProcessor
    classes: tuple[str, ...]
    path: Path | None = None
    notes: tuple[str, ...] = ()


def load_classifier(name: str | Path, *, ema: bool = False, **arguments: Any) -> LoadedClassifier:
    """Loads a saved classifier of RGB images, in evaluation mode; one of gray images gets their luma.

    Args:
        name: file or directory in any format that :func:`deit.load_model` reads, directory of a network of timm, directory
            of a classifier of transformers, name on the hub, or name of a variant. The directory of a run refers to its best
            model.
        ema: load the exponential moving average of the weights, if a training checkpoint has both.
        arguments: arguments of the hub and configuration fields, as in :func:`deit.load_model`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not a classifier.
        MissingExtraError: a classifier of transformers, which is not installed.
    """
    options, fields = hub_arguments(arguments)
    path = fetch(name, **options)
    wrapper = wrapper_class(path)
    if wrapper is not None:
        wrapped = wrapper.from_pretrained(path)
        return LoadedClassifier(wrapped, wrapped.processor, wrapped.classes, path, wrapped.notes)
    checkpoint = open_checkpoint(path, ema=ema, fields=fields)
    rgb = rgb_fields(checkpoint.config, path)
    model = classifier_from_checkpoint(checkpoint, {**rgb, **fields})
    model.config.return_dict = True  # the output is accessed by name, whatever the configuration file says
    notes = (*checkpoint.notes, GRAY_NOTE) if rgb else checkpoint.notes
    return LoadedClassifier(model, load_processor(checkpoint, model.config), model.config.classes, path, notes)


def wrapper_class(path: Path) -> type[TimmClassifier] | type[HFClassifier] | None:
    """Detects the format of a directory by its ``config.json``.

    Returns:
        The class that wraps networks of this format; None for DeiT and ViT models, which need no wrapper, and for files.
    """
    if not path.is_dir() or not (path / CONFIG_NAME).is_file():
        return None
    content = read_json(path / CONFIG_NAME)
    architecture, model_type = content.get("architecture"), content.get("model_type")
    if architecture is not None and not is_transformer(str(architecture)):
        return TimmClassifier
    if isinstance(model_type, str) and model_type not in MODEL_TYPES:
        return HFClassifier
    return None


def load_processor(checkpoint: Checkpoint, config: ViTConfig) -> DeiTImageProcessor:
    """Loads the preprocessing that is saved with a checkpoint; without one, returns the evaluation of the DeiT paper.

    Args:
        checkpoint: opened checkpoint.
        config: configuration of the loaded model, whose input size may differ from that of the checkpoint.
    """
    paths = [checkpoint.path, checkpoint.base_path or checkpoint.path]  # an adapter may have none of its own
    folders = [folder for path in paths if (folder := directory_of(path)) is not None]
    folder = next((folder for folder in folders if any((folder / name).is_file() for name in PROCESSOR_FILES)), None)
    if checkpoint.preprocessing:
        config_file = folders[0] / CONFIG_NAME
        beside = read_json(config_file) if config_file.is_file() else {}
        processor = processor_from_timm(checkpoint.preprocessing, beside.get("value_range"))
    elif folder is not None:
        processor = DeiTImageProcessor.from_pretrained(folder)
    else:
        return DeiTImageProcessor.for_size(*config.image_hw)
    if config.num_channels == RGB:
        processor = for_rgb(processor)
    if checkpoint.config.image_hw == config.image_hw:
        return processor
    return processor.with_input_size(*config.image_hw)
