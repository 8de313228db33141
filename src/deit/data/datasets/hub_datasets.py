"""Hugging Face data sets: by name on the hub, or from a directory that ``save_to_disk`` wrote.

Nothing in a data set is executed or unpickled: current releases of ``datasets`` support no scripts, tables are Arrow or
Parquet, and images are passed as bytes to the decoder of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.data.sources import UNLABELED, ImageSource
from deit.data.split_names import Split, split_of
from deit.data.splits import DatasetSplits
from deit.errors import CheckpointError, DataError, ImageError, MissingExtraError
from deit.images.conversion import ValueRange
from deit.images.decoding import EncodedImage, check_header, open_image
from deit.system.files import read_json

PREFIX = "hf:"
STATE_NAME = "state.json"  # of one table on disk
DICT_NAME = "dataset_dict.json"  # of several tables, one per split
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")  # in order of preference
IMAGE_COLUMNS = ("image", "img")
_NAME = re.compile(r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class TableSource:
    """Images in a table.

    Attributes:
        table: a ``datasets.Dataset`` whose only column holds encoded images.
        column: that column.
        split: name of the table, for messages.
        classes: class names.
        labels: class index of each image, (n,) int64.
        allowed_folders: folders of image files that the table may refer to.
        value_range: black and white of images with more than 8 bits, see :mod:`deit.data.value_range`.
    """

    table: Any
    column: str
    split: str
    classes: tuple[str, ...]
    labels: np.ndarray
    allowed_folders: tuple[Path, ...] = ()
    value_range: ValueRange | None = None

    def load(self, index: int) -> Image.Image:
        return open_image(self.content(index), self.name(index), self.value_range)

    def open(self, index: int) -> EncodedImage:
        return EncodedImage(self.content(index), self.name(index), self.value_range)

    def check(self, index: int) -> None:
        check_header(self.content(index), self.name(index))

    def with_value_range(self, value_range: ValueRange) -> TableSource:
        return replace(self, value_range=value_range)

    def name(self, index: int) -> str:
        return f"{self.split}[{index}]"

    def content(self, index: int) -> Path | bytes:
        cell = self.table[index][self.column] or {}
        content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, bytes):
            return content
        if path is not None and any(Path(path).resolve().is_relative_to(folder) for folder in self.allowed_folders):
            return Path(path)
        raise ImageError(f"{self.name(index)} is not part of the data set", "save it with embedded images")


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote a directory."""
    return (path / DICT_NAME).is_file() or ((path / STATE_NAME).is_file() and (path / "dataset_info.json").is_file())


def saved_splits(path: Path) -> DatasetSplits:
    """Reads a saved data set.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: it is damaged, or has no labeled images.
    """
    return _splits(_load_saved(path), str(path))


def saved_unlabeled(path: Path) -> ImageSource:
    """Reads the training images of a saved data set, ignoring labels; see :func:`saved_splits`."""
    return _unlabeled(_load_saved(path), str(path))


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder with Parquet files of splits in it or in its folder ``data``."""
    if path.suffix.lower() == ".parquet":
        return not path.is_dir()
    return any(_parquet_split(file) for folder in (path, path / "data") for file in folder.glob("*.parquet"))


def _parquet_split(file: Path) -> Split | None:
    """Returns the split that the first word of a file's name names, as in ``train-00000-of-00010.parquet``."""
    return split_of(file.stem.partition("-")[0])


def parquet_splits(path: Path) -> DatasetSplits:
    """Reads Parquet files with a column of images and one of labels; splits are recognized by the names of the files.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: they cannot be read, or have no labeled images.
    """
    return _splits(_load_parquet(path), str(path))


def parquet_unlabeled(path: Path) -> ImageSource:
    """Reads the training images of Parquet files, ignoring labels; see :func:`parquet_splits`."""
    return _unlabeled(_load_parquet(path), str(path))


def hub_splits(text: str) -> DatasetSplits:
    """Reads a data set on the hub: ``hf:owner/name`` or ``hf:owner/name:config``, optionally with ``@revision``.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: it does not exist, is not cached and cannot be downloaded, or has no labeled images.
    """
    return _splits(*_load_hub(text))


def hub_unlabeled(text: str) -> ImageSource:
    """Reads the training images of a data set on the hub, ignoring labels; see :func:`hub_splits`."""
    return _unlabeled(*_load_hub(text))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("A Hugging Face data set", "data") from error
    return datasets


def _load_saved(path: Path) -> Mapping[str, Any]:
    datasets = _datasets()
    try:
        if (path / DICT_NAME).is_file():
            names = read_json(path / DICT_NAME).get("splits")
            if not isinstance(names, list) or not names:
                raise DataError(f"{path / DICT_NAME} names no splits", "save the data set again")
            _check_file_names(path / DICT_NAME, names)
            for name in names:
                _check_state(path / name)
            return dict(datasets.load_from_disk(str(path)))
        _check_state(path)
        return {"all": datasets.load_from_disk(str(path))}
    except (DataError, MissingExtraError):
        raise
    except CheckpointError as error:
        raise DataError(error.problem, "save the data set again") from error
    except Exception as error:  # the libraries raise all kinds of errors on damaged files
        raise DataError(f"{path} cannot be read as a saved data set ({_short(error)})", "save it again") from error


def _load_parquet(path: Path) -> Mapping[str, Any]:
    datasets = _datasets()
    try:
        by_split: dict[str, list[str]] = {}
        if path.is_file():
            by_split["train"] = [str(path)]
        for file in sorted((*path.glob("*.parquet"), *path.glob("data/*.parquet"))):
            if split := _parquet_split(file):
                by_split.setdefault(split, []).append(str(file))
        return dict(datasets.load_dataset("parquet", data_files=by_split))
    except Exception as error:  # the libraries raise all kinds of errors on damaged files
        raise DataError(f"{path} cannot be read as Parquet ({_short(error)})", "check the files") from error


def _load_hub(text: str) -> tuple[Mapping[str, Any], str]:
    match = _NAME.match(text)
    if match is None:
        raise DataError(f"{text} is not a hub name", "write hf:owner/name, hf:owner/name:config or hf:owner/name@revision")
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(match["name"], match["config"], revision=match["revision"])
    except Exception as error:  # the hub and the files can raise all kinds of errors
        remedy = "check its name, go online once, or pass a folder that save_to_disk wrote"
        raise DataError(f"{match['name']} cannot be loaded from the hub ({_short(error)})", remedy) from error
    return dict(loaded), match["name"]


def _check_state(path: Path) -> None:
    """Checks that the files of a table are in its own folder."""
    files = read_json(path / STATE_NAME).get("_data_files")
    names = [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not names:
        raise DataError(f"{path / STATE_NAME} names no files", "save the data set again")
    _check_file_names(path / STATE_NAME, names)


def _check_file_names(file: Path, names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{file} names {name!r}, which is not a file next to it", "save the data set again")


def _splits(tables: Mapping[str, Any], name: str) -> DatasetSplits:
    sources = _sources(tables, name)
    if len(sources) == 1:
        return DatasetSplits(next(iter(sources.values())), unsplit=True)
    splits = _split_names(sources, name)
    if "train" not in splits:
        raise DataError(
            f"{name} has no train split", f"it has {', '.join(sources)}: write a manifest of the images to train on"
        )
    by_split = {split: sources[table] for split, table in splits.items()}
    origin = f"the data set's own splits: {', '.join(splits.values())}"
    others = [table for table in sources if table not in splits.values()]
    notes = (f"The splits {', '.join(others)} are not used",) if others else ()
    return DatasetSplits(by_split["train"], by_split.get("validation"), by_split.get("test"), origin=origin, notes=notes)


def _split_names(tables: Iterable[str], name: str) -> dict[Split, str]:
    """Returns split -> name of its table."""
    splits: dict[Split, str] = {}
    for table in tables:
        split = split_of(table)
        if split is None or splits.get(split) == split:  # beside "train", a table "train_2" is not used
            continue
        if split in splits and table != split:
            problem = f"{name} has two tables for the {split} split, {splits[split]} and {table}"
            raise DataError(problem, "write a manifest of the images to use")
        splits[split] = table
    return splits


def _train_table(tables: Mapping[str, Any]) -> str:
    """Returns the name of the training table, or of the first one if none is named so."""
    named = [table for table in tables if split_of(table) == "train"]
    return "train" if "train" in tables else (named or list(tables))[0]


def _unlabeled(tables: Mapping[str, Any], name: str) -> ImageSource:
    split = _train_table(tables)
    table = tables[split]
    labels = np.zeros(len(table), np.int64)
    return _table_source(table, _image_column(table, name), split, UNLABELED, labels)


def _sources(tables: Mapping[str, Any], name: str) -> dict[str, ImageSource]:
    """Returns a source per labeled split. Classes of string labels are those of the training split."""
    train = _train_table(tables)
    first = tables[train]
    image, label = _image_column(first, name), _label_column(first, name)
    values = {}
    for split, table in tables.items():
        if image not in table.column_names or label not in table.column_names:
            raise DataError(f"{name} has other columns in its split {split}", "write a manifest of it")
        values[split] = table.with_format("arrow")[:][label].combine_chunks()
    values = {split: column for split, column in values.items() if len(column) and column.null_count == 0}
    if not values:
        raise DataError(f"{name} has no split with a label for each image", "choose another data set")
    names = getattr(first.features[label], "names", None)
    if names is None:
        reference = values[_train_table(values)]
        ordered = sorted(set(reference.to_pylist()))
        indices = {value: index for index, value in enumerate(ordered)}
        classes = tuple(map(str, ordered))
        labels = {split: [indices.get(value, -1) for value in column.to_pylist()] for split, column in values.items()}
    else:
        classes = tuple(map(str, names))
        labels = {split: column.to_pylist() for split, column in values.items()}
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(
            f"{name} has the classes {', '.join(classes[:5])}", "a classifier needs two or more, each with a unique name"
        )
    sources: dict[str, ImageSource] = {}
    for split, split_labels in labels.items():
        array = np.asarray(split_labels, np.int64)
        if (array == -1).all() and split != train:
            continue  # a test split whose labels are withheld
        if array.min() < 0 or array.max() >= len(classes):
            raise DataError(f"{name} has an invalid label in its split {split}", "write a manifest of it")
        sources[split] = _table_source(tables[split], image, split, classes, array)
    return sources


def _table_source(table: Any, column: str, split: str, classes: tuple[str, ...], labels: np.ndarray) -> TableSource:
    datasets = _datasets()
    bare = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    try:
        bare.data.validate(full=True)
    except Exception as error:  # Arrow rejects invalid offsets
        raise DataError(f"The split {split} is damaged ({_short(error)})", "download or save it again") from error
    return TableSource(bare, column, split, classes, labels, _caches())


def _caches() -> tuple[Path, ...]:
    """Returns the cache directories of the hub's libraries."""
    from huggingface_hub import constants

    return tuple(Path(folder).resolve() for folder in (_datasets().config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE))


def _image_column(table: Any, name: str) -> str:
    images = [column for column, feature in table.features.items() if isinstance(feature, _datasets().Image)]
    return _choose_column(images, IMAGE_COLUMNS, name, "images", table)


def _label_column(table: Any, name: str) -> str:
    datasets = _datasets()
    named = [column for column, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    values = [
        column
        for column, feature in table.features.items()
        if column in LABEL_COLUMNS
        and getattr(feature, "dtype", "") in ("string", "large_string", "int64", "int32", "int16", "int8")
    ]
    return _choose_column(named or values, LABEL_COLUMNS, name, "labels", table)


def _choose_column(candidates: list[str], preferred: tuple[str, ...], name: str, what: str, table: Any) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if column := next((column for column in preferred if column in candidates), None):
        return column
    columns = ", ".join(table.column_names)
    if not candidates:
        raise DataError(f"{name} has no column of {what}, only {columns}", "write a manifest of its images")
    raise DataError(f"{name} has several columns of {what}: {', '.join(candidates)}", "rename the one to use")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200] or type(error).__name__
