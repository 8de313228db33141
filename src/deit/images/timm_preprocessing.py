"""Preprocessing as timm saves it, in ``pretrained_cfg``, translated to the settings of an image processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit.errors import CheckpointError
from deit.images.crops import Crop, evaluation_settings

INTERPOLATIONS = {  # timm's name -> filter of Pillow
    "nearest": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}
CROP_MODES: dict[str, Crop] = {"center": "keep", "squash": "squash", "border": "pad"}  # timm's name -> ours


def settings_from_timm(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the image processor's settings.

    Args:
        preprocessing: ``input_size``, ``crop_pct``, ``mean`` and ``std``, and optionally ``interpolation`` and ``crop_mode``.

    Raises:
        CheckpointError: a value is missing or malformed, or the crop mode or interpolation is not supported.

    Example:
        >>> statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
        >>> settings_from_timm({"input_size": [3, 224, 224], "crop_pct": 0.9, **statistics})["size"]
        {'shortest_edge': 248}
    """
    interpolation, mode = preprocessing.get("interpolation", "bicubic"), preprocessing.get("crop_mode") or "center"
    if interpolation not in INTERPOLATIONS or mode not in CROP_MODES:
        raise CheckpointError(f"timm's preprocessing {interpolation}, {mode} is not supported", "save the model with another")
    try:
        _, height, width = (int(side) for side in preprocessing["input_size"])
        ratio = float(preprocessing["crop_pct"])
        settings = evaluation_settings(height, width, ratio, preprocessing["mean"], preprocessing["std"], CROP_MODES[mode])
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"A value of timm's preprocessing is missing or malformed ({error})", "save the model again"
        ) from error
    rounding = None if settings["do_pad"] else "even"  # timm crops with torchvision
    return {**settings, "resample": INTERPOLATIONS[interpolation], "crop_rounding": rounding}
