"""Finds and reads the settings of an image processor among the files of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deit.errors import CheckpointError
from deit.hub import fetch_file
from deit.images.timm_preprocessing import settings_from_timm
from deit.system.files import CONFIG_NAME, NESTED_PROCESSOR_NAME, PROCESSOR_NAME, read_json

_CLASS_ENTRIES = {"image_processor_type", "feature_extractor_type"}


def read_settings(name: str | Path, file_name: str, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Returns the file that holds the settings of a model's image processor, and the settings.

    Args:
        name: see :func:`deit.hub.fetch_file`.
        file_name: name of the file of settings in a model directory.
        options: keyword arguments of :func:`deit.hub.fetch`.

    Raises:
        CheckpointError: there is no such file, or it is not JSON.
    """
    path = fetch_file(name, (file_name, NESTED_PROCESSOR_NAME, CONFIG_NAME), **options)
    directory = path.parent
    nested = directory / NESTED_PROCESSOR_NAME
    if path != Path(name) and nested.is_file():
        path = nested
    content = read_json(path)
    if isinstance(content.get("image_processor"), dict):  # as transformers 5.x nests it
        return path, content["image_processor"]
    if path.name in (NESTED_PROCESSOR_NAME, CONFIG_NAME) and (directory / file_name).is_file():
        path = directory / file_name
        content = read_json(path)
    if path.name not in (NESTED_PROCESSOR_NAME, CONFIG_NAME):
        return path, _with_class(content, directory)
    config = read_json(directory / CONFIG_NAME) if (directory / CONFIG_NAME).is_file() else {}
    if "architecture" in config:  # written by timm
        preprocessing = config.get("pretrained_cfg", config)
        return directory / CONFIG_NAME, settings_from_timm(preprocessing if isinstance(preprocessing, dict) else {})
    raise CheckpointError(
        f"{directory} has no {PROCESSOR_NAME}",
        "pass a model that was saved with its image processor, or make one by for_size",
    )


def _with_class(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Returns settings with the name of their class, which old files of ViT lack: their model's configuration tells."""
    unnamed = not _CLASS_ENTRIES & content.keys() and (directory / CONFIG_NAME).is_file()
    if unnamed and read_json(directory / CONFIG_NAME).get("model_type") == "vit":
        return {**content, "image_processor_type": "ViTImageProcessor"}
    return content
