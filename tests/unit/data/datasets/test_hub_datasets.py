"""Hugging Face data sets: from disk as `save_to_disk` writes them, and by name from a fake hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from deit.data.checking import check_images
from deit.data.opening import open_data, open_unlabeled, read_splits
from deit.errors import DataError, ImageError, MissingExtraError
from tests.helpers import pattern
from tests.unit.data.layouts import image_files, names
from tests.unit.data.tables import CLASSES, NAMED, png, table


def test_one_saved_table_is_an_unsplit_data_set(tmp_path: Path) -> None:
    table(9, NAMED).save_to_disk(tmp_path / "my set")
    splits = open_data(tmp_path / "my set", seed=2, validation_fraction=0.34)
    assert splits.classes == tuple(CLASSES)
    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation)] == [[2] * 3, [1] * 3]
    assert set(names(splits.train)) < {f"all[{number}]" for number in range(9)}
    whole = read_splits(tmp_path / "my set")
    assert whole.unsplit
    image = whole.train.load(5)
    assert (image.mode, image.size) == ("RGB", (17, 9))
    assert np.array_equal(np.asarray(image), np.asarray(pattern(17, 9, 5)))
    assert check_images(whole.train, decode=True) == check_images(splits.validation, decode=False) == {}


def test_several_saved_tables_are_splits(tmp_path: Path) -> None:
    parts = {"train": table(6, NAMED), "dev": table(3, NAMED), "test": table(4, NAMED), "extra": table(3, NAMED)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path)
    splits = open_data(tmp_path)
    assert splits.origin == "the data set's own splits: train, dev, test"
    assert splits.test is not None
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [6, 3, 4]
    assert splits.test.name(3) == "test[3]"
    assert open_data(tmp_path).fingerprint == splits.fingerprint


def test_test_split_without_labels_is_ignored(tmp_path: Path) -> None:
    hidden = table(3, NAMED).remove_columns("label").add_column("label", [-1] * 3).cast_column("label", NAMED)
    datasets.DatasetDict(train=table(9, NAMED), test=hidden).save_to_disk(tmp_path)
    splits = open_data(tmp_path)
    assert splits.test is None
    assert len(splits.train.labels) + len(splits.validation.labels) == 9


def test_string_labels_are_class_names(tmp_path: Path) -> None:
    table(4, label=None, species=["owl", "cat", "owl", "cat"]).rename_column("species", "label").save_to_disk(tmp_path)
    parts = read_splits(tmp_path)
    assert parts.train.classes == ("cat", "owl")
    assert parts.train.labels.tolist() == [1, 0, 1, 0]


def test_integer_labels_without_names_are_class_names(tmp_path: Path) -> None:
    table(6, datasets.Value("int32")).save_to_disk(tmp_path)
    assert read_splits(tmp_path).train.classes == ("0", "1", "2")


def test_the_usual_label_column_is_preferred(tmp_path: Path) -> None:
    both = table(4, datasets.ClassLabel(names=CLASSES)).add_column("coarse", [0, 1, 0, 1])
    both.cast_column("coarse", datasets.ClassLabel(names=["a", "b"])).save_to_disk(tmp_path / "a")
    assert read_splits(tmp_path / "a").train.classes == tuple(CLASSES)
    other = both.cast_column("coarse", datasets.ClassLabel(names=["a", "b"])).rename_column("label", "fine")
    other.save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match="several columns of labels: fine, coarse"):
        read_splits(tmp_path / "b")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: table(3), "no column of labels, only image, id"),
        (lambda: table(3, NAMED).remove_columns("image"), "no column of images"),
        (lambda: table(1, datasets.ClassLabel(names=["a"])), "has the classes a"),
        (lambda: datasets.DatasetDict(a=table(3, NAMED), b=table(3, NAMED)), "has no train split: it has a, b"),
        (lambda: datasets.DatasetDict(train=table(3, NAMED), test=table(3)), "other columns in its split test"),
    ],
)
def test_unsuitable_table_is_an_error(tmp_path: Path, made: Any, message: str) -> None:
    made().save_to_disk(tmp_path)
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path)


def test_unreadable_and_missing_images_are_reported(tmp_path: Path) -> None:
    image_files(tmp_path, 1)
    cells = [png(0), {"bytes": b"no image", "path": None}, {"bytes": None, "path": str(tmp_path / "000.png")}, None]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": NAMED})
    made = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 2, 0]}, features=features)
    made.save_to_disk(tmp_path / "set")
    # save_to_disk embeds files that it finds; a table that only names one is made by hand
    source = read_splits(tmp_path / "set").train
    problems = check_images(source, decode=True)
    assert 1 in problems
    assert "all[1] is not an image" in str(problems[1])
    assert check_images(source, decode=False).keys() == problems.keys()
    assert "all[3] is not part of the data set" in str(problems[3])
    bare = type(source)(made.select_columns(["image"]), "image", "all", source.classes, source.labels)  # type: ignore[call-arg]
    with pytest.raises(ImageError, match=r"all\[2\] is not part of the data set"):
        bare.load(2)
    below = type(source)(made.select_columns(["image"]), "image", "all", source.classes, source.labels, (tmp_path.resolve(),))  # type: ignore[call-arg]
    assert isinstance(below.load(2), Image.Image)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", {"_data_files": [{"filename": "../../secret.arrow"}]}, "which is not a file next to it"),
        ("state.json", {"_data_files": []}, "names no files"),
        ("state.json", {}, "names no files"),
        ("state.json", {"_data_files": [{"filename": "gone.arrow"}]}, "cannot be read as a saved data set"),
        ("dataset_info.json", [], "cannot be read as a saved data set"),
    ],
)
def test_damaged_folder_is_an_error(tmp_path: Path, file: str, content: Any, message: str) -> None:
    table(3, NAMED).save_to_disk(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path)


def test_split_names_stay_inside_the_folder(tmp_path: Path) -> None:
    datasets.DatasetDict(train=table(3, NAMED)).save_to_disk(tmp_path)
    for content, message in (({"splits": ["../x"]}, "not a file next to it"), ({"splits": []}, "names no splits")):
        (tmp_path / "dataset_dict.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            read_splits(tmp_path)


def test_truncated_table_is_an_error(tmp_path: Path) -> None:
    table(9, NAMED).save_to_disk(tmp_path)
    [file] = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError):
        read_splits(tmp_path)


def test_unlabeled_images_can_be_opened(tmp_path: Path) -> None:
    datasets.DatasetDict(train=table(10), test=table(3)).save_to_disk(tmp_path)
    splits = open_unlabeled(tmp_path, validation_fraction=0.2)
    assert [len(part.labels) for part in (splits.train, splits.validation)] == [8, 2]
    assert splits.classes == ("image",)
    assert splits.train.load(0).mode == "RGB"


def test_hub_name_has_a_config_and_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, revision: str | None) -> Any:
        asked.append((name, config, revision))
        return datasets.DatasetDict(train=table(9, NAMED), test=table(3, NAMED))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for text in ("hf:beans", "hf:me/my-photos", "hf:me/my-photos:small@v1.0", "hf:me/my-photos@refs/pr/1"):
        assert open_data(text).classes == tuple(CLASSES)
    assert asked == [
        ("beans", None, None),
        ("me/my-photos", None, None),
        ("me/my-photos", "small", "v1.0"),
        ("me/my-photos", None, "refs/pr/1"),
    ]
    assert len(open_unlabeled("hf:beans", validation_fraction=0.34).validation.labels) == 3
    for text in ("hf:", "hf:a/b/c", "hf:../x y", "hf:a/b:c:d"):
        with pytest.raises(DataError, match="is not a hub name: write hf:owner/name"):
            open_data(text)


def test_unreachable_hub_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'me/photos' on the Hub (OfflineModeIsEnabled)\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        open_data("hf:me/photos")
    assert "me/photos cannot be loaded from the hub (Couldn't reach 'me/photos'" in str(caught.value)
    assert "go online once" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_library_is_an_error_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'deit\[data\]'"):
        open_data("hf:me/photos")
