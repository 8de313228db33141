"""ImageNet in each of its layouts, and the data sets that share its classes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deit.data.class_names import imagenet_ids, imagenet_names, imagenet_subset
from deit.data.datasets import imagenet
from deit.data.datasets.download import unpack
from deit.data.datasets.imagenet import imagenet_a, imagenet_r, imagenet_real, imagenet_v2, imagenet_validation
from deit.data.opening import open_data
from deit.data.sources import ImageSource, relabeled
from deit.errors import DataError
from tests.unit.data.layouts import FLAT_WNIDS, WNIDS, devkit, imagenet_flat, imagenet_train, names, photo

NAMES = tuple(imagenet_names()[imagenet_ids().index(wnid)] for wnid in WNIDS)
FLAT_NAMES = [NAMES[WNIDS.index(wnid)] for wnid in FLAT_WNIDS]


def class_names(source: ImageSource) -> list[str]:
    return [source.classes[label] for label in source.labels]


def check_whole(root: Path) -> None:
    splits = open_data(f"imagenet:{root}")
    assert splits.classes == NAMES == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
    assert splits.test is None
    assert sorted(class_names(splits.train)) == sorted(NAMES * 3)
    assert sorted(class_names(splits.validation)) == sorted(FLAT_NAMES)
    for source in (splits.train, splits.validation):
        assert source.load(0).size == (40, 30)
    assert splits.origin == "the training and validation splits of ImageNet"


def kaggle_table(root: Path) -> None:
    lines = [f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for number, wnid in enumerate(FLAT_WNIDS, 1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")


def test_both_splits_as_class_folders(tmp_path: Path) -> None:
    imagenet_train(tmp_path)
    for number, wnid in enumerate(FLAT_WNIDS, 1):
        photo(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    check_whole(tmp_path)


def test_validation_labels_from_the_development_kit(tmp_path: Path) -> None:
    imagenet_flat(imagenet_train(tmp_path) / "val")
    devkit(tmp_path)
    check_whole(tmp_path)
    assert class_names(imagenet_validation(tmp_path)) == FLAT_NAMES


def test_kaggle_layout(tmp_path: Path) -> None:
    below = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    imagenet_train(below)
    imagenet_flat(below / "val")
    kaggle_table(tmp_path)
    check_whole(tmp_path)


def archives(root: Path, made: Path) -> Path:
    """Writes the archives that ImageNet is distributed as to ``root``, from files in ``made``."""
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
    return root


def test_original_archives_are_unpacked(tmp_path: Path) -> None:
    root = archives(tmp_path / "my imagenet", tmp_path / "made")
    check_whole(root)
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"train", "val", "ILSVRC2012_devkit_t12"}
    check_whole(root)  # a second time from what was unpacked


def test_unpacking_resumes_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = archives(tmp_path / "root", tmp_path / "made")

    def interrupted_after(calls: int) -> Callable[..., None]:
        def unpack_some(*arguments: Any, **options: Any) -> None:
            nonlocal calls
            if not calls:
                raise KeyboardInterrupt
            calls -= 1
            unpack(*arguments, **options)

        return unpack_some

    for calls in range(len(WNIDS) + 1):  # the first is for the archive of archives
        monkeypatch.setattr(imagenet, "unpack", interrupted_after(calls))
        with pytest.raises(KeyboardInterrupt):
            open_data(f"imagenet:{root}")
    monkeypatch.undo()
    check_whole(root)
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"train", "val", "ILSVRC2012_devkit_t12"}


def test_several_programs_unpack_the_archives(tmp_path: Path) -> None:
    root = archives(tmp_path / "root", tmp_path / "made")
    with ThreadPoolExecutor(3) as programs:
        list(programs.map(check_whole, [root] * 3))


def test_validation_split_alone_can_be_evaluated(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val")
    kaggle_table(tmp_path)
    source = relabeled(imagenet_validation(tmp_path), imagenet_ids())
    assert source.labels.tolist() == [517, 134, 0, 517, 134, 0]
    with pytest.raises(DataError, match="ImageNet has no train in"):
        open_data(f"imagenet:{tmp_path}")


@pytest.mark.parametrize("name", ["imagenet", "imagenet-real"])
def test_missing_imagenet_is_an_error_with_a_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ImageNet is not in .*: register at image-net\.org"):
        (imagenet_real if name.endswith("real") else imagenet_validation)(tmp_path / "nowhere")


def test_validation_images_need_labels_and_valid_names(tmp_path: Path) -> None:
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


def test_development_kit_of_another_year_is_an_error(tmp_path: Path) -> None:
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


def test_class_that_training_lacks_is_an_error(tmp_path: Path) -> None:
    photo(tmp_path / "train" / WNIDS[0] / "a.JPEG")
    photo(tmp_path / "val" / WNIDS[1] / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="has a folder 'n02012849' that is not one of its 1 classes"):
        open_data(f"imagenet:{tmp_path}")


def test_missing_first_class_is_an_error(tmp_path: Path) -> None:
    for wnid in WNIDS[1:]:
        photo(tmp_path / "train" / wnid / "a.JPEG")
    imagenet_flat(tmp_path / "val")
    kaggle_table(tmp_path)
    with pytest.raises(DataError, match="a class 'tench, Tinca tinca' that the training split lacks"):
        open_data(f"imagenet:{tmp_path}")


def test_real_labels_are_several_or_none(tmp_path: Path) -> None:
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


def test_real_labels_in_timms_layout(tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val", 3)
    kaggle_table(tmp_path)
    assert imagenet_real(tmp_path).correct == ((970, 795), (230, 231))  # the first image has no label


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a list of lists"),
        ("[1]", "not a list of lists"),
        ("[[1000]]", "beyond the 1,000"),
        ("[[], []]", "has a label"),
        ("[[1]]", "beyond the 1 with labels"),
    ],
)
def test_invalid_real_labels_are_an_error(tmp_path: Path, content: str, message: str) -> None:
    imagenet_flat(tmp_path / "val", 2)
    kaggle_table(tmp_path)
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match=message):
        imagenet_real(tmp_path)


@pytest.mark.parametrize("below", ["", "imagenetv2-matched-frequency-format-val"])
def test_v2_has_numbered_folders(tmp_path: Path, below: str) -> None:
    for index in (0, 10, 2, 999):
        photo(tmp_path / below / str(index) / "abc.jpeg", index)
    source = imagenet_v2(tmp_path)
    assert sorted(class_names(source)) == sorted(imagenet_names()[index] for index in (0, 10, 2, 999))
    assert sorted(relabeled(source, imagenet_ids()).labels.tolist()) == [0, 2, 10, 999]


@pytest.mark.parametrize("letter", ["a", "r"])
@pytest.mark.parametrize("below", [True, False])
def test_a_and_r_have_200_classes(tmp_path: Path, letter: str, below: bool) -> None:
    indices = imagenet_subset(letter)
    folder = tmp_path / f"imagenet-{letter}" if below else tmp_path
    for index in (indices[7], indices[199]):
        photo(folder / imagenet_ids()[index] / "art 1.jpg")
    (folder / "README.txt").write_text("")
    source = (imagenet_a if letter == "a" else imagenet_r)(tmp_path)
    assert len(source.classes) == 200
    assert source.labels.tolist() == [7, 199]
    assert relabeled(source, imagenet_ids()).labels.tolist() == [indices[7], indices[199]]
    other = next(index for index in range(1000) if index not in indices)
    photo(folder / imagenet_ids()[other] / "x.jpg")
    with pytest.raises(DataError, match="not one of its 200 classes"):
        (imagenet_a if letter == "a" else imagenet_r)(tmp_path)


def test_evaluation_only_data_set_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="imagenet-a is for evaluation only: deit evaluate MODEL imagenet-a"):
        open_data(f"imagenet-a:{tmp_path}")
