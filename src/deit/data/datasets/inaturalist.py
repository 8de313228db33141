"""The iNaturalist competitions of 2018 and 2019: photos in folders, with splits and labels in JSON files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deit.data.datasets.download import Remote, ensure
from deit.data.sources import FileSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

MAX_JSON_BYTES = 2**30
_STORE = "https://ml-inat-competition-datasets.s3.amazonaws.com"
CATEGORIES_NAME = "categories.json"  # the names of the species, which the competitions hid


@dataclass(frozen=True)
class INaturalist:
    """The competition of a year."""

    year: int
    remotes: tuple[Remote, ...]


def _year(year: int, images: tuple[str, int], train: tuple[str, int], validation: tuple[str, int]) -> INaturalist:
    folder = f"{_STORE}/{year}"
    return INaturalist(
        year,
        (
            Remote(f"{folder}/train{year}.json.tar.gz", *train, f"train{year}.json"),
            Remote(f"{folder}/val{year}.json.tar.gz", *validation, f"val{year}.json"),
            Remote(f"{folder}/{CATEGORIES_NAME}.tar.gz", None, 2_000_000, CATEGORIES_NAME),
            Remote(f"{folder}/train_val{year}.tar.gz", *images, f"train_val{year}"),
        ),
    )


INATURALIST_2018 = _year(
    2018,
    ("b1c6952ce38f31868cc50ea72d066cc3", 120_000_000_000),
    ("bfa29d89d629cbf04d826a720c0a68b0", 26_000_000),
    ("f2ed8bfe3e9901cdefceb4e53cd3775d", 26_000_000),
)
INATURALIST_2019 = _year(
    2019,
    ("c60a6e2962c9b8ccbd458d12c8582644", 74_000_000_000),
    ("b06a6683537867c0d5c7a45f407a306d", 13_000_000),
    ("5cc5509b0fe495f1c8c1362612448497", 160_000),
)


def inaturalist_splits(competition: INaturalist, root: Path) -> DatasetSplits:
    """Reads ``train_val2018/Aves/2820/photo.jpg``, ``train2018.json``, ``val2018.json`` and ``categories.json``, if any.

    Raises:
        DataError: the data is missing and cannot be downloaded, or the JSON files are inconsistent.
    """
    year = competition.year
    needed = (f"train{year}.json", f"val{year}.json", f"train_val{year}")
    if not all((root / name).exists() for name in needed):  # categories.json is optional
        ensure(root, f"iNaturalist {year}", *competition.remotes)
    train, validation = _read(root / f"train{year}.json"), _read(root / f"val{year}.json")
    named = _read(root / CATEGORIES_NAME) if (root / CATEGORIES_NAME).is_file() else train
    labels, classes = _categories(root, train, named)
    origin = f"the training and validation splits of iNaturalist {year}"
    return DatasetSplits(
        _source(root, "train", train, labels, classes), _source(root, "val", validation, labels, classes), origin=origin
    )


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise DataError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB", "it is not a list of images")
        return json.loads(raw)
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON", "copy it again") from error


def _categories(root: Path, train: Any, named: Any) -> tuple[dict[int, int], tuple[str, ...]]:
    """Returns category ID -> label, in the order of the IDs, and the class names."""
    try:
        ids = sorted({int(row["id"]) for row in train["categories"]})
        rows = named["categories"] if isinstance(named, dict) else named
        names = {int(row["id"]): str(row["name"]) for row in rows}
        ordered = [names[category] for category in ids]
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The categories in {root} have a missing or invalid entry ({error})", "copy its JSON files again"
        ) from error
    duplicates = {name for name in ordered if ordered.count(name) > 1} if len(set(ordered)) < len(ordered) else set()
    classes = tuple(f"{name} ({category})" if name in duplicates else name for name, category in zip(ordered, ids, strict=True))
    return {category: label for label, category in enumerate(ids)}, classes


def _source(root: Path, split: str, content: Any, labels: dict[int, int], classes: tuple[str, ...]) -> FileSource:
    try:
        files = {int(row["id"]): str(row["file_name"]) for row in content["images"]}
        labeled = [(files[int(row["image_id"])], labels[int(row["category_id"])]) for row in content["annotations"]]
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The images of {split} in {root} have a missing or invalid entry ({error})", "copy its JSON files again"
        ) from error
    if not labeled:
        raise DataError(f"The split {split} in {root} lists no images", "copy its JSON files again")
    for name, _ in labeled:
        if name.startswith(os.sep) or (os.pardir in name and os.pardir in Path(name).parts):
            raise DataError(f"The split {split} in {root} lists {name!r}, which is outside of it", "copy its JSON files again")
    return FileSource(root, tuple(name for name, _ in labeled), classes, np.asarray([label for _, label in labeled], np.int64))
