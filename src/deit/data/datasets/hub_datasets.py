"""Data sets of Hugging Face: by their name on the hub, or from a folder that ``save_to_disk`` wrote.

Nothing of a data set is run or unpickled: current releases of ``datasets`` know no scripts, tables are Arrow or Parquet, and
images come as bytes to the one decoder of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deit.data.datasets.folders import VALIDATION_NAMES
from deit.data.sources import UNLABELED, ImageSource
from deit.data.splits import DatasetSplits
from deit.errors import CheckpointError, DataError, ImageError, MissingExtraError
from deit.images.decoding import check_header, open_image
from deit.system.files import read_json

PREFIX = "hf:"
STATE_NAME = "state.json"  # of one table on disk
DICT_NAME = "dataset_dict.json"  # of several, one a part
VALIDATION_PARTS = (*VALIDATION_NAMES, "dev")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")  # in order, where several columns could be it
IMAGE_COLUMNS = ("image", "img")
_NAME = re.compile(r"hf:(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class TableSource:
    """Images in a table.

    Attributes:
        table: a ``datasets.Dataset`` whose only column holds undecoded images.
        column: that column.
        part: the table's name, for a person.
        files_below: folders in which an image may lie that the table names but does not hold.
    """

    table: Any
    column: str
    part: str
    classes: tuple[str, ...]
    labels: np.ndarray
    files_below: tuple[Path, ...] = ()

    def load(self, index: int) -> Image.Image:
        return open_image(self._content(index), self.name(index))

    def check(self, index: int) -> None:
        check_header(self._content(index), self.name(index))

    def name(self, index: int) -> str:
        return f"{self.part}[{index}]"

    def _content(self, index: int) -> Path | bytes:
        cell = self.table[index][self.column] or {}
        content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, bytes):
            return content
        if path is not None and any(Path(path).resolve().is_relative_to(folder) for folder in self.files_below):
            return Path(path)
        raise ImageError(f"{self.name(index)} is not in the data set itself", "save it with its images embedded")


def is_saved(path: Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` wrote."""
    return (path / DICT_NAME).is_file() or ((path / STATE_NAME).is_file() and (path / "dataset_info.json").is_file())


def saved_parts(path: Path) -> DatasetSplits:
    """A data set on disk.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: it is damaged, or holds no images with labels.
    """
    return _parts(_load_saved(path), str(path))


def saved_unlabeled(path: Path) -> ImageSource:
    """As :func:`saved_parts`: the training images, whatever their labels."""
    return _unlabeled(_load_saved(path), str(path))


def hub_parts(text: str) -> DatasetSplits:
    """A data set of the hub: ``hf:owner/name``, ``hf:owner/name:config``, either with ``@revision``.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: there is none of this name, no network and none in the cache, or no images with labels in it.
    """
    return _parts(*_load_hub(text))


def hub_unlabeled(text: str) -> ImageSource:
    """As :func:`hub_parts`: the training images, whatever their labels."""
    return _unlabeled(*_load_hub(text))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("A data set of Hugging Face", "data") from error
    return datasets


def _load_saved(path: Path) -> Mapping[str, Any]:
    datasets = _datasets()
    try:
        if (path / DICT_NAME).is_file():
            names = read_json(path / DICT_NAME).get("splits")
            if not isinstance(names, list) or not names:
                raise DataError(f"{path / DICT_NAME} names no parts", "save the data set again")
            _check_plain(path / DICT_NAME, names)
            for name in names:
                _check_state(path / name)
            return dict(datasets.load_from_disk(str(path)))
        _check_state(path)
        return {"all": datasets.load_from_disk(str(path))}
    except (DataError, MissingExtraError):
        raise
    except CheckpointError as error:
        raise DataError(error.problem, "save the data set again") from error
    except Exception as error:  # a damaged file can make anything go wrong in the libraries that read it
        raise DataError(f"{path} cannot be read as a saved data set ({_short(error)})", "save it again") from error


def _load_hub(text: str) -> tuple[Mapping[str, Any], str]:
    match = _NAME.match(text)
    if match is None:
        raise DataError(f"{text} is no name of the hub", "write hf:owner/name, hf:owner/name:config or hf:owner/name@revision")
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(match["name"], match["config"], revision=match["revision"])
    except Exception as error:  # whatever the hub answers, and whatever is in the files
        remedy = "check its name, go online once, or pass a folder that save_to_disk wrote"
        raise DataError(f"{match['name']} cannot be had from the hub ({_short(error)})", remedy) from error
    return dict(loaded), match["name"]


def _check_state(path: Path) -> None:
    """Whether a table's files lie in its own folder."""
    files = read_json(path / STATE_NAME).get("_data_files")
    names = [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not names:
        raise DataError(f"{path / STATE_NAME} names no files", "save the data set again")
    _check_plain(path / STATE_NAME, names)


def _check_plain(file: Path, names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{file} names {name!r}, which is no file beside it", "save the data set again")


def _parts(tables: Mapping[str, Any], name: str) -> DatasetSplits:
    sources = _sources(tables, name)
    if "train" not in sources:
        if len(sources) > 1:
            raise DataError(f"{name} has no part train", f"it has {', '.join(sources)}: write a manifest of what to learn from")
        return DatasetSplits(next(iter(sources.values())), unsplit=True)
    validation = next((sources[part] for part in VALIDATION_PARTS if part in sources), None)
    if validation is None and len(sources) == 1:
        return DatasetSplits(sources["train"], unsplit=True)
    used = [part for part in sources if part in ("train", *VALIDATION_PARTS, "test")]
    origin = f"the data set's own parts: {', '.join(used)}"
    return DatasetSplits(sources["train"], validation, sources.get("test"), origin=origin)


def _unlabeled(tables: Mapping[str, Any], name: str) -> ImageSource:
    part = "train" if "train" in tables else next(iter(tables))
    table = tables[part]
    labels = np.zeros(len(table), np.int64)
    return _table_source(table, _image_column(table, name), part, UNLABELED, labels)


def _sources(tables: Mapping[str, Any], name: str) -> dict[str, ImageSource]:
    """A source for each part with labels; string labels are counted in the training part."""
    first = tables["train"] if "train" in tables else next(iter(tables.values()))
    image, label = _image_column(first, name), _label_column(first, name)
    values = {}
    for part, table in tables.items():
        if image not in table.column_names or label not in table.column_names:
            raise DataError(f"{name} has other columns in its part {part}", "write a manifest of it")
        values[part] = table.with_format("arrow")[:][label].combine_chunks()
    values = {part: column for part, column in values.items() if len(column) and column.null_count == 0}
    if not values:
        raise DataError(f"{name} has no part with a label for each image", "choose another data set")
    names = getattr(first.features[label], "names", None)
    if names is None:
        known = next(iter(values.values())) if "train" not in values else values["train"]
        ordered = sorted(set(known.to_pylist()))
        numbers = {value: place for place, value in enumerate(ordered)}
        classes = tuple(map(str, ordered))
        labels = {part: [numbers.get(value, -1) for value in column.to_pylist()] for part, column in values.items()}
    else:
        classes = tuple(map(str, names))
        labels = {part: column.to_pylist() for part, column in values.items()}
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(
            f"{name} has the classes {', '.join(classes[:5])}", "a classifier needs two or more, each with its own name"
        )
    sources: dict[str, ImageSource] = {}
    for part, own in labels.items():
        array = np.asarray(own, np.int64)
        if (array == -1).all() and part != "train":
            continue  # a test part whose answers are kept back
        if array.min() < 0 or array.max() >= len(classes):
            raise DataError(f"{name} has a label in its part {part} that is none of its classes", "write a manifest of it")
        sources[part] = _table_source(tables[part], image, part, classes, array)
    return sources


def _table_source(table: Any, column: str, part: str, classes: tuple[str, ...], labels: np.ndarray) -> TableSource:
    datasets = _datasets()
    bare = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    try:
        bare.data.validate(full=True)
    except Exception as error:  # what Arrow says of offsets that lead nowhere
        raise DataError(f"The part {part} is damaged ({_short(error)})", "download or save it again") from error
    return TableSource(bare, column, part, classes, labels, _caches())


def _caches() -> tuple[Path, ...]:
    """Where the hub's libraries put what they downloaded."""
    from huggingface_hub import constants

    return tuple(Path(folder).resolve() for folder in (_datasets().config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE))


def _image_column(table: Any, name: str) -> str:
    images = [column for column, feature in table.features.items() if isinstance(feature, _datasets().Image)]
    return _only(images, IMAGE_COLUMNS, name, "images", table)


def _label_column(table: Any, name: str) -> str:
    datasets = _datasets()
    named = [column for column, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    values = [
        column
        for column, feature in table.features.items()
        if column in LABEL_COLUMNS
        and getattr(feature, "dtype", "") in ("string", "large_string", "int64", "int32", "int16", "int8")
    ]
    return _only(named or values, LABEL_COLUMNS, name, "labels", table)


def _only(found: list[str], preferred: tuple[str, ...], name: str, what: str, table: Any) -> str:
    if len(found) == 1:
        return found[0]
    if chosen := next((column for column in preferred if column in found), None):
        return chosen
    columns = ", ".join(table.column_names)
    if not found:
        raise DataError(f"{name} has no column of {what}, only {columns}", "write a manifest of its images")
    raise DataError(f"{name} has several columns of {what}: {', '.join(found)}", "rename the one that is meant")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200] or type(error).__name__
