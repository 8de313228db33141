"""ImageNet in every form that it has on disk, and its sisters."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from deit.data.class_names import imagenet_ids, imagenet_names, imagenet_subset
from deit.data.datasets.imagenet import imagenet_a, imagenet_r, imagenet_real, imagenet_v2, imagenet_validation
from deit.data.opening import open_data
from deit.data.sources import ImageSource, relabeled
from deit.errors import DataError
from tests.unit.data.layouts import FLAT_WNIDS, WNIDS, devkit, imagenet_flat, imagenet_train, names, photo

NAMES = tuple(imagenet_names()[imagenet_ids().index(wnid)] for wnid in WNIDS)
FLAT_NAMES = [NAMES[WNIDS.index(wnid)] for wnid in FLAT_WNIDS]


def answers(source: ImageSource) -> list[str]:
    return [source.classes[label] for label in source.labels]


def check_whole(root: Path) -> None:
    splits = open_data(f"imagenet:{root}")
    assert splits.classes == NAMES == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
    assert splits.test is None
    assert sorted(answers(splits.train)) == sorted(NAMES * 3)
    assert sorted(answers(splits.validation)) == sorted(FLAT_NAMES)
    for source in (splits.train, splits.validation):
        assert source.load(0).size == (40, 30)
    assert splits.origin == "the training and validation splits of ImageNet"


def kaggle_table(root: Path) -> None:
    lines = [f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for number, wnid in enumerate(FLAT_WNIDS, 1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")


def test_both_splits_in_folders(tmp_path: Path) -> None:
    imagenet_train(tmp_path)
    for number, wnid in enumerate(FLAT_WNIDS, 1):
        photo(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    check_whole(tmp_path)


def test_validation_images_by_the_development_kit(tmp_path: Path) -> None:
    imagenet_flat(imagenet_train(tmp_path) / "val")
    devkit(tmp_path)
    check_whole(tmp_path)
    assert answers(imagenet_validation(tmp_path)) == FLAT_NAMES


def test_the_folders_of_kaggle(tmp_path: Path) -> None:
    below = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    imagenet_train(below)
    imagenet_flat(below / "val")
    kaggle_table(tmp_path)
    check_whole(tmp_path)


def test_the_archives_as_they_are_downloaded(tmp_path: Path) -> None:
    made, root = tmp_path / "made", tmp_path / "my imagenet"
    imagenet_flat(imagenet_train(made) / "val")
    devkit(made)
    root.mkdir()
    for wnid in WNIDS:
        with tarfile.open(made / f"{wnid}.tar", "w") as tar:
            for file in sorted((made / "train" / wnid).iterdir()):
                tar.add(file, file.name)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        for wnid in WNIDS:
            tar.add(made / f"{wnid}.tar", f"{wnid}.tar")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for file in sorted((made / "val").iterdir()):
            tar.add(file, file.name)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(made / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    check_whole(root)
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"train", "val", "ILSVRC2012_devkit_t12"}
    check_whole(root)  # a second time from what was unpacked


def test_the_validation_split_alone_can_be_evaluated_on(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val")
    kaggle_table(tmp_path)
    source = relabeled(imagenet_validation(tmp_path), imagenet_ids())
    assert source.labels.tolist() == [517, 134, 0, 517, 134, 0]
    with pytest.raises(DataError, match="ImageNet has no train in"):
        open_data(f"imagenet:{tmp_path}")


@pytest.mark.parametrize("name", ["imagenet", "imagenet-real"])
def test_imagenet_that_is_not_there_is_asked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ImageNet is not in .*: register at image-net\.org"):
        (imagenet_real if name.endswith("real") else imagenet_validation)(tmp_path / "nowhere")


def test_validation_images_need_labels_and_right_names(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val")
    with pytest.raises(DataError, match=r"no labels: put ILSVRC2012_devkit_t12\.tar\.gz or LOC_val_solution\.csv there"):
        imagenet_validation(tmp_path)
    kaggle_table(tmp_path)
    beyond = tmp_path / "val" / "ILSVRC2012_val_00000099.JPEG"
    photo(beyond)
    with pytest.raises(DataError, match=r"no label for a validation image \(99\)"):
        imagenet_validation(tmp_path)
    beyond.rename(tmp_path / "val" / "holiday.jpg")
    with pytest.raises(DataError, match=r"holiday\.jpg is not a validation image of ImageNet"):
        imagenet_validation(tmp_path)


def test_a_development_kit_of_another_year_is_refused(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val")
    devkit(tmp_path)
    truth = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    for content in ("1\n2\n77\n", "one"):
        truth.write_text(content)
        with pytest.raises(DataError, match="do not match"):
            imagenet_validation(tmp_path)
    truth.unlink()
    with pytest.raises(DataError, match="Cannot read"):
        imagenet_validation(tmp_path)


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "train" / WNIDS[0] / "a.JPEG")
    photo(tmp_path / "val" / WNIDS[1] / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="has a folder 'n02012849' that is not one of its 1 classes"):
        open_data(f"imagenet:{tmp_path}")


def test_the_first_of_all_classes_is_missed_too(tmp_path: Path) -> None:
    for wnid in WNIDS[1:]:
        photo(tmp_path / "train" / wnid / "a.JPEG")
    imagenet_flat(tmp_path / "val")
    kaggle_table(tmp_path)
    with pytest.raises(DataError, match="a class 'tench, Tinca tinca' that the training split lacks"):
        open_data(f"imagenet:{tmp_path}")


def test_reassessed_labels_are_several_or_none(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val", 4)
    kaggle_table(tmp_path)
    (tmp_path / "real.json").write_text(json.dumps([[517], [], [3, 0], [134, 517], [9]]))
    source = imagenet_real(tmp_path)
    assert source.correct == ((517,), (3, 0), (134, 517))
    assert source.labels.tolist() == [517, 3, 134]
    assert [name[-6:] for name in names(source)] == ["1.JPEG", "3.JPEG", "4.JPEG"]
    known = tuple(reversed(imagenet_ids()))
    moved = relabeled(source, imagenet_ids())
    assert moved.labels.tolist() == [517, 3, 134]
    with pytest.raises(DataError, match="does not have"):
        relabeled(source, known[:10])


def test_the_copy_of_the_labels_that_timm_carries_is_taken(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val", 3)
    kaggle_table(tmp_path)
    assert imagenet_real(tmp_path).correct == ((970, 795), (230, 231))  # the first image has no label


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a list of lists"),
        ("[1]", "not a list of lists"),
        ("[[1000]]", "beyond the 1,000"),
        ("[[], []]", "has a label"),
        ("[[1]]", "beyond the 1 with labels"),
    ],
)
def test_reassessed_labels_that_do_not_fit_are_refused(tmp_path: Path, content: str, words: str) -> None:
    imagenet_flat(tmp_path / "val", 2)
    kaggle_table(tmp_path)
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match=words):
        imagenet_real(tmp_path)


@pytest.mark.parametrize("below", ["", "imagenetv2-matched-frequency-format-val"])
def test_v2_is_in_numbered_folders(tmp_path: Path, below: str) -> None:
    for place in (0, 10, 2, 999):
        photo(tmp_path / below / str(place) / "abc.jpeg", place)
    source = imagenet_v2(tmp_path)
    assert sorted(answers(source)) == sorted(imagenet_names()[place] for place in (0, 10, 2, 999))
    assert sorted(relabeled(source, imagenet_ids()).labels.tolist()) == [0, 2, 10, 999]


@pytest.mark.parametrize("letter", ["a", "r"])
@pytest.mark.parametrize("below", [True, False])
def test_a_and_r_have_their_two_hundred_classes(tmp_path: Path, letter: str, below: bool) -> None:
    places = imagenet_subset(letter)
    folder = tmp_path / f"imagenet-{letter}" if below else tmp_path
    for place in (places[7], places[199]):
        photo(folder / imagenet_ids()[place] / "art 1.jpg")
    (folder / "README.txt").write_text("")
    source = (imagenet_a if letter == "a" else imagenet_r)(tmp_path)
    assert len(source.classes) == 200
    assert source.labels.tolist() == [7, 199]
    assert relabeled(source, imagenet_ids()).labels.tolist() == [places[7], places[199]]
    other = next(place for place in range(1000) if place not in places)
    photo(folder / imagenet_ids()[other] / "x.jpg")
    with pytest.raises(DataError, match="not one of its 200 classes"):
        (imagenet_a if letter == "a" else imagenet_r)(tmp_path)


def test_a_sister_is_no_data_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="imagenet-a is for evaluation only: deit evaluate MODEL imagenet-a"):
        open_data(f"imagenet-a:{tmp_path}")
