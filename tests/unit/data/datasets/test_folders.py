"""Folders of images: classes, splits, and errors."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from deit.data.datasets.folders import folder_source, folder_splits, unlabeled_source
from deit.data.opening import open_data
from deit.errors import DataError
from tests.conftest import CLASSES
from tests.unit.data.layouts import image_files


def test_every_image_of_a_folder_is_found_and_readable(photo_folder: Path) -> None:
    source = folder_source(photo_folder)
    assert source.classes == CLASSES
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    names = {source.name(index) for index in range(8)}
    assert str(Path("golden retriever", "from phone", "2021 été", "прозрачная.webp")) in names
    for index in range(len(source.labels)):
        image = source.load(index)
        assert image.mode == "RGB"
        assert source.name(index).startswith(CLASSES[source.labels[index]])


def test_order_does_not_depend_on_the_file_system(photo_folder: Path) -> None:
    source = folder_source(photo_folder)
    files = [source.path(index) for index in range(24)]
    per_class = [files[start : start + 8] for start in range(0, 24, 8)]
    assert all(part == sorted(part) for part in per_class)


def test_class_names_of_two_splits_match_across_unicode_forms(split_folder: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été")
    image_files(split_folder / "train" / composed, 2)
    image_files(split_folder / "val" / decomposed, 1)
    splits = open_data(split_folder)
    assert splits.classes == ("cat", "dog", composed)
    assert np.bincount(splits.validation.labels).tolist() == [2, 2, 1]


def test_folders_whose_names_differ_in_unicode_form_are_one_class(tmp_path: Path) -> None:
    image_files(tmp_path / "cat", 1)
    image_files(tmp_path / unicodedata.normalize("NFC", "é"), 1)
    image_files(tmp_path / unicodedata.normalize("NFD", "é"), 2)
    source = folder_source(tmp_path)
    assert len(source.classes) == 2
    assert np.bincount(source.labels).tolist() == [1, 3]


def test_hidden_folders_are_ignored(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image_files(tmp_path / name, 1)
        image_files(tmp_path / name / ".ipynb_checkpoints", 1)
    assert len(folder_source(tmp_path).labels) == 2


def test_folder_with_splits_keeps_them(split_folder: Path) -> None:
    splits = open_data(split_folder)
    assert splits.test is not None
    counts = [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation, splits.test)]
    assert counts == [[4, 4], [2, 2], [1, 1]]
    assert "train, val, test" in splits.origin
    assert splits.held_out[0] == "test"


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_split(split_folder: Path, name: str) -> None:
    (split_folder / "val").rename(split_folder / name)
    assert len(open_data(split_folder).validation.labels) == 4


def test_without_a_validation_split_training_images_are_held_out(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "val")
    splits = open_data(split_folder, validation_fraction=0.25)
    assert splits.test is not None
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 2]


def test_missing_folder_and_missing_images_are_different_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        folder_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no folders in it"):
        open_data(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="has no folders in it"):
        open_data(tmp_path)


def test_one_class_is_an_error(tmp_path: Path) -> None:
    image_files(tmp_path / "only", 3)
    with pytest.raises(DataError, match="has one class, 'only'"):
        open_data(tmp_path)


def test_class_without_images_is_an_error(tmp_path: Path) -> None:
    image_files(tmp_path / "cat", 3)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"The class 'dog'.* holds no images"):
        open_data(tmp_path)


def test_class_that_only_validation_has_is_an_error(split_folder: Path) -> None:
    image_files(split_folder / "val" / "wolf", 1)
    with pytest.raises(DataError, match="val has a class 'wolf' that the training split lacks"):
        open_data(split_folder)


def test_class_that_validation_lacks_is_allowed(split_folder: Path) -> None:
    shutil.rmtree(split_folder / "val" / "cat")
    assert open_data(split_folder).validation.labels.tolist() == [1, 1]  # still counted as the second class


def test_empty_validation_split_is_an_error(split_folder: Path) -> None:
    for file in (split_folder / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="val holds no images"):
        open_data(split_folder)


def test_class_of_one_image_stays_in_training(tmp_path: Path) -> None:
    image_files(tmp_path / "many", 5)
    image_files(tmp_path / "one", 1)
    splits = open_data(tmp_path)
    assert np.bincount(splits.train.labels, minlength=2).tolist() == [4, 1]
    shutil.rmtree(tmp_path / "many")
    image_files(tmp_path / "two", 1)
    with pytest.raises(DataError, match="one image per class"):
        open_data(tmp_path)


def test_unlabeled_images_at_any_depth(tmp_path: Path) -> None:
    image_files(tmp_path, 1)
    image_files(tmp_path / "2021" / "summer", 2)
    image_files(tmp_path / ".thumbnails", 2)
    source = unlabeled_source(tmp_path)
    assert source.names == ("000.png", "2021/summer/000.png", "2021/summer/001.png")
    assert (source.classes, source.labels.tolist()) == (("image",), [0, 0, 0])
    with pytest.raises(DataError, match="holds 1 images"):
        (tmp_path / "one").mkdir()
        image_files(tmp_path / "one", 1)
        unlabeled_source(tmp_path / "one")
    with pytest.raises(DataError, match="is not a folder"):
        unlabeled_source(tmp_path / "none")


def test_folder_without_splits_is_unsplit(split_folder: Path) -> None:
    assert not folder_splits(split_folder).unsplit
    assert folder_splits(split_folder / "train").unsplit
