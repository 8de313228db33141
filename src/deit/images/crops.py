"""How images are fitted to the input of a model: crops, the evaluation of the DeiT paper, statistics of ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from deit.errors import ConfigError
from deit.images.resizing import HeightWidth

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_RATIO = 0.875  # the authors resize the shorter side to int(size / 0.875) before the center crop

Crop = Literal["keep", "squash", "pad"]


def crop_settings(crop: str, input_size: HeightWidth, resized: HeightWidth) -> dict[str, Any]:
    """Returns the image processor's settings of a crop.

    Args:
        crop: see :meth:`deit.DeiTImageProcessor.for_size`.
        input_size: (height, width) of the model's input.
        resized: (height, width) that images are resized to before the crop.

    Raises:
        ConfigError: the crop is unknown.

    Example:
        >>> crop_settings("keep", (224, 224), (256, 256))["size"]
        {'shortest_edge': 256}
    """
    if crop not in get_args(Crop):
        raise ConfigError(f"Unknown crop {crop!r}", f"pass one of {', '.join(get_args(Crop))}")
    steps = {"do_resize": True, "do_center_crop": crop != "pad", "do_pad": crop == "pad", "crop_size": input_size}
    if crop == "pad":
        size = {"max_height": input_size[0], "max_width": input_size[1]}
        return {**steps, "size": size, "pad_size": input_size, "crop_rounding": None}
    keep = crop == "keep" and resized[0] == resized[1] and input_size[0] == input_size[1]
    rounding = "even" if crop == "keep" else None  # the pixels of the authors, or of transformers
    return {**steps, "size": {"shortest_edge": resized[0]} if keep else resized, "pad_size": None, "crop_rounding": rounding}


def evaluation_settings(
    height: int, width: int, crop_ratio: float, mean: Sequence[float], std: Sequence[float], crop: str
) -> dict[str, Any]:
    """Returns the settings of :meth:`deit.DeiTImageProcessor.for_size`, which describes the arguments."""
    resized = int(height / crop_ratio), int(width / crop_ratio)
    return {**crop_settings(crop, (height, width), resized), "image_mean": tuple(mean), "image_std": tuple(std)}
