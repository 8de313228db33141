"""Ranges of values of data sets whose images have more than 8 bits: found once, applied everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit.data.checking import check_data, check_images, without_unreadable
from deit.data.opening import open_data
from deit.data.sources import ArraySource, FileSource, open_encoded
from deit.data.value_range import find_value_range, with_value_range
from deit.errors import ImageError
from deit.images.conversion import ValueRange
from tests.helpers import pattern

SIDE = 24


def noise(seed: int) -> np.ndarray:
    """Returns (24, 24) values in 0..1, some of which are 0 and 1."""
    values = np.asarray(pattern(SIDE, SIDE, seed).convert("L")).astype(np.float64)
    return np.asarray((values - values.min()) / (values.max() - values.min()))


KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], ValueRange | None]] = {
    "12 bits in 16": (lambda values: (values * 4000).astype(np.uint16), ValueRange(integers=(0, 4095))),
    "10 bits in 32": (lambda values: (values * 1000).astype(np.int32), ValueRange(integers=(0, 1023))),
    "16 bits": (lambda values: (values * 60_000).astype(np.uint16), ValueRange(integers=(0, 65_535))),
    "signed": (lambda values: (values * 4000 - 1000).astype(np.int32), ValueRange(integers=(-1000, 3000))),
    "fractions": (lambda values: values.astype(np.float32), ValueRange(floats=(0, 1))),
    "large floats": (lambda values: (values * 4000).astype(np.float32), ValueRange(floats=(0, 4095))),
    "negative floats": (lambda values: (values * 2 - 1).astype(np.float32), ValueRange(floats=(-1, 1))),
    "8 bits": (lambda values: (values * 255).astype(np.uint8), None),
}


def write_data(folder: Path, convert: Callable[[np.ndarray], np.ndarray], count: int = 6) -> None:
    """Writes a data set of two classes; the second is dark."""
    for name, scale in (("bright", 1.0), ("dark", 0.1)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(convert(noise(index) * scale)).save(folder / name / f"{index}.tif")


@pytest.mark.parametrize(("convert", "expected"), KINDS.values(), ids=KINDS)
def test_range_of_a_data_set(convert: Callable[[np.ndarray], np.ndarray], expected: ValueRange | None, tmp_path: Path) -> None:
    write_data(tmp_path, convert)
    splits, skipped = without_unreadable(open_data(tmp_path), skip=False)
    assert splits.value_range == expected
    assert not skipped
    for source in (splits.train, splits.validation):
        levels = [np.asarray(source.load(index)) for index in range(len(source.labels))]
        means = [
            np.mean([level.mean() for level, label in zip(levels, source.labels, strict=True) if label == k]) for k in (0, 1)
        ]
        assert means[0] > means[1] + 25  # the brightness of the classes differs as before
        assert max(level.max() for level in levels) > 200


def test_images_of_8_bits_are_unchanged_by_a_range(tmp_path: Path) -> None:
    write_data(tmp_path, KINDS["8 bits"][0])
    source = open_data(tmp_path).train
    ranged = with_value_range(source, ValueRange(integers=(0, 9), floats=(0, 9)))
    assert ranged.load(0) == source.load(0)
    assert with_value_range(source, None) is source


def test_integers_and_floats_have_ranges_of_their_own(tmp_path: Path) -> None:
    write_data(tmp_path / "a", KINDS["12 bits in 16"][0], 2)
    write_data(tmp_path / "b", KINDS["fractions"][0], 2)
    names = tuple(str(path) for path in sorted(tmp_path.rglob("*.tif")))
    source = FileSource(tmp_path, names, ("x",), np.zeros(len(names), np.int64))
    assert find_value_range(source) == ValueRange(integers=(0, 4095), floats=(0, 1))


def test_outliers_do_not_decide_the_range_of_signed_values(tmp_path: Path) -> None:
    count = 150
    for index in range(count):
        values = KINDS["signed"][0](noise(index))
        values[0, 0] = -30_000 if index == 77 else values[0, 0]
        Image.fromarray(values).save(tmp_path / f"{index:03}.tif")
    names = tuple(f"{index:03}.tif" for index in range(count))
    found = find_value_range(FileSource(tmp_path, names, ("x",), np.zeros(count, np.int64)))
    assert found is not None
    assert found.integers is not None
    assert found.integers[0] > -20_000
    assert found.integers[1] == 3000


def test_unreadable_images_and_images_in_memory_have_no_range(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0rubbish")
    source = FileSource(tmp_path, ("a.tif", "none.tif"), ("x",), np.zeros(2, np.int64))
    assert find_value_range(source) is None
    assert find_value_range(ArraySource(np.zeros((2, 4, 4), np.uint8), ("x",), np.zeros(2, np.int64), "digit")) is None
    assert find_value_range(replace(source, names=(), labels=np.zeros(0, np.int64))) is None


def test_range_applies_to_images_that_are_cropped_while_they_are_decoded(tmp_path: Path) -> None:
    write_data(tmp_path, KINDS["12 bits in 16"][0])
    source = without_unreadable(open_data(tmp_path), skip=False)[0].train
    with open_encoded(source, 0) as encoded:
        assert encoded.decode() == source.load(0)


def test_data_check_converts_by_the_range_of_the_data(tmp_path: Path) -> None:
    write_data(tmp_path, KINDS["signed"][0])
    source = open_data(tmp_path).train
    with pytest.raises(ImageError, match="does not say which values are black and white"):
        source.load(0)
    result = check_data(tmp_path)
    assert result.complete
    assert result.notes[-1] == "Images of more than 8 bits: integers -1000 to 3000 become black to white"


@pytest.mark.parametrize("bands", [2, 5, 6])
def test_multi_band_tiffs_are_refused_with_the_remedy(bands: int, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(multi_band(bands))
    source = FileSource(tmp_path, ("a.tif",), ("x",), np.zeros(1, np.int64))
    error: Any = check_images(source, decode=False)[0]
    assert f"a.tif is a TIFF of {bands} bands of 16-bit integers, which is not supported: convert it to RGB" in str(error)


def multi_band(bands: int) -> bytes:
    """Returns a TIFF of 1 x 1 pixels with several bands of 16 bits."""
    import struct

    tags = [(256, 4, 1), (257, 4, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, bands), (278, 4, 1)]
    tags += [(279, 4, 2 * bands)]
    end = 8 + 2 * bands
    directory = b"".join(struct.pack("<HHII", number, kind, 1, value) for number, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, end) + bytes(2 * bands) + struct.pack("<H", len(tags)) + directory + bytes(4)
