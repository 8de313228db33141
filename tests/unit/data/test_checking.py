"""Which images are unreadable, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deit.data.checking import check_images, without_unreadable
from deit.data.datasets.folders import folder_source
from deit.data.opening import open_data
from deit.data.sources import FileSource, subset
from deit.data.splits import Splits
from deit.errors import DataError, ImageError
from tests.unit.data.layouts import image_files, names

RUBBISH = b"\x89PNG\r\n\x1a\n and then nothing"


@pytest.fixture
def spoiled(parted: Path) -> Splits:
    (parted / "train" / "cat" / "000.png").write_bytes(RUBBISH)
    (parted / "train" / "dog" / "note.jpg").write_text("hello")
    (parted / "val" / "dog" / "001.png").write_bytes(b"")
    return open_data(parted)


def test_unreadable_files_are_named_before_training(spoiled: Splits) -> None:
    with pytest.raises(ImageError, match=r"cat/000\.png .*\(and 1 more\): .* --skip-unreadable"):
        without_unreadable(spoiled, skip=False)


def test_unreadable_files_are_left_out_and_counted_on_request(spoiled: Splits) -> None:
    splits, skipped = without_unreadable(spoiled, skip=True)
    assert skipped == 3
    assert np.bincount(splits.train.labels).tolist() == [3, 4]
    assert len(splits.validation.labels) == 3
    assert splits.test is not None
    assert not any("note.jpg" in name or name.endswith("cat/000.png") for name in names(splits.train))


def test_sound_files_are_left_as_they_are(parted: Path) -> None:
    splits, skipped = without_unreadable(open_data(parted), skip=False)
    assert skipped == 0
    assert isinstance(splits.train, FileSource)


def test_a_class_that_loses_its_last_image_is_named(parted: Path) -> None:
    for file in (parted / "train" / "dog").iterdir():
        file.write_bytes(RUBBISH)
    with pytest.raises(DataError, match="No readable image of the class 'dog' is left"):
        without_unreadable(open_data(parted), skip=True)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_that_loses_its_last_image_is_named(parted: Path, part: str) -> None:
    for file in (parted / part).rglob("*.png"):
        file.write_bytes(RUBBISH)
    with pytest.raises(DataError, match=f"No readable image of the {'validation' if part == 'val' else part} part is left"):
        without_unreadable(open_data(parted), skip=True)


def test_a_whole_check_finds_what_a_header_does_not_show(tmp_path: Path) -> None:
    image_files(tmp_path / "a", 2)
    image_files(tmp_path / "b", 1)
    cut = tmp_path / "a" / "001.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    source = folder_source(tmp_path)
    assert check_images(source, whole=False) == {}
    for checked, index in ((source, 1), (subset(source, [2, 1]), 1), (subset(subset(source, [2, 1]), [1]), 0)):
        problems = check_images(checked, whole=True)
        assert list(problems) == [index]
        assert "a/001.png" in str(problems[index])
