"""CIFAR-10 and CIFAR-100 in the authors' binary version. The Python version is pickled and not supported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deit.data.datasets.download import Remote, ensure
from deit.data.sources import ArraySource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
MAX_BYTES = 2**30
VALIDATION_FRACTION = 0.1  # 5,000 of the 50,000 training images; test images must not select checkpoints


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        title: name for messages.
        remote: the archive.
        names_file: file with the class names.
        count: number of classes.
        label_bytes: bytes before the pixels of an image; the last one is the class.
        train_files: files with the training images.
        test_file: file with the test images.
    """

    title: str
    remote: Remote
    names_file: str
    count: int
    label_bytes: int
    train_files: tuple[str, ...]
    test_file: str


CIFAR10 = Cifar(
    "CIFAR-10",
    Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        170_052_171,
        "cifar-10-batches-bin",
    ),
    "batches.meta.txt",
    10,
    1,
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test_batch.bin",
)
CIFAR100 = Cifar(
    "CIFAR-100",
    Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        168_513_733,
        "cifar-100-binary",
    ),
    "fine_label_names.txt",
    100,
    2,
    ("train.bin",),
    "test.bin",
)


def cifar_splits(cifar: Cifar, root: Path) -> DatasetSplits:
    """Reads the training images, of which a tenth is to be set aside, and the test images.

    Raises:
        DataError: the data is missing and cannot be downloaded, or a file is invalid.
    """
    ensure(root, cifar.title, cifar.remote)
    folder = root / cifar.remote.holds
    classes = _names(folder / cifar.names_file, cifar.count)
    batches = [read_batch(folder / name, cifar.label_bytes, cifar.count) for name in cifar.train_files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    train = ArraySource(images, classes, labels, "training image")
    test_images, test_labels = read_batch(folder / cifar.test_file, cifar.label_bytes, cifar.count)
    test = ArraySource(test_images, classes, test_labels, "test image")
    origin = f"the training and test splits of {cifar.title}"
    return DatasetSplits(train, test=test, origin=origin, holdout={"validation": VALIDATION_FRACTION})


def read_batch(path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of labels and pixels.

    Returns:
        Images (n, 32, 32, 3) uint8 and labels (n,) int64.

    Raises:
        DataError: the file is missing, truncated or too large, or has an invalid label.
    """
    record = label_bytes + PIXELS
    size = path.stat().st_size if path.is_file() else 0
    if not 0 < size <= MAX_BYTES or size % record:
        raise DataError(f"{path} is not a file of {record}-byte images", "copy or download the data set again")
    records = np.fromfile(path, np.uint8).reshape(-1, record)  # (n, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{path} has a label {labels.max()}, but there are {classes} classes", "copy the data set again")
    planes = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)  # (n, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels  # (n, 32, 32, 3)


def _names(path: Path, count: int) -> tuple[str, ...]:
    try:
        with path.open(encoding="utf-8") as file:
            names = tuple(file.read(2**16).split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}", "copy or download the data set again") from error
    if len(set(names)) != count:
        raise DataError(f"{path} names {len(set(names))} classes instead of {count}", "copy the data set again")
    return names
