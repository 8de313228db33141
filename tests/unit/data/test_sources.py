"""Where images and labels come from: folders of every kind, splits, and the data sets that cannot be used."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit.data.sources import (
    DataRecord,
    FolderSource,
    Splits,
    check_images,
    fingerprint,
    folder_source,
    open_data,
    relabelled,
    split,
    subset,
    without_unreadable,
)
from deit.errors import CheckpointError, DataError, ImageError
from tests.conftest import CLASSES
from tests.helpers import MemorySource, pattern

RUBBISH = b"\x89PNG\r\n\x1a\n and then nothing"


def images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pattern(9, 7, seed=number).save(folder / f"{number:03}.png")


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("val", 2), ("test", 1)):
        for name in ("cat", "dog"):
            images(tmp_path / part / name, count)
    return tmp_path


def test_every_image_of_a_folder_of_photos_is_found_and_readable(photo_folder: Path) -> None:
    source = folder_source(photo_folder)
    assert source.classes == CLASSES
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    names = {source.name(index) for index in range(8)}
    assert str(Path("golden retriever", "from phone", "2021 été", "прозрачная.webp")) in names
    for index in range(len(source.labels)):
        image = source.load(index)
        assert image.mode == "RGB"
        assert source.name(index).startswith(CLASSES[source.labels[index]])


def test_the_order_does_not_depend_on_the_disk(photo_folder: Path) -> None:
    files = folder_source(photo_folder).files
    per_class = [files[start : start + 8] for start in range(0, 24, 8)]
    assert all(list(part) == sorted(part) for part in per_class)


def test_the_same_name_in_another_unicode_form_is_the_same_class(parted: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été")
    images(parted / "train" / composed, 2)
    images(parted / "val" / decomposed, 1)
    splits = open_data(parted)
    assert splits.classes == ("cat", "dog", composed)
    assert np.bincount(splits.validation.labels).tolist() == [2, 2, 1]


def test_two_folders_of_one_name_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    images(tmp_path / "cat", 1)
    images(tmp_path / unicodedata.normalize("NFC", "é"), 1)
    images(tmp_path / unicodedata.normalize("NFD", "é"), 2)
    source = folder_source(tmp_path)
    assert len(source.classes) == 2
    assert np.bincount(source.labels).tolist() == [1, 3]


def test_hidden_folders_are_not_looked_into(tmp_path: Path) -> None:
    for name in ("a", "b"):
        images(tmp_path / name, 1)
        images(tmp_path / name / ".ipynb_checkpoints", 1)
    assert len(folder_source(tmp_path).labels) == 2


def test_a_folder_with_parts_is_taken_as_it_is(parted: Path) -> None:
    splits = open_data(parted)
    assert splits.test is not None
    counts = [np.bincount(part.labels).tolist() for part in (splits.train, splits.validation, splits.test)]
    assert counts == [[4, 4], [2, 2], [1, 1]]
    assert "train, val, test" in splits.origin
    assert splits.held_out[0] == "test"


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_validation_part_has_other_names_too(parted: Path, name: str) -> None:
    (parted / "val").rename(parted / name)
    assert len(open_data(parted).validation.labels) == 4


def test_without_a_validation_part_some_of_training_is_set_aside(parted: Path) -> None:
    shutil.rmtree(parted / "val")
    splits = open_data(parted, validation_fraction=0.25)
    assert splits.test is not None
    assert [len(part.labels) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 2]


def test_a_plain_folder_is_split_by_the_seed_and_says_so(photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=3, validation_fraction=0.25)
    assert [len(part.labels) for part in (splits.train, splits.validation)] == [18, 6]
    assert "25% of each class set aside by seed 3" in splits.origin
    assert splits.held_out == ("validation", splits.validation)
    other, same = open_data(photo_folder, seed=4, validation_fraction=0.25), open_data(photo_folder, 3, 0.25)
    assert names(same.validation) == names(splits.validation) != names(other.validation)
    assert set(names(splits.train)).isdisjoint(names(splits.validation))


def names(source: object) -> list[str]:
    return [source.name(index) for index in range(len(source.labels))]  # type: ignore[attr-defined]


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


def test_no_folder_and_no_images_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no folder"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no folders in it"):
        open_data(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="has no folders in it"):
        open_data(tmp_path)


def test_one_class_is_no_classifier(tmp_path: Path) -> None:
    images(tmp_path / "only", 3)
    with pytest.raises(DataError, match="has one class, 'only'"):
        open_data(tmp_path)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    images(tmp_path / "cat", 3)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"The class 'dog'.* holds no images"):
        open_data(tmp_path)


def test_a_class_that_only_validation_has_is_named(parted: Path) -> None:
    images(parted / "val" / "wolf", 1)
    with pytest.raises(DataError, match="val has a class 'wolf' that the training part lacks"):
        open_data(parted)


def test_a_class_that_validation_lacks_is_no_error(parted: Path) -> None:
    shutil.rmtree(parted / "val" / "cat")
    assert open_data(parted).validation.labels.tolist() == [1, 1]  # still counted as the second class


def test_an_empty_validation_part_is_named(parted: Path) -> None:
    for file in (parted / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="val holds no images"):
        open_data(parted)


def test_a_class_of_one_image_stays_in_training(tmp_path: Path) -> None:
    images(tmp_path / "many", 5)
    images(tmp_path / "one", 1)
    splits = open_data(tmp_path)
    assert np.bincount(splits.train.labels, minlength=2).tolist() == [4, 1]
    shutil.rmtree(tmp_path / "many")
    images(tmp_path / "two", 1)
    with pytest.raises(DataError, match="one image a class"):
        open_data(tmp_path)


class Labelled(MemorySource):
    def __init__(self, labels: list[int]) -> None:
        super().__init__(len(labels), classes=tuple("abcde"))
        object.__setattr__(self, "given", np.asarray(labels, np.int64))

    @property
    def labels(self) -> np.ndarray:
        return self.given  # type: ignore[attr-defined, no-any-return]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(0, 2**32),
    st.lists(st.floats(0.01, 0.9), min_size=1, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_a_split_keeps_every_image_once_and_every_class_in_each_part(
    labels: list[int], seed: int, fractions: list[float]
) -> None:
    source = Labelled(labels)
    parts = split(source, seed, fractions)
    assert len(parts) == len(fractions) + 1
    assert sorted(np.concatenate([part.indices for part in parts]).tolist()) == list(range(len(labels)))
    totals = np.bincount(source.labels, minlength=5)
    for part in parts:
        assert np.array_equal(part.labels, source.labels[part.indices])
        shares = np.bincount(part.labels, minlength=5)
        assert (shares[totals >= len(parts)] > 0).all()
    for part, fraction in zip(parts[:-1], fractions, strict=True):  # the last part gets the rest
        shares = np.bincount(part.labels, minlength=5)
        assert (shares <= np.maximum(fraction * totals + 0.5, 1)).all()
    assert [part.indices.tolist() for part in split(source, seed, fractions)] == [part.indices.tolist() for part in parts]


def test_a_part_of_a_source_keeps_its_names_and_images() -> None:
    source = MemorySource(6)
    part = subset(source, [4, 1])
    assert (part.labels.tolist(), part.name(0)) == ([1, 1], "image 4")
    assert part.load(1) == source.load(1)


def test_labels_follow_the_order_of_another_models_classes() -> None:
    source = MemorySource(4, classes=("dog", "cat"))
    assert relabelled(source, ("dog", "cat")) is source
    turned = relabelled(source, ("cat", "cow", "dog"))
    assert (turned.labels.tolist(), turned.classes) == ([2, 0, 2, 0], ("cat", "cow", "dog"))
    assert turned.load(1) == source.load(1)
    with pytest.raises(DataError, match="1 classes that the model does not know, such as 'cat'"):
        relabelled(source, ("dog", "cow"))


def test_a_fingerprint_changes_with_a_file_a_class_or_the_order(parted: Path) -> None:
    before = open_data(parted)
    assert open_data(parted, seed=9).fingerprint == before.fingerprint
    (parted / "val" / "cat" / "000.png").rename(parted / "val" / "cat" / "new.png")
    renamed = open_data(parted).fingerprint
    images(parted / "test" / "dog", 2)
    assert len({before.fingerprint, renamed, open_data(parted).fingerprint}) == 3
    source = MemorySource(4)
    assert fingerprint(source) != fingerprint(subset(source, [1, 0, 2, 3]))
    assert fingerprint(source) != fingerprint(MemorySource(4, classes=("a", "b", "d")))


def test_a_record_comes_back_or_says_what_it_lacks() -> None:
    record = DataRecord("abc", 3, 0.25)
    assert DataRecord.from_dict({"fingerprint": "abc", "split_seed": 3, "validation_fraction": 0.25, "more": 1}) == record
    with pytest.raises(CheckpointError, match="split_seed"):
        DataRecord.from_dict({"fingerprint": "abc"})
    with pytest.raises(CheckpointError, match=r"training\.json"):
        DataRecord.from_dict({"fingerprint": "abc", "split_seed": [], "validation_fraction": 1})


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
    assert isinstance(splits.train, FolderSource)


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
    images(tmp_path / "a", 2)
    images(tmp_path / "b", 1)
    cut = tmp_path / "a" / "001.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    source = folder_source(tmp_path)
    assert check_images(source, whole=False) == {}
    for checked, index in ((source, 1), (subset(source, [2, 1]), 1), (subset(subset(source, [2, 1]), [1]), 0)):
        problems = check_images(checked, whole=True)
        assert list(problems) == [index]
        assert "a/001.png" in str(problems[index])
