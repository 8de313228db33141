"""Models of gray images among RGB images.

Every image is read as RGB. A model with one input channel therefore gets the luma of the pixels, which is linear: it is
computed in front of a network, or folded into the patch embedding of a transformer (:mod:`deit.checkpoints.adapting`). Both
compute on a gray image what the model computes on its single channel.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from deit.checkpoints.adapting import LUMA
from deit.config import ViTConfig
from deit.errors import CheckpointError
from deit.images.processor import DeiTImageProcessor

RGB = 3
GRAY_NOTE = "The model takes gray images: it gets the luma of RGB images"


def check_channels(channels: object, source: object) -> None:
    """Checks that a model takes gray or RGB images.

    Raises:
        CheckpointError: it does not.
    """
    if channels not in (1, RGB):
        raise CheckpointError(f"{source} takes images of {channels} channels", "use a model of RGB or gray images")


def rgb_fields(config: ViTConfig, source: object) -> dict[str, Any]:
    """Returns the configuration fields that make a model of gray images one of RGB images; empty if it is one.

    Raises:
        CheckpointError: the model takes neither.
    """
    check_channels(config.num_channels, source)
    return {} if config.num_channels == RGB else {"num_channels": RGB}


def to_gray(pixel_values: Tensor) -> Tensor:
    """Returns the luma (B, 1, height, width) of normalized RGB images (B, 3, height, width)."""
    return (pixel_values * pixel_values.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def for_rgb(processor: DeiTImageProcessor) -> DeiTImageProcessor:
    """Returns an image processor that normalizes three channels as the given one normalizes its single channel."""
    statistics = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    single = {name: value for name, value in statistics.items() if isinstance(value, tuple) and len(value) == 1}
    if not single:
        return processor
    processor = copy.copy(processor)
    for name, value in single.items():
        setattr(processor, name, value * RGB)
    return processor
