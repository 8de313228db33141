"""Images to calibrate and compare on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit.data.datasets.folders import folder_source
from deit.data.image_hashes import ImageHashes, content_hashes
from deit.data.opening import open_data
from deit.data.splits import DataRecord, Splits
from deit.errors import DataError
from deit.export.calibration import CalibrationImages, SampleCrops, calibration_images
from tests.helpers import MemorySource


def mean_color(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB"), np.float64)
    return np.moveaxis(pixels.mean(axis=(0, 1), keepdims=True), -1, 0)


def test_images_are_evenly_spaced() -> None:
    source = MemorySource(30)
    pixels = CalibrationImages(source, "images").pixels(mean_color, 10)
    expected = [mean_color(source.load(index)) for index in (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)]
    np.testing.assert_array_equal(pixels, np.stack(expected))
    assert len(CalibrationImages(source, "images").pixels(mean_color, 99)) == 30


def test_unreadable_images_are_left_out() -> None:
    images = CalibrationImages(MemorySource(12, broken=frozenset({0, 5})), "images of mine")
    assert len(images.pixels(mean_color, 12)) == 10
    images = CalibrationImages(MemorySource(12, broken=frozenset(range(7))), "images of mine")
    with pytest.raises(DataError, match="Too few images are readable: 5 images of mine: pass a data set with at least 8"):
        images.pixels(mean_color, 12)


def test_data_is_split_as_for_training(photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=7, validation_fraction=0.375)
    train, validation = calibration_images(photo_folder, DataRecord(splits.fingerprint, 7, 0.375))
    assert (len(train.source.labels), len(validation.source.labels)) == (15, 9)
    assert validation.description == f"held-out images of {photo_folder.name}"


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 18), (0.125, 21)])
def test_few_held_out_images_are_not_compared_on(photo_folder: Path, fraction: float, count: int) -> None:
    train, validation = calibration_images(photo_folder, DataRecord("", 7, fraction))
    assert train == validation
    assert (len(validation.source.labels), validation.description) == (count, f"images of {photo_folder.name}")


@pytest.mark.parametrize(
    ("seen", "compared", "words"), [(9, 15, "held-out images of"), (20, 24, "which the model was trained on")]
)
def test_model_is_not_compared_on_training_images(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, seen: int, compared: int, words: str
) -> None:
    source = folder_source(photo_folder)
    monkeypatch.setattr("deit.export.calibration.open_unlabeled", lambda *_: Splits(source, source, None, "", ""))
    train = np.sort(content_hashes(source)[:seen])
    _, validation = calibration_images(photo_folder, None, ImageHashes(train, train[:0]))
    assert len(validation.source.labels) == compared
    assert words in validation.description


def test_sample_crops_depend_on_the_index_only() -> None:
    train, validation = calibration_images(None, None)
    assert train is validation
    first, second = SampleCrops().load(3), SampleCrops().load(4)
    assert first.width == first.height
    assert first.tobytes() == SampleCrops().load(3).tobytes()
    assert first.tobytes() != second.tobytes()
