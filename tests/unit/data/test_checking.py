"""Finding unreadable images before training and on request."""

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

DAMAGED_PNG = b"\x89PNG\r\n\x1a\n and no image data"


@pytest.fixture
def damaged(split_folder: Path) -> Splits:
    (split_folder / "train" / "cat" / "000.png").write_bytes(DAMAGED_PNG)
    (split_folder / "train" / "dog" / "note.jpg").write_text("hello")
    (split_folder / "val" / "dog" / "001.png").write_bytes(b"")
    return open_data(split_folder)


def test_unreadable_file_is_an_error_before_training(damaged: Splits) -> None:
    with pytest.raises(ImageError, match=r"cat/000\.png .*\(and 1 more\): .* --skip-unreadable"):
        without_unreadable(damaged, skip=False)


def test_unreadable_files_are_skipped_and_counted(damaged: Splits) -> None:
    splits, skipped = without_unreadable(damaged, skip=True)
    assert skipped == 3
    assert np.bincount(splits.train.labels).tolist() == [3, 4]
    assert len(splits.validation.labels) == 3
    assert splits.test is not None
    assert not any("note.jpg" in name or name.endswith("cat/000.png") for name in names(splits.train))


def test_readable_files_are_not_copied(split_folder: Path) -> None:
    splits, skipped = without_unreadable(open_data(split_folder), skip=False)
    assert skipped == 0
    assert isinstance(splits.train, FileSource)


def test_class_without_a_readable_image_is_an_error(split_folder: Path) -> None:
    for file in (split_folder / "train" / "dog").iterdir():
        file.write_bytes(DAMAGED_PNG)
    with pytest.raises(DataError, match="No readable image of the class 'dog' is left"):
        without_unreadable(open_data(split_folder), skip=True)


@pytest.mark.parametrize(("folder", "split"), [("val", "validation"), ("test", "test")])
def test_split_without_a_readable_image_is_an_error(split_folder: Path, folder: str, split: str) -> None:
    for file in (split_folder / folder).rglob("*.png"):
        file.write_bytes(DAMAGED_PNG)
    with pytest.raises(DataError, match=f"No readable image of the {split} split is left"):
        without_unreadable(open_data(split_folder), skip=True)


def test_decoding_finds_damage_after_the_header(tmp_path: Path) -> None:
    image_files(tmp_path / "a", 2)
    image_files(tmp_path / "b", 1)
    truncated = tmp_path / "a" / "001.png"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    source = folder_source(tmp_path)
    assert check_images(source, decode=False) == {}
    for checked, index in ((source, 1), (subset(source, [2, 1]), 1), (subset(subset(source, [2, 1]), [1]), 0)):
        errors = check_images(checked, decode=True)
        assert list(errors) == [index]
        assert "a/001.png" in str(errors[index])
