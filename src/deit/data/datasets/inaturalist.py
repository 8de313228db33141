"""iNaturalist's competitions of 2018 and 2019: photographs in folders, and JSON files that say which are for training."""

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
CATEGORIES_NAME = "categories.json"  # the species' true names, which the competitions hid


@dataclass(frozen=True)
class INaturalist:
    """One year's competition."""

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


def inaturalist_parts(competition: INaturalist, root: Path) -> DatasetSplits:
    """``train_val2018/Aves/2820/photo.jpg``, ``train2018.json`` and ``val2018.json``; ``categories.json`` names the species.

    Raises:
        DataError: no network and no data, or JSON that does not fit.
    """
    year = competition.year
    needed = (f"train{year}.json", f"val{year}.json", f"train_val{year}")
    if not all((root / name).exists() for name in needed):  # without the species' names it is whole too
        ensure(root, f"iNaturalist {year}", *competition.remotes)
    train, validation = _read(root / f"train{year}.json"), _read(root / f"val{year}.json")
    named = _read(root / CATEGORIES_NAME) if (root / CATEGORIES_NAME).is_file() else train
    places, classes = _categories(root, train, named)
    origin = f"the training and validation part of iNaturalist {year}"
    learned, shown = (_source(root, *part, places, classes) for part in (("train", train), ("val", validation)))
    return DatasetSplits(learned, shown, origin=origin)


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise DataError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB", "it is no list of images")
        return json.loads(raw)
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the file") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} holds no valid JSON", "copy it again") from error


def _categories(root: Path, train: Any, named: Any) -> tuple[dict[int, int], tuple[str, ...]]:
    """Category -> label in the order of the categories' numbers, and the labels' names."""
    try:
        numbers = sorted({int(row["id"]) for row in train["categories"]})
        rows = named["categories"] if isinstance(named, dict) else named
        names = {int(row["id"]): str(row["name"]) for row in rows}
        found = [names[number] for number in numbers]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"The categories in {root} lack or garble {error}", "copy its JSON files again") from error
    doubles = {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else set()
    classes = tuple(f"{name} ({number})" if name in doubles else name for name, number in zip(found, numbers, strict=True))
    return {number: place for place, number in enumerate(numbers)}, classes


def _source(root: Path, part: str, content: Any, places: dict[int, int], classes: tuple[str, ...]) -> FileSource:
    try:
        files = {int(row["id"]): str(row["file_name"]) for row in content["images"]}
        found = [(files[int(row["image_id"])], places[int(row["category_id"])]) for row in content["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"The images of {part} in {root} lack or garble {error}", "copy its JSON files again") from error
    if not found:
        raise DataError(f"The part {part} in {root} lists no images", "copy its JSON files again")
    for name, _ in found:
        if name.startswith(os.sep) or (os.pardir in name and os.pardir in Path(name).parts):
            raise DataError(f"The part {part} in {root} lists {name!r}, which is not below it", "copy its JSON files again")
    return FileSource(root, tuple(name for name, _ in found), classes, np.asarray([label for _, label in found], np.int64))
