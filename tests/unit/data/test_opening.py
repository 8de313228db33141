"""Opening data sets by path or name: every kind of data set, names and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deit.data.checking import without_unreadable
from deit.data.datasets.named import NAMED as NAMED_DATASETS
from deit.data.datasets.named import named_reference
from deit.data.opening import absolute_name, open_data, open_unlabeled, short_name
from deit.errors import DataError
from tests.unit.data.layouts import (
    cars,
    cifar10,
    devkit,
    flowers,
    image_files,
    imagenet_flat,
    imagenet_train,
    inaturalist,
    names,
)
from tests.unit.data.tables import NAMED, table


def test_folder_without_splits_is_split_by_the_seed(photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=3, validation_fraction=0.25)
    assert [len(source.labels) for source in (splits.train, splits.validation)] == [18, 6]
    assert "25% of each class set aside by seed 3" in splits.origin
    assert splits.held_out == ("validation", splits.validation)
    other, same = open_data(photo_folder, seed=4, validation_fraction=0.25), open_data(photo_folder, 3, 0.25)
    assert names(same.validation) == names(splits.validation) != names(other.validation)
    assert set(names(splits.train)).isdisjoint(names(splits.validation))


def test_digits_have_ten_classes_and_three_splits() -> None:
    splits = open_data("digits", seed=1)
    assert splits.classes == tuple("0123456789")
    assert splits.test is not None
    sizes = [len(source.labels) for source in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797
    assert sizes[1] == sizes[2] == pytest.approx(359, abs=5)
    images = [splits.train.load(index) for index in range(20)]
    assert {(image.mode, image.size) for image in images} == {("RGB", (8, 8))}
    assert max(image.getextrema()[0][1] for image in images) == 255  # type: ignore[index]


KINDS = (
    "folder",
    "split folder",
    "csv",
    "saved",
    "cifar10",
    "flowers102",
    "stanford-cars",
    "inaturalist-2018",
    "imagenet",
    "digits",
)


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A data set of each kind, in a folder with a space in its name."""
    root = tmp_path / "my data"
    kind = request.param
    if kind == "folder":
        for label in ("a", "b"):
            image_files(root / label, 4)
        return str(root)
    if kind == "split folder":
        for split in ("train", "val"):
            for label in ("a", "b"):
                image_files(root / split / label, 4)
        return str(root)
    if kind == "csv":
        image_files(root, 8)
        (root / "list.csv").write_text("path,label\n" + "".join(f"{number:03}.png,{number % 2}\n" for number in range(8)))
        return str(root / "list.csv")
    if kind == "saved":
        table(9, NAMED).save_to_disk(root)
        return str(root)
    if kind == "digits":
        return "digits"
    if kind == "imagenet":
        imagenet_flat(imagenet_train(root) / "val")
        devkit(root)
    writers = {"cifar10": cifar10, "flowers102": flowers, "stanford-cars": cars}
    if kind in writers:
        writers[kind](root)
    if kind == "inaturalist-2018":
        inaturalist(root, 2018)
    return f"{kind}:{root}"


@pytest.mark.parametrize("data", KINDS, indirect=True)
def test_every_kind_opens_for_training(data: str) -> None:
    splits = open_data(data)
    if "flowers" not in data:  # the small copy has only three of its 102 classes
        splits, skipped = without_unreadable(splits, skip=False)
        assert skipped == 0
    for source in (splits.train, splits.validation, splits.test):
        if source is None:
            continue
        assert source.classes == splits.classes
        assert len(source.labels)
        assert source.labels.dtype == np.int64
        for index in (0, len(source.labels) - 1):
            assert source.load(index).mode == "RGB"
            assert source.name(index)
    if "set aside" in splits.origin:
        assert set(names(splits.train)).isdisjoint(names(splits.validation))
    again = open_data(data)
    assert (again.fingerprint, names(again.validation)) == (splits.fingerprint, names(splits.validation))


@pytest.mark.parametrize("data", KINDS, indirect=True)
def test_every_kind_opens_without_labels(data: str) -> None:
    splits = open_unlabeled(data)
    assert splits.classes == splits.validation.classes == ("image",)
    assert splits.test is None
    assert not splits.train.labels.any()
    assert len(splits.validation.labels)
    assert splits.train.load(0).mode == "RGB"
    assert splits.fingerprint != open_data(data).fingerprint


@pytest.mark.parametrize("data", KINDS, indirect=True)
def test_absolute_name_is_valid_in_any_working_directory(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_data(data).fingerprint
    monkeypatch.chdir(tmp_path)
    relative = data.replace(f"{tmp_path}/", "")
    absolute = absolute_name(relative)
    assert absolute == data
    monkeypatch.chdir("/")
    assert open_data(absolute).fingerprint == expected


def test_absolute_name_keeps_names_that_are_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10", "imagenet-v2", "hf:me/photos:small@v1", "no such folder"):
        assert absolute_name(name) == name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_name("cifar10:~/x") == f"cifar10:{tmp_path}/x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", "digits"),
        ("cifar10:/data/toronto", "cifar10"),
        ("hf:me/photos:small@v1", "photos"),
        ("hf:beans", "beans"),
        ("/home/me/photos/", "photos"),
        ("lists/photos.csv", "photos"),
        ("v1.2", "v1.2"),
    ],
)
def test_short_name(name: str, expected: str) -> None:
    assert short_name(name) == expected


def test_path_takes_precedence_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        image_files(tmp_path / "cifar10" / label, 2)
        image_files(tmp_path / "list.csv" / label, 2)
    assert open_data("./cifar10").classes == ("a", "b")
    assert open_data("list.csv").classes == ("a", "b")
    with pytest.raises(DataError, match="CIFAR-10"):
        open_data("cifar10")


def test_misspelled_name_is_an_error_with_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, suggestion in (("cifar-10", "cifar10"), ("flowers", "flowers102"), ("imagnet", "imagenet"), ("digit", "digits")):
        with pytest.raises(DataError, match=f"is not a folder: did you mean {suggestion}"):
            open_data(name)
        with pytest.raises(DataError, match="is not a folder"):
            open_unlabeled(name)
    with pytest.raises(DataError, match="pass a folder, a manifest, hf:owner/name, or a name from `deit data list`"):
        open_data("me/photos")


def test_folder_of_a_named_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def root(text: str) -> Path:
        reference = named_reference(text)
        assert reference is not None
        return reference.root

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DEIT_DATA", "/big disk")
    assert root("cifar10") == Path("/big disk/cifar10")
    assert root("imagenet-real") == Path("/big disk/imagenet")
    assert root("cifar10:other:place") == Path("other:place")
    monkeypatch.delenv("DEIT_DATA")
    assert root("cifar10") == tmp_path / ".cache" / "deit" / "cifar10"
    assert named_reference("cifar10:") is None
    assert named_reference("photos") is None


def test_image_counts_of_the_named_data_sets() -> None:
    assert {name: sum(row.images.values()) for name, row in NAMED_DATASETS.items()} == {
        "cifar10": 60_000,
        "cifar100": 60_000,
        "mnist": 70_000,
        "fashion-mnist": 70_000,
        "flowers102": 8_189,
        "stanford-cars": 16_185,
        "inaturalist-2018": 461_939,
        "inaturalist-2019": 268_243,
        "imagenet": 1_331_167,
        "imagenet-v2": 10_000,
        "imagenet-real": 46_837,
        "imagenet-a": 7_500,
        "imagenet-r": 30_000,
    }
    for row in NAMED_DATASETS.values():
        assert (row.read is None) <= (row.evaluate is not None)
