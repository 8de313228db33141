"""The table of named data sets: their content, origin and terms of use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit.data.datasets.cifar import CIFAR10, CIFAR100, cifar_splits
from deit.data.datasets.fine_grained import cars_splits, flowers_splits
from deit.data.datasets.imagenet import imagenet_a, imagenet_r, imagenet_real, imagenet_splits, imagenet_v2, imagenet_validation
from deit.data.datasets.inaturalist import INATURALIST_2018, INATURALIST_2019, inaturalist_splits
from deit.data.datasets.mnist import FASHION_MNIST, MNIST, mnist_splits
from deit.data.sources import ArraySource, ImageSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError
from deit.system.home import expand_user

DIGITS = "digits"
ROOT_VARIABLE = "DEIT_DATA"
DEFAULT_ROOT = Path("~/.cache/deit")


@dataclass(frozen=True)
class NamedData:
    """One row of ``deit data list``.

    Attributes:
        classes: number of classes.
        images: number of images per split.
        terms: terms of use in a few words, as far as the authors state them.
        origin: where it comes from.
        read: reads its splits from its folder; None if it is for evaluation only.
        evaluate: reads the images to evaluate on from its folder; None if these follow from the splits.
        own_classes: whether its protocol restricts predictions to its classes.
        folder: name of its default folder; the name of the data set if empty.
        package_folder: where a package of the operating system puts it, which is read if there is no default folder.
    """

    classes: int
    images: Mapping[str, int]
    terms: str
    origin: str
    read: Callable[[Path], DatasetSplits] | None = None
    evaluate: Callable[[Path], ImageSource] | None = None
    own_classes: bool = False
    folder: str = ""
    package_folder: Path | None = None


class Reference(NamedTuple):
    """Name and folder of a named data set."""

    name: str
    root: Path

    @property
    def data(self) -> NamedData:
        """Its row of the table."""
        return NAMED[self.name]


_INAT_TERMS = "non-commercial research and education"
_ILSVRC_TERMS = "non-commercial research and education, after registration"
_NOT_STATED = "not stated"

NAMED: dict[str, NamedData] = {
    "cifar10": NamedData(
        10, {"train": 50_000, "test": 10_000}, _NOT_STATED, "downloaded (170 MB)", read=partial(cifar_splits, CIFAR10)
    ),
    "cifar100": NamedData(
        100, {"train": 50_000, "test": 10_000}, _NOT_STATED, "downloaded (169 MB)", read=partial(cifar_splits, CIFAR100)
    ),
    "mnist": NamedData(
        10, {"train": 60_000, "test": 10_000}, _NOT_STATED, "downloaded (12 MB)", read=partial(mnist_splits, MNIST)
    ),
    "fashion-mnist": NamedData(
        10,
        {"train": 60_000, "test": 10_000},
        "MIT license",
        "downloaded (31 MB)",
        read=partial(mnist_splits, FASHION_MNIST),
        package_folder=Path("/usr/share/datasets/fashion-mnist"),  # Debian's dataset-fashion-mnist
    ),
    "flowers102": NamedData(
        102, {"train": 1_020, "validation": 1_020, "test": 6_149}, _NOT_STATED, "downloaded (345 MB)", read=flowers_splits
    ),
    "stanford-cars": NamedData(
        196,
        {"train": 8_144, "test": 8_041},
        "non-commercial research",
        "your own copy; no longer offered",
        read=cars_splits,
    ),
    "inaturalist-2018": NamedData(
        8_142,
        {"train": 437_513, "validation": 24_426},
        _INAT_TERMS,
        "downloaded (120 GB)",
        read=partial(inaturalist_splits, INATURALIST_2018),
    ),
    "inaturalist-2019": NamedData(
        1_010,
        {"train": 265_213, "validation": 3_030},
        _INAT_TERMS,
        "downloaded (74 GB)",
        read=partial(inaturalist_splits, INATURALIST_2019),
    ),
    "imagenet": NamedData(
        1_000,
        {"train": 1_281_167, "validation": 50_000},
        _ILSVRC_TERMS,
        "image-net.org",
        read=imagenet_splits,
        evaluate=imagenet_validation,
    ),
    "imagenet-v2": NamedData(1_000, {"test": 10_000}, _NOT_STATED, "downloaded (1.3 GB)", evaluate=imagenet_v2),
    "imagenet-real": NamedData(
        1_000, {"test": 46_837}, _ILSVRC_TERMS, "imagenet's validation split", evaluate=imagenet_real, folder="imagenet"
    ),
    "imagenet-a": NamedData(200, {"test": 7_500}, _NOT_STATED, "downloaded (0.7 GB)", evaluate=imagenet_a, own_classes=True),
    "imagenet-r": NamedData(200, {"test": 30_000}, _NOT_STATED, "downloaded (2.2 GB)", evaluate=imagenet_r, own_classes=True),
}


def named_reference(text: str) -> Reference | None:
    """Parses ``cifar10`` or ``cifar10:FOLDER``; returns None if the text is not the name of a data set.

    The default folder is ``$DEIT_DATA/cifar10``, or ``~/.cache/deit/cifar10`` if the variable is not set. If it does not exist,
    the folder of a package of the operating system is taken, if there is one.
    """
    name, colon, folder = text.partition(":")
    if name not in NAMED or (colon and not folder):
        return None
    if folder:
        return Reference(name, expand_user(folder))
    base = expand_user(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    root, package = base / (NAMED[name].folder or name), NAMED[name].package_folder
    if package is not None and package.is_dir() and not root.exists():
        return Reference(name, package)
    return Reference(name, root)


def named_splits(reference: Reference) -> DatasetSplits:
    """Reads the splits of a named data set.

    Raises:
        DataError: it is for evaluation only, or is missing and cannot be downloaded.
    """
    if reference.data.read is None:
        raise DataError(f"{reference.name} is for evaluation only", f"deit evaluate MODEL {reference.name}")
    return reference.data.read(reference.root)


def digits_splits() -> DatasetSplits:
    """Reads the 1,797 handwritten digits of 8 x 8 pixels from scikit-learn (originally from the UCI repository)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(name) for name in raw.target_names)
    source = ArraySource(pixels, classes, raw.target.astype(np.int64), "digit")
    return DatasetSplits(source, origin="scikit-learn's digits", holdout={"validation": 0.2, "test": 0.2})
