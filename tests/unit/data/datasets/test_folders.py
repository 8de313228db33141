"""Folders of images: classes, splits, and errors."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from deit.data.datasets.folders import folder_source, folder_splits, unlabeled_splits
from deit.data.opening import open_data, open_unlabeled, read_splits
from deit.data.sources import FileSource
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
    with pytest.raises(DataError, match="val holds no images: put them into its class folders"):
        open_data(split_folder)
    for name in ("cat", "dog"):
        (split_folder / "val" / name).rmdir()
    splits = open_data(split_folder)
    assert "no validation split" in splits.origin
    assert splits.notes == ("The folder val holds no images",)


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
    source = unlabeled_splits(tmp_path).train
    assert isinstance(source, FileSource)
    assert source.names == ("000.png", "2021/summer/000.png", "2021/summer/001.png")
    assert (source.classes, source.labels.tolist()) == (("image",), [0, 0, 0])
    with pytest.raises(DataError, match="holds 1 images"):
        (tmp_path / "one").mkdir()
        image_files(tmp_path / "one", 1)
        unlabeled_splits(tmp_path / "one")
    with pytest.raises(DataError, match="is not a folder"):
        unlabeled_splits(tmp_path / "none")


def test_folder_without_splits_is_unsplit(split_folder: Path) -> None:
    assert not folder_splits(split_folder).unsplit
    assert folder_splits(split_folder / "train").unsplit


def layout(root: Path, text: str) -> Path:
    """Writes three images into each folder of a list such as "train/cat test", or none into one that ends in a slash."""
    for name in text.split():
        folder = root / name.replace("+", " ")
        folder.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            image_files(folder, 3)
    return root


CAT_DOG = "{0}/cat {0}/dog {1}/cat {1}/dog"
LAYOUTS = [  # folders, splits, classes, what a note says
    (CAT_DOG.format("Training", "Testing"), "train test", "cat dog", ""),
    (CAT_DOG.format("Train", "Val"), "train validation", "cat dog", ""),
    (CAT_DOG.format("TRAIN", "dev"), "train validation", "cat dog", ""),
    (CAT_DOG.format("train_set", "TestSet"), "train test", "cat dog", ""),
    (CAT_DOG.format("train2017", "val2017"), "train validation", "cat dog", ""),
    (CAT_DOG.format("seg_train/seg_train", "seg_test/seg_test") + " seg_pred/seg_pred", "train test", "cat dog", "seg_pred"),
    (CAT_DOG.format("training_set/training_set", "test_set/test_set"), "train test", "cat dog", ""),
    (CAT_DOG.format("train/images", "val/images"), "train validation", "cat dog", ""),
    (CAT_DOG.format("ds/ds/train", "ds/ds/test"), "train test", "cat dog", "in its folder ds/ds"),
    (CAT_DOG.format("images/train", "images/val") + " labels/", "train validation", "cat dog", "in its folder images"),
    (CAT_DOG.format("train", "val") + " masks/cat", "train validation", "cat dog", "3 images of folders beside the splits"),
    ("cat/train cat/test dog/train dog/test", "train test", "cat dog", "Each class folder"),
    ("train/Cat train/DOG val/cat val/dog", "train validation", "Cat DOG", ""),
    ("train/cat train/dog test", "train", "cat dog", "3 images of a split without class folders (test/000.png, ...)"),
    ("train/cat train/dog test/unknown", "train", "cat dog", "3 images of a split without class folders"),
    ("train/cat train/dog test1", "train", "cat dog", "3 images of a split without class folders"),
    ("train/cat train/dog", "train", "cat dog", ""),
    ("ds/cat ds/dog", "train", "cat dog", "in its folder ds"),
    ("train car plane", "train", "car plane train", "The folder train is read as a class"),
    ("train/2020 car", "train", "car train", "The folder train is read as a class"),
    ("train test car", "train", "car test train", "The folders test, train are read as classes"),
    ("tr en de", "train", "de en tr", "The folder tr is read as a class"),
    ("test+tube beaker", "train", "beaker test+tube", ""),
    ("training+shoes boots", "train", "boots training+shoes", ""),
    ("cat/2020 cat/2021 dog", "train", "cat dog", "in a class folder belong to its class, such as cat/2020, cat/2021"),
    ("cat/train cat/test dog/train dog", "train", "cat dog", "such as cat/test, cat/train"),
    ("cat/test dog", "train", "cat dog", "such as cat/test"),
    ("labeled/cat labeled/dog unlabeled", "train", "labeled unlabeled", "such as labeled/cat, labeled/dog"),
    ("ds/train/a/1 ds/train/a/2 ds/train/b ds/val/a ds/val/b", "train validation", "a b", "such as train/a/1, train/a/2"),
    ("cat/2020 dog", "train", "cat dog", ""),
    (CAT_DOG.format("ds/train", "ds/test") + " ds", "train test", "cat dog", "3 loose images beside class folders (ds/000.png"),
    (CAT_DOG.format("Trainingsdaten", "Testdaten"), "train test", "cat dog", ""),
    (CAT_DOG.format("训练集", "验证集"), "train validation", "cat dog", ""),
    (CAT_DOG.format("entrenamiento", "prueba"), "train test", "cat dog", ""),
    ("cat dog .", "train", "cat dog", "3 loose images beside class folders (000.png, ...)"),
]


@pytest.mark.parametrize(("folders", "splits", "classes", "note"), LAYOUTS)
def test_layouts(tmp_path: Path, folders: str, splits: str, classes: str, note: str) -> None:
    dataset = read_splits(layout(tmp_path, folders))
    assert dataset.obstacle is None
    assert list(dataset.sources) == splits.split()
    assert dataset.train.classes == tuple(name.replace("+", " ") for name in classes.split())
    assert dataset.unsplit == (splits == "train")
    for source in dataset.sources.values():
        counts = np.bincount(source.labels)
        assert (counts % 3 == 0).all()
        assert (counts > 0).all()
        for index, label in enumerate(source.labels):
            assert source.classes[label].casefold() in source.name(index).casefold()
            source.load(index)
    text = "; ".join(dataset.all_notes)
    assert note in text if note else not text
    assert len(open_data(tmp_path).train.labels)


REFUSED = [
    ("train test", "are named as splits \\(train, test\\) and have no class folders in them: put the images into train/CLASS"),
    ("Training Validation Testing", "are named as splits"),
    ("train/images val/images train/labels/", "are named as splits"),
    ("ds/val ds/test", "ds are named as splits .val, test."),
    ("ds/train", "ds has one folder, 'train', which is named as a split"),
    ("train", "has one folder, 'train', which is named as a split and has no class folders in it"),
    (CAT_DOG.format("val", "valid") + " train/cat train/dog", "two folders for the validation split, val and valid: merge"),
    (CAT_DOG.format("train", "Train"), "two folders for the train split, Train and train"),
    ("train/cat train/dog extra", "'train' with folders in it .cat, dog., beside extra, so that it may be a split or a class"),
    ("train/cat train/dog val/cat val/owl", "val has a class 'owl' that the training split lacks"),
    ("train/cat train/dog val/cat/", "val holds no images"),
]


@pytest.mark.parametrize(("folders", "message"), REFUSED)
def test_layouts_that_are_refused(tmp_path: Path, folders: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_splits(layout(tmp_path, folders))


EVALUATED = [  # folders, splits, classes, why it cannot be trained on
    (
        CAT_DOG.format("val", "test"),
        "validation test",
        "cat dog",
        "no training split, only the splits val, test: .*/val to train",
    ),
    ("test/cat test/dog", "test", "cat dog", "no training split, only the split test: .*/test to train on it"),
    ("Testing/cat", "test", "cat", "no training split"),
    ("val/cat test/Cat test/dog", "validation test", "Cat dog", "no training split"),
    ("cat", "train", "cat", "has one class, 'cat'"),
    ("ds/cat ds/dog ds", "train", "ds", "has one class, 'ds': .* two or more; pass .*/ds if its folders are the classes"),
    ("train/cat test/cat", "train test", "cat", "has one class, 'cat'"),
    ("cat dog owl/", "train", "cat dog", "The class 'owl' in .* holds no images"),
]


@pytest.mark.parametrize(("folders", "splits", "classes", "message"), EVALUATED)
def test_folders_that_can_only_be_evaluated(tmp_path: Path, folders: str, splits: str, classes: str, message: str) -> None:
    dataset = read_splits(layout(tmp_path, folders))
    assert list(dataset.sources) == splits.split()
    assert {source.classes for source in dataset.sources.values()} == {tuple(classes.split())}
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_folder_of_a_known_class_is_a_class(tmp_path: Path) -> None:
    layout(tmp_path, "cat/2020 cat/2021")
    assert read_splits(tmp_path).train.classes == ("2020", "2021")
    for known in (("cat", "dog"), ("CAT",)):
        dataset = read_splits(tmp_path, known)
        assert (dataset.train.classes, len(dataset.train.labels)) == (("cat",), 6)


@pytest.mark.parametrize(("name", "known"), [("cat", ("cat", "dog")), ("Cat", ("CAT",)), ("квадрат", ("квадрат",))])
def test_folder_of_images_that_is_named_as_a_known_class_is_a_class(tmp_path: Path, name: str, known: tuple[str, ...]) -> None:
    layout(tmp_path, name)
    dataset = read_splits(tmp_path / name, known)
    assert (dataset.train.classes, len(dataset.train.labels)) == ((name,), 3)
    assert not dataset.all_notes
    dataset.train.load(0)
    with pytest.raises(DataError, match="has no folders in it"):
        read_splits(tmp_path / name)


UNLABELED = [  # folders, number of images
    ("train test", 3),
    ("train/a train/b valid test", 9),
    ("TRAINING/deep/er Testing", 3),
    ("train car", 6),
    ("a/b/c .", 6),
    ("val test", 3),
    ("ds/train ds/test", 3),
]


@pytest.mark.parametrize(("folders", "count"), UNLABELED)
def test_images_without_labels_leave_the_test_split_out(tmp_path: Path, folders: str, count: int) -> None:
    splits = open_unlabeled(layout(tmp_path, folders))
    names = [source.name(index) for source in (splits.train, splits.validation) for index in range(len(source.labels))]
    assert len(set(names)) == len(names) == count
    assert not [name for name in names if "test" in name.casefold()]


@pytest.mark.parametrize("out", ["runs/teacher", "teacher", "models/2024/teacher"])
def test_runs_in_the_data_change_nothing(split_folder: Path, out: str) -> None:
    for root in (split_folder, split_folder / "train"):
        before = open_data(root)
        for name in ("run.json", "recipe.toml", "best/model.safetensors"):
            (root / out / name).parent.mkdir(parents=True, exist_ok=True)
            (root / out / name).touch()
        after = open_data(root)
        assert (after.fingerprint, after.classes) == (before.fingerprint, before.classes)
        assert [note for note in after.all_notes if "1 directory of runs, models or exports" in note]
        assert open_unlabeled(root).fingerprint == open_unlabeled(root).fingerprint
    with pytest.raises(DataError, match="teacher is a run, model, cache or bundle, not a data set"):
        open_data(split_folder / out)


def test_message_names_what_is_in_an_empty_class(tmp_path: Path) -> None:
    layout(tmp_path, "cat dog/")
    for name in ("a.heic", "b.heic", "c.mov"):
        (tmp_path / "dog" / name).touch()
    with pytest.raises(
        DataError, match=r"'dog'.* holds no images: .*; it has 2 HEIC images .*pip install 'deit\[heic\]'.*1 video"
    ):
        open_data(tmp_path)


@pytest.mark.parametrize("name", ["labels.csv", "train.tsv", "metadata.jsonl"])
def test_message_names_the_manifest_beside_the_images(tmp_path: Path, name: str) -> None:
    image_files(tmp_path, 3)
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"has no folders in it: .*, or pass .*{name} if it lists their labels"):
        open_data(tmp_path)


def test_classes_that_differ_in_case_only_are_said(tmp_path: Path) -> None:
    dataset = read_splits(layout(tmp_path, "train/cat train/Cat"))
    assert dataset.train.classes == ("Cat", "cat")
    assert dataset.notes == ("The classes Cat and cat differ only in upper and lower case",)
    layout(tmp_path, "val/CAT")
    with pytest.raises(DataError, match="a class 'CAT' that the training split lacks"):
        read_splits(tmp_path)


def test_folder_that_cannot_be_opened_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(DataError, match="cannot be opened: Permission denied"):
        open_data(tmp_path)
