"""Finds the range of values of a data set whose images have more than 8 bits, once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deit.data.file_info import Depth, depth_of, file_info
from deit.data.sources import EncodedFiles, ImageSource, MultiLabelSource, Subset, encoded_file, subset
from deit.data.splits import Splits
from deit.errors import ImageError
from deit.images.conversion import Bounds, ValueRange, standard_bounds
from deit.images.decoding import EncodedImage, read_header
from deit.system.threads import thread_map

MAX_HEADERS = 2_000  # images whose header is read
MAX_DECODED = 64  # images of each kind whose values are read
PERCENTILES = (1, 99)  # of the lowest and the highest value of the images


def find_value_range(source: ImageSource) -> ValueRange | None:
    """Returns what is black and white in the images of a data set that have more than 8 bits.

    The narrowest usual range is taken that contains the values of a sample of evenly spaced images: 0 to 1 (of floats), 255,
    1,023, 4,095, 16,383 or 65,535. If none does, as for signed values, the range is from the lowest to the highest value,
    except for one percent of the images at either end. Integers and floats have ranges of their own.

    Returns:
        The range; None if no image of the sample has more than 8 bits.
    """
    indices = _spaced(len(source.labels), MAX_HEADERS)
    depths = _depths(subset(source, indices))
    ranges = {}
    for kind, depth in (("integers", Depth.INTEGERS), ("floats", Depth.FLOATS)):
        deep = [index for index, found in zip(indices, depths, strict=True) if found == depth]
        sample = [deep[position] for position in _spaced(len(deep), MAX_DECODED)]
        extrema = [bounds for bounds in thread_map(lambda index: _extrema(source, index), sample) if bounds is not None]
        if extrema:
            ranges[kind] = _joint_bounds("F" if kind == "floats" else "I", extrema)
    return ValueRange(**ranges) if ranges else None


def with_value_range(source: ImageSource, value_range: ValueRange | None) -> ImageSource:
    """Returns the same images, converted to 8 bits by a range."""
    if value_range is None:
        return source
    if isinstance(source, Subset | MultiLabelSource):
        return replace(source, base=with_value_range(source.base, value_range))
    return source.with_value_range(value_range) if isinstance(source, EncodedFiles) else source


def splits_with_value_range(splits: Splits) -> Splits:
    """Returns the same splits, whose images are all converted to 8 bits by the range of the training split."""
    value_range = find_value_range(splits.train)
    train, validation = (with_value_range(source, value_range) for source in (splits.train, splits.validation))
    test = None if splits.test is None else with_value_range(splits.test, value_range)
    notes = (*splits.notes, *range_notes(value_range))
    return replace(splits, train=train, validation=validation, test=test, value_range=value_range, notes=notes)


def range_notes(value_range: ValueRange | None) -> list[str]:
    """Returns what the user is told about a range."""
    return [] if value_range is None else [f"Images of more than 8 bits: {value_range} become black to white"]


def _spaced(count: int, limit: int) -> list[int]:
    """Returns at most ``limit`` evenly spaced indices below ``count``."""
    indices: list[int] = np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int)).tolist() if count else []
    return indices


def _depths(source: ImageSource) -> Sequence[int]:
    """Returns the :class:`Depth` of each image: 8 bits if it is unreadable."""
    if (info := file_info(source)) is not None:
        known: list[int] = info.depths.tolist()
        return known

    def depth(index: int) -> Depth:
        file = encoded_file(source, index)
        try:
            return Depth.EIGHT_BITS if file is None else depth_of(read_header(file).mode)
        except ImageError:
            return Depth.EIGHT_BITS

    return thread_map(depth, range(len(source.labels)))


def _extrema(source: ImageSource, index: int) -> Bounds | None:
    file = encoded_file(source, index)
    assert file is not None
    try:
        with EncodedImage(file) as image:
            return image.extrema()
    except ImageError:
        return None


def _joint_bounds(mode: str, extrema: list[Bounds]) -> Bounds:
    lows, highs = np.asarray(extrema).T
    usual = standard_bounds(mode, lows.min(), highs.max())
    if usual is not None:
        return usual
    low, high = (float(np.percentile(values, percent)) for values, percent in zip((lows, highs), PERCENTILES, strict=True))
    return (low, high) if low < high else (low, low + 1)
