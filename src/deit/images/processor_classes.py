"""The image processor classes of transformers: what each does by default, and which one does what given settings say.

A file of settings names a class. transformers 4.x takes it at its word: its ``DeiTImageProcessor`` refuses ``shortest_edge``,
and its ``ViTImageProcessor`` does not crop. transformers 5.x gives all classes the same steps, with different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from deit.errors import ConfigError
from deit.images.crops import IMAGENET_MEAN, IMAGENET_STD, crop_settings
from deit.images.processor_settings import parse_size

BILINEAR = int(Image.Resampling.BILINEAR)
BICUBIC = int(Image.Resampling.BICUBIC)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SQUARE = {"height": 224, "width": 224}
_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_MOBILE_NET: dict[str, Any] = {"size": {"shortest_edge": 256}, "default_to_square": False, "resample": BILINEAR}
# Classes that resize to `size` and crop to `crop_size`, without ImageProcessor -> defaults other than those of DeiT.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DeiT": {},
    "ViT": {"size": _SQUARE, "resample": BILINEAR, "do_center_crop": False},
    "Beit": {"size": _SQUARE, "do_center_crop": False},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "DINOv3ViT": {
        "size": _SQUARE,
        "resample": BILINEAR,
        "do_center_crop": False,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
    "MobileNetV1": _MOBILE_NET,
    "MobileNetV2": _MOBILE_NET,
    "Siglip": {"size": _SQUARE, "do_center_crop": False, "default_to_square": False},
}
CROP_BY_RATIO = "ConvNext"  # the class that derives the resized side from the input size and `crop_pct`
SQUASH_FROM = 384  # pixels; from this input size on, it resizes to the input size and does not crop

CLASS_SETTINGS = frozenset({"image_processor_type", "feature_extractor_type", "crop_pct"})  # accepted besides the fields

# Arguments of transformers' image processors that are accepted and have no effect: the values are those of its Pillow
# backend whatever backend is asked for, and all images have one size after the crop.
IGNORED_ARGUMENTS = frozenset(
    {
        *("use_fast", "backend", "disable_grouping", "padding", "image_seq_length"),
        *("config", "processor_class", "auto_map", "_valid_processor_keys", "_valid_kwargs_names", "_processor_class"),
    }
)


def settings_of_class(class_name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of an image processor of transformers: the defaults of its class, replaced by those given.

    Args:
        class_name: such as ``ViTImageProcessor``, ``ViTImageProcessorFast`` or ``ViTFeatureExtractor``.
        content: settings that differ from the defaults; ``crop_pct``, too, of a ConvNext processor.

    Raises:
        ConfigError: :class:`deit.DeiTImageProcessor` cannot do what this class does.

    Example:
        >>> settings_of_class("ViTFeatureExtractor", {"size": 384})
        {'size': 384, 'resample': 2, 'do_center_crop': False}
    """
    family = class_name.removesuffix("Fast").removesuffix("Pil")
    family = family.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    settings = {name: value for name, value in content.items() if name != "crop_pct"}
    if family in DEFAULTS:
        return {**DEFAULTS[family], **settings}
    if family == CROP_BY_RATIO:
        return {**settings, **_crop_by_ratio(content)}
    raise ConfigError(
        f"The image processor {class_name[:60]} is not supported",
        "if it resizes, crops and normalizes as one of DeiT, name image_processor_type='DeiTImageProcessor'",
    )


def class_of_settings(settings: Mapping[str, Any]) -> str:
    """Returns the class of transformers, 4.x and 5.x, that does what the settings say.

    Example:
        >>> steps = {"do_pad": False, "do_center_crop": True}
        >>> class_of_settings({**steps, "size": {"height": 256, "width": 256}})
        'DeiTImageProcessor'
        >>> class_of_settings({**steps, "size": {"shortest_edge": 256}})
        'CLIPImageProcessor'
    """
    size = settings["size"]
    if settings["do_pad"] or "max_height" in size or "longest_edge" in size:
        return "DeiTImageProcessorFast"  # 4.x has these only in the classes that use torchvision
    if "shortest_edge" in size:
        return "CLIPImageProcessor"
    return "DeiTImageProcessor" if settings["do_center_crop"] else "ViTImageProcessor"


def _crop_by_ratio(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a ConvNext processor that say how an image is fitted to the input."""
    size = parse_size(content.get("size", SQUASH_FROM), square=False)
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    if not isinstance(edge, int) or not content.get("do_resize", True):
        raise ConfigError("A ConvNext image processor without a shortest_edge is not supported", "save it with another class")
    squash = edge >= SQUASH_FROM
    resized = edge if squash else int(edge / float(content.get("crop_pct") or 0.875))
    settings = crop_settings("squash" if squash else "keep", (edge, edge), (resized, resized))
    return {**settings, "crop_rounding": None}  # transformers rounds down
