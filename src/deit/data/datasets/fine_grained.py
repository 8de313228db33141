"""Flowers 102 and Stanford Cars: photos in one folder, with labels in MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deit.data.datasets.download import Remote, ensure
from deit.data.datasets.mat_files import read_mat
from deit.data.sources import FileSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
FLOWERS = (
    Remote(f"{_FLOWERS}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", 344_862_509, "jpg"),
    Remote(f"{_FLOWERS}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", 502, "imagelabels.mat"),
    Remote(f"{_FLOWERS}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", 14_989, "setid.mat"),
)
CARS_VALIDATION_FRACTION = 0.1


def flowers_splits(root: Path) -> DatasetSplits:
    """Reads ``jpg/image_00001.jpg``, ``imagelabels.mat`` and ``setid.mat``, with the authors' splits.

    Raises:
        DataError: the data is missing and cannot be downloaded, or the labels are inconsistent.
    """
    from torchvision.datasets import Flowers102

    ensure(root, "Flowers 102", *FLOWERS)
    classes = tuple(Flowers102.classes)
    labels = np.atleast_1d(read_mat(root / "imagelabels.mat", "labels")).astype(np.int64) - 1
    train, validation, test = (_flowers(root, variable, labels, classes) for variable in ("trnid", "valid", "tstid"))
    return DatasetSplits(train, validation, test, origin="the training, validation and test splits of Flowers 102")


def cars_splits(root: Path) -> DatasetSplits:
    """Reads ``cars_train/00001.jpg``, ``cars_test/``, ``devkit/`` and ``cars_test_annos_withlabels.mat``.

    Raises:
        DataError: the data is missing (the authors no longer offer it), or the labels are inconsistent.
    """
    needed = ("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat")
    if missing := [name for name in needed if not (root / name).exists()]:
        raise DataError(
            f"Stanford Cars has no {missing[0]} in {root}",
            f"its authors no longer offer it; put {', '.join(needed)} of a copy there",
        )
    classes = tuple(map(str, np.atleast_1d(read_mat(root / "devkit" / "cars_meta.mat", "class_names"))))
    train = _cars(root, "cars_train", root / "devkit" / "cars_train_annos.mat", classes)
    test = _cars(root, "cars_test", root / "cars_test_annos_withlabels.mat", classes)
    origin = "the training and test splits of Stanford Cars"
    return DatasetSplits(train, test=test, origin=origin, holdout={"validation": CARS_VALIDATION_FRACTION})


def _flowers(root: Path, variable: str, labels: np.ndarray, classes: tuple[str, ...]) -> FileSource:
    numbers = np.atleast_1d(read_mat(root / "setid.mat", variable)).astype(np.int64)
    if not len(numbers) or numbers.min() < 1 or numbers.max() > len(labels):
        raise DataError(f"{root / 'setid.mat'} refers to images without a label", "copy it again")
    split_labels = labels[numbers - 1]
    _check_labels(root / "imagelabels.mat", split_labels, len(classes))
    return FileSource(root, tuple(f"jpg/image_{number:05d}.jpg" for number in numbers), classes, split_labels)


def _cars(root: Path, folder: str, file: Path, classes: tuple[str, ...]) -> FileSource:
    rows = np.atleast_1d(read_mat(file, "annotations"))
    try:
        names = [str(name) for name in rows["fname"]]
        labels = np.asarray([int(number) - 1 for number in rows["class"]], np.int64)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{file} has no file names and classes", "copy it again") from error
    if invalid := next((name for name in names if Path(name).name != name), None):
        raise DataError(f"{file} names {invalid!r}, which is not a file in {folder}", "copy it again")
    _check_labels(file, labels, len(classes))
    return FileSource(root, tuple(f"{folder}/{name}" for name in names), classes, labels)


def _check_labels(file: Path, labels: np.ndarray, classes: int) -> None:
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{file} has labels beyond the {classes} classes, or none", "copy it again")
