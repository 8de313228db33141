"""Every form that DATA can have, by the one function that opens them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deit.data.checking import without_unreadable
from deit.data.datasets.named import NAMED as NAMED_DATA
from deit.data.datasets.named import named_reference
from deit.data.opening import lasting, open_data, open_unlabeled, title
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


def test_a_plain_folder_is_split_by_the_seed_and_says_so(photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=3, validation_fraction=0.25)
    assert [len(part.labels) for part in (splits.train, splits.validation)] == [18, 6]
    assert "25% of each class set aside by seed 3" in splits.origin
    assert splits.held_out == ("validation", splits.validation)
    other, same = open_data(photo_folder, seed=4, validation_fraction=0.25), open_data(photo_folder, 3, 0.25)
    assert names(same.validation) == names(splits.validation) != names(other.validation)
    assert set(names(splits.train)).isdisjoint(names(splits.validation))


def test_the_digits_are_ten_classes_in_three_parts() -> None:
    splits = open_data("digits", seed=1)
    assert splits.classes == tuple("0123456789")
    assert splits.test is not None
    sizes = [len(part.labels) for part in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797
    assert sizes[1] == sizes[2] == pytest.approx(359, abs=5)
    loaded = [splits.train.load(index) for index in range(20)]
    assert {(image.mode, image.size) for image in loaded} == {("RGB", (8, 8))}
    assert max(image.getextrema()[0][1] for image in loaded) == 255  # type: ignore[index]


FORMS = ("folder", "parted", "csv", "saved", "cifar10", "flowers102", "stanford-cars", "inaturalist-2018", "imagenet", "digits")


@pytest.fixture
def form(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """DATA of each form, in a folder with a space in its name."""
    root = tmp_path / "my data"
    name = request.param
    if name == "folder":
        for label in ("a", "b"):
            image_files(root / label, 4)
        return str(root)
    if name == "parted":
        for part in ("train", "val"):
            for label in ("a", "b"):
                image_files(root / part / label, 4)
        return str(root)
    if name == "csv":
        image_files(root, 8)
        (root / "list.csv").write_text("path,label\n" + "".join(f"{number:03}.png,{number % 2}\n" for number in range(8)))
        return str(root / "list.csv")
    if name == "saved":
        table(9, NAMED).save_to_disk(root)
        return str(root)
    if name == "digits":
        return "digits"
    if name == "imagenet":
        imagenet_flat(imagenet_train(root) / "val")
        devkit(root)
    makers = {"cifar10": cifar10, "flowers102": flowers, "stanford-cars": cars}
    if name in makers:
        makers[name](root)
    if name == "inaturalist-2018":
        inaturalist(root, 2018)
    return f"{name}:{root}"


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_every_form_can_be_trained_on(form: str) -> None:
    splits = open_data(form)
    if "flowers" not in form:  # the small one has three of its 102 classes
        splits, skipped = without_unreadable(splits, skip=False)
        assert skipped == 0
    for part in (splits.train, splits.validation, splits.test):
        if part is None:
            continue
        assert part.classes == splits.classes
        assert len(part.labels)
        assert part.labels.dtype == np.int64
        for index in (0, len(part.labels) - 1):
            assert part.load(index).mode == "RGB"
            assert part.name(index)
    if "set aside" in splits.origin:
        assert set(names(splits.train)).isdisjoint(names(splits.validation))
    again = open_data(form)
    assert (again.fingerprint, names(again.validation)) == (splits.fingerprint, names(splits.validation))


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_every_form_can_be_learned_from_without_labels(form: str) -> None:
    splits = open_unlabeled(form)
    assert splits.classes == splits.validation.classes == ("image",)
    assert splits.test is None
    assert not splits.train.labels.any()
    assert len(splits.validation.labels)
    assert splits.train.load(0).mode == "RGB"
    assert splits.fingerprint != open_data(form).fingerprint


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_every_form_lasts_from_any_folder(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_data(form).fingerprint
    monkeypatch.chdir(tmp_path)
    relative = form.replace(f"{tmp_path}/", "")
    kept = lasting(relative)
    assert kept == form
    monkeypatch.chdir("/")
    assert open_data(kept).fingerprint == expected


def test_names_that_are_no_paths_last_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10", "imagenet-v2", "hf:me/photos:small@v1", "no such folder"):
        assert lasting(name) == name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lasting("cifar10:~/x") == f"cifar10:{tmp_path}/x"


@pytest.mark.parametrize(
    ("data", "word"),
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
def test_a_data_set_has_a_word_for_a_heading(data: str, word: str) -> None:
    assert title(data) == word


def test_a_folder_wins_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        image_files(tmp_path / "cifar10" / label, 2)
        image_files(tmp_path / "list.csv" / label, 2)
    assert open_data("./cifar10").classes == ("a", "b")
    assert open_data("list.csv").classes == ("a", "b")
    with pytest.raises(DataError, match="CIFAR-10"):
        open_data("cifar10")


def test_a_misspelt_name_gets_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, near in (("cifar-10", "cifar10"), ("flowers", "flowers102"), ("imagnet", "imagenet"), ("digit", "digits")):
        with pytest.raises(DataError, match=f"is no folder: did you mean {near}"):
            open_data(name)
        with pytest.raises(DataError, match="is no folder"):
            open_unlabeled(name)
    with pytest.raises(DataError, match="pass a folder, a manifest, hf:owner/name, or a name of `deit data list`"):
        open_data("me/photos")


def test_the_folder_of_a_name_is_found_by_one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_listed_adds_up() -> None:
    assert {name: sum(row.images.values()) for name, row in NAMED_DATA.items()} == {
        "cifar10": 60_000,
        "cifar100": 60_000,
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
    for row in NAMED_DATA.values():
        assert (row.read is None) <= (row.evaluate is not None)
