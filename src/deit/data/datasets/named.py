"""The data sets that are known by name: what is in them, where they come from, and under which terms."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit.data.datasets.cifar import CIFAR10, CIFAR100, cifar_parts
from deit.data.datasets.fine_grained import cars_parts, flowers_parts
from deit.data.datasets.imagenet import imagenet_a, imagenet_parts, imagenet_r, imagenet_real, imagenet_v2, imagenet_validation
from deit.data.datasets.inaturalist import INATURALIST_2018, INATURALIST_2019, inaturalist_parts
from deit.data.sources import ArraySource, ImageSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

DIGITS = "digits"
ROOT_VARIABLE = "DEIT_DATA"
DEFAULT_ROOT = Path("~/.cache/deit")


@dataclass(frozen=True)
class NamedData:
    """One row of ``deit data list``.

    Attributes:
        classes: how many.
        images: part -> how many.
        terms: of use, in a few words, as far as the authors state them.
        origin: where it comes from.
        read: its folder -> its parts; None where it is for evaluation alone.
        evaluate: its folder -> what a model is evaluated on; None where that follows from the parts.
        own_classes: whether its authors have models answer among its classes alone.
        folder: the folder's name where no folder is given; the data set's name by default.
    """

    classes: int
    images: Mapping[str, int]
    terms: str
    origin: str
    read: Callable[[Path], DatasetSplits] | None = None
    evaluate: Callable[[Path], ImageSource] | None = None
    own_classes: bool = False
    folder: str = ""


class Reference(NamedTuple):
    """A data set's name and the folder that it is in."""

    name: str
    root: Path

    @property
    def data(self) -> NamedData:
        """What is known of it."""
        return NAMED[self.name]


_INAT_TERMS = "non-commercial research and education"
_ILSVRC_TERMS = "non-commercial research and education, after registration"
_NOT_STATED = "not stated"

NAMED: dict[str, NamedData] = {
    "cifar10": NamedData(
        10, {"train": 50_000, "test": 10_000}, _NOT_STATED, "downloaded (170 MB)", read=partial(cifar_parts, CIFAR10)
    ),
    "cifar100": NamedData(
        100, {"train": 50_000, "test": 10_000}, _NOT_STATED, "downloaded (169 MB)", read=partial(cifar_parts, CIFAR100)
    ),
    "flowers102": NamedData(
        102, {"train": 1_020, "validation": 1_020, "test": 6_149}, _NOT_STATED, "downloaded (345 MB)", read=flowers_parts
    ),
    "stanford-cars": NamedData(
        196,
        {"train": 8_144, "test": 8_041},
        "non-commercial research",
        "your own copy; no longer offered",
        read=cars_parts,
    ),
    "inaturalist-2018": NamedData(
        8_142,
        {"train": 437_513, "validation": 24_426},
        _INAT_TERMS,
        "downloaded (120 GB)",
        read=partial(inaturalist_parts, INATURALIST_2018),
    ),
    "inaturalist-2019": NamedData(
        1_010,
        {"train": 265_213, "validation": 3_030},
        _INAT_TERMS,
        "downloaded (74 GB)",
        read=partial(inaturalist_parts, INATURALIST_2019),
    ),
    "imagenet": NamedData(
        1_000,
        {"train": 1_281_167, "validation": 50_000},
        _ILSVRC_TERMS,
        "image-net.org",
        read=imagenet_parts,
        evaluate=imagenet_validation,
    ),
    "imagenet-v2": NamedData(1_000, {"test": 10_000}, _NOT_STATED, "downloaded (1.3 GB)", evaluate=imagenet_v2),
    "imagenet-real": NamedData(
        1_000, {"test": 46_837}, _ILSVRC_TERMS, "imagenet's validation part", evaluate=imagenet_real, folder="imagenet"
    ),
    "imagenet-a": NamedData(200, {"test": 7_500}, _NOT_STATED, "downloaded (0.7 GB)", evaluate=imagenet_a, own_classes=True),
    "imagenet-r": NamedData(200, {"test": 30_000}, _NOT_STATED, "downloaded (2.2 GB)", evaluate=imagenet_r, own_classes=True),
}


def named_reference(text: str) -> Reference | None:
    """``cifar10`` or ``cifar10:FOLDER`` -> the name and where the data set is; None where the text is no such name.

    Without a folder it is ``$DEIT_DATA/cifar10``, or ``~/.cache/deit/cifar10`` where that variable is not set.
    """
    name, colon, folder = text.partition(":")
    if name not in NAMED or (colon and not folder):
        return None
    if folder:
        return Reference(name, Path(folder).expanduser())
    base = Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser()
    return Reference(name, base / (NAMED[name].folder or name))


def named_parts(reference: Reference) -> DatasetSplits:
    """The parts of a data set.

    Raises:
        DataError: it is for evaluation alone, or it is not there and cannot be fetched.
    """
    if reference.data.read is None:
        raise DataError(f"{reference.name} is for evaluation alone", f"deit evaluate MODEL {reference.name}")
    return reference.data.read(reference.root)


def digits_parts() -> DatasetSplits:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (from the UCI repository)."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    classes = tuple(str(name) for name in raw.target_names)
    source = ArraySource(pixels, classes, raw.target.astype(np.int64), "digit")
    return DatasetSplits(source, origin="scikit-learn's digits", holdout={"validation": 0.2, "test": 0.2})
