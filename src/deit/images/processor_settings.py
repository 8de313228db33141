"""Types of an image processor's settings, validated and converted from every form that users and files write."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo

from deit.images.conversion import ValueRange
from deit.images.limits import DEFAULT_MAX_PIXELS
from deit.images.resizing import HeightWidth

MAX_SIDE = 16_384
FILTERS = {member.name.lower(): member for member in Image.Resampling}

Size = dict[str, int]
Statistic = float | tuple[float, ...]
Layout = Literal["channels_first", "channels_last"]

SIZE_KEYS = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})


def parse_size(value: Any, square: bool = True) -> Any:
    """Converts a size in any form to a dictionary. Returns values of other types unchanged, for validation to reject.

    Args:
        value: an integer, a pair (height, width), a dictionary, or the ``SizeDict`` of transformers.
        square: an integer sets both sides; if False, the shorter side.

    Example:
        >>> parse_size(224), parse_size(224, square=False), parse_size([224, 448])
        ({'height': 224, 'width': 224}, {'shortest_edge': 224}, {'height': 224, 'width': 448})
    """
    if isinstance(value, int | np.integer):
        return {"height": int(value), "width": int(value)} if square else {"shortest_edge": int(value)}
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return {name: side for name, side in value.items() if side is not None} if isinstance(value, Mapping) else value


def target_size(size: Size, height: int, width: int) -> HeightWidth:
    """Returns the (height, width) that an image of ``height`` and ``width`` is resized to.

    Sides are clamped to 1..``MAX_SIDE``, so that an image of extreme aspect ratio does not exhaust memory.

    Example:
        >>> target_size({"shortest_edge": 256}, 375, 500), target_size({"max_height": 224, "max_width": 224}, 375, 500)
        ((256, 341), (168, 224))
    """
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return _clamp_side(height * scale), _clamp_side(width * scale)
    exact_edge: float = size["shortest_edge"]
    shorter, longer = min(height, width), max(height, width)
    edge = size["shortest_edge"]
    if longer / shorter * edge > size.get("longest_edge", math.inf):
        exact_edge = size["longest_edge"] * shorter / longer
        edge = round(exact_edge)
    if "longest_edge" in size and edge == shorter:
        return height, width
    other_edge = _clamp_side(exact_edge * longer / shorter)
    return (_clamp_side(edge), other_edge) if height <= width else (other_edge, _clamp_side(edge))


def enum_value(value: Any) -> Any:
    """Returns the value of a member of one of transformers' enumerations; other values are returned unchanged."""
    return getattr(value, "value", value)


def _parse_resample(value: Any) -> Any:
    """Returns Pillow's number of a filter, which may be given by its name, as torchvision's ``InterpolationMode`` is."""
    value = enum_value(value)
    return int(FILTERS[value]) if isinstance(value, str) and value in FILTERS else value


def _clamp_side(side: float) -> int:
    return min(max(int(side), 1), MAX_SIDE)


def _parse_size_field(value: Any, info: ValidationInfo) -> Any:
    return parse_size(value, info.data.get("default_to_square", True) or info.field_name != "size")


def _check_pixels(size: Size) -> Size:
    if len(size) == 2 and math.prod(size.values()) > DEFAULT_MAX_PIXELS:
        raise ValueError(f"has more than {DEFAULT_MAX_PIXELS:,} pixels")
    return size


def _check_height_and_width(size: Size) -> Size:
    if set(size) != {"height", "width"}:
        raise ValueError("takes height and width")
    return _check_pixels(size)


def _check_keys(size: Size) -> Size:
    if set(size) not in SIZE_KEYS:
        raise ValueError("takes height and width, or shortest_edge (and longest_edge), or max_height and max_width")
    return _check_pixels(size)


def _parse_statistic(value: Any, info: ValidationInfo) -> Statistic:
    value = value.tolist() if hasattr(value, "tolist") else value
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError("takes a number, or one per channel")
    if info.field_name == "image_std" and min(numbers) <= 0:
        raise ValueError("takes numbers above 0")
    return tuple(float(number) for number in value) if isinstance(value, list | tuple) else float(value)


def _parse_value_range(value: Any) -> Any:
    return None if value is None else ValueRange.from_dict(value).to_dict()


_SizeDict = Annotated[dict[str, Annotated[int, Field(ge=1, le=MAX_SIDE)]], BeforeValidator(_parse_size_field)]
SizeField = Annotated[_SizeDict, AfterValidator(_check_keys)]
HeightWidthField = Annotated[_SizeDict, AfterValidator(_check_height_and_width)]
StatisticField = Annotated[Statistic, PlainValidator(_parse_statistic)]
ResampleField = Annotated[int, Field(ge=0, le=5), BeforeValidator(_parse_resample)]
LayoutField = Annotated[Layout | None, BeforeValidator(enum_value)]
ValueRangeField = Annotated[dict[str, list[float]] | None, PlainValidator(_parse_value_range)]


class ImageProcessorKwargs(TypedDict, total=False):
    """Settings of the image processors, as keyword arguments."""

    do_convert_rgb: bool | None
    do_resize: bool | None
    default_to_square: bool | None
    size: int | Sequence[int] | Mapping[str, int] | None
    resample: int | None
    do_center_crop: bool | None
    crop_size: int | Sequence[int] | Mapping[str, int] | None
    crop_rounding: Literal["even"] | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | Sequence[float] | None
    image_std: float | Sequence[float] | None
    do_pad: bool | None
    pad_size: int | Sequence[int] | Mapping[str, int] | None
    data_format: str | None
    input_data_format: str | None
    value_range: Mapping[str, Sequence[float]] | None
    device: Any
