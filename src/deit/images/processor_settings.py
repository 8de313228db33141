"""The values that settings of an image processor take, in all the forms in which people and files write them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo

from deit.images.decoding import MAX_PIXELS

MAX_SIDE = 16_384

Size = dict[str, int]
Sides = tuple[int, int]
Statistic = float | tuple[float, ...]
Layout = Literal["channels_first", "channels_last"]

EDGES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})


def size_of(value: Any, square: bool = True) -> Any:
    """A size as people and old files write it -> a dictionary.

    Args:
        value: an integer, a pair (height, width), a dictionary, or the ``SizeDict`` of transformers.
        square: whether an integer means both sides; the shorter one if not.

    Example:
        >>> size_of(224), size_of(224, square=False), size_of([224, 448])
        ({'height': 224, 'width': 224}, {'shortest_edge': 224}, {'height': 224, 'width': 448})
    """
    if isinstance(value, int | np.integer):
        return {"height": int(value), "width": int(value)} if square else {"shortest_edge": int(value)}
    if isinstance(value, list | tuple) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return {name: side for name, side in value.items() if side is not None} if isinstance(value, Mapping) else value


def target_size(size: Size, height: int, width: int) -> Sides:
    """The (height, width) that an image of ``height`` and ``width`` is resized to.

    A side that rounds to nothing becomes 1, and one beyond ``MAX_SIDE`` is cut to it: a sliver of an image must not take
    all memory.

    Example:
        >>> target_size({"shortest_edge": 256}, 375, 500), target_size({"max_height": 224, "max_width": 224}, 375, 500)
        ((256, 341), (168, 224))
    """
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return _bounded(height * scale), _bounded(width * scale)
    short: float = size["shortest_edge"]
    low, high = min(height, width), max(height, width)
    edge = size["shortest_edge"]
    if high / low * edge > size.get("longest_edge", math.inf):
        short = size["longest_edge"] * low / high
        edge = round(short)
    if "longest_edge" in size and edge == low:
        return height, width
    longer = _bounded(short * high / low)
    return (_bounded(edge), longer) if height <= width else (longer, _bounded(edge))


def _bounded(side: float) -> int:
    return min(max(int(side), 1), MAX_SIDE)


def plain(value: Any) -> Any:
    return getattr(value, "value", value)  # members of transformers' enumerations


def _size(value: Any, info: ValidationInfo) -> Any:
    return size_of(value, info.data.get("default_to_square", True) or info.field_name != "size")


def _bearable(size: Size) -> Size:
    if len(size) == 2 and math.prod(size.values()) > MAX_PIXELS:
        raise ValueError(f"asks for more than {MAX_PIXELS:,} pixels")
    return size


def _both_sides(size: Size) -> Size:
    if set(size) != {"height", "width"}:
        raise ValueError("takes height and width")
    return _bearable(size)


def _known_edges(size: Size) -> Size:
    if set(size) not in EDGES:
        raise ValueError("takes height and width, or shortest_edge (and longest_edge), or max_height and max_width")
    return _bearable(size)


def _statistic(value: Any, info: ValidationInfo) -> Statistic:
    value = value.tolist() if hasattr(value, "tolist") else value
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError("takes a number, or one for each channel")
    if info.field_name == "image_std" and min(numbers) <= 0:
        raise ValueError("takes numbers above 0")
    return tuple(float(number) for number in value) if isinstance(value, list | tuple) else float(value)


Edges = Annotated[dict[str, Annotated[int, Field(ge=1, le=MAX_SIDE)]], BeforeValidator(_size)]
AnySize = Annotated[Edges, AfterValidator(_known_edges)]
Box = Annotated[Edges, AfterValidator(_both_sides)]
PerChannel = Annotated[Statistic, PlainValidator(_statistic)]
LayoutField = Annotated[Layout | None, BeforeValidator(plain)]
