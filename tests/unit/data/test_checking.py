"""Finding unreadable images before training and on request."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from deit.data.checking import Copies, check_data, check_images, without_unreadable
from deit.data.datasets.folders import folder_source
from deit.data.opening import open_data
from deit.data.sources import FileSource, subset
from deit.data.splits import Splits
from deit.errors import DataError, ImageError
from deit.images.limits import pixel_limit
from deit.images.listing import OtherKind
from deit.images.sniffing import FileKind
from tests.helpers import pattern
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


def test_check_counts_what_a_folder_has(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image_files(tmp_path / name, 5)
        for number in range(5):
            pattern(9, 7, seed=ord(name) + number).save(tmp_path / name / f"{number:03}.png")
    (tmp_path / "a" / "001.png").write_bytes(DAMAGED_PNG)
    pattern(300, 7).save(tmp_path / "b" / "large.png")
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / ".hidden").touch()
    with pixel_limit(1000):
        found = check_data(tmp_path)
    assert ["a/001.png" in text for text in found.damaged] == [True]
    assert ["b/large.png" in text for text in found.too_large] == [True]
    assert found.class_counts == {"a": {"train": 4, "validation": 1}, "b": {"train": 5, "validation": 1}}
    assert found.left_out.counts == {FileKind.TEXT: 1, OtherKind.SYSTEM: 1}
    assert (found.complete, found.obstacle) == (False, "")
    content = found.to_dict()
    assert json.loads(json.dumps(content)) == content
    assert {"kind": "text file", "count": 1, "examples": ["b/notes.txt"]} in content["not_read"]


def test_check_finds_equal_files(split_folder: Path) -> None:
    for number, file in enumerate(sorted(split_folder.rglob("*.png"))):
        pattern(9, 7, seed=number).save(file)
    assert check_data(split_folder).copies == Copies([], [], [])
    first = split_folder / "train" / "cat" / "000.png"
    for name in ("train/dog/copy.jpg", "val/cat/copy.png", "train/cat/copy", "val/dog/copy.png"):
        shutil.copy(first, split_folder / name)
    copies = check_data(split_folder).copies
    assert copies.in_two_classes == ["cat/000.png and dog/copy.jpg", "cat/000.png and dog/copy.png"]
    assert copies.in_two_splits == ["cat/000.png and cat/copy.png"]
    assert copies.repeated == ["cat/000.png and cat/copy"]
    assert copies.notes()[0] == (
        "Equal images in two classes, which contradict each other: 2 "
        "(cat/000.png and dog/copy.jpg, cat/000.png and dog/copy.png)"
    )


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_check_names_animations(tmp_path: Path, name: str) -> None:
    image_files(tmp_path / "a", 2)
    image_files(tmp_path / "b", 2)
    frames = [pattern(9, 7, seed=number) for number in (5, 6)]
    frames[0].save(tmp_path / "b" / name, save_all=True, append_images=frames[1:])
    assert check_data(tmp_path).animations == [f"b/{name}"]


def test_check_of_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    image_files(tmp_path / "test" / "cat", 2)
    found = check_data(tmp_path)
    assert (list(found.sources), found.complete) == (["test"], True)
    assert "has no training split" in found.obstacle
    assert found.to_dict()["trainable"] is False


def test_folder_that_cannot_be_opened_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    for name in ("a", "b", "b/secret"):
        image_files(tmp_path / name, 2)
    assert check_data(tmp_path).complete
    monkeypatch.setattr(os, "scandir", denied)
    found = check_data(tmp_path)
    assert not found.complete
    assert "1 folder that cannot be opened (b/secret)" in found.left_out.describe()
