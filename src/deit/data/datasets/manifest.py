"""Manifests: lists of images and labels in one file, CSV with a header or JSON lines.

Columns are ``path``, ``label`` and optionally ``split``, in any order; other columns are ignored. Relative paths start at the
manifest's folder and must not leave it; absolute paths are used as written. Splits are ``train``, ``val`` (or ``valid``,
``validation``) and ``test``.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deit.data.datasets.folders import TEST_NAME, VALIDATION_NAMES
from deit.data.sources import UNLABELED, FileSource
from deit.data.splits import DatasetSplits
from deit.errors import DataError

SUFFIXES = (".csv", ".jsonl")
MAX_BYTES = 2**30
MAX_LINE_BYTES = 2**16
TRAIN_NAME = "train"


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest; ``label`` and ``split`` are None if the manifest has no such column."""

    line: int
    path: str
    label: str | None
    split: str | None


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest by its suffix, and not a folder."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def manifest_splits(path: Path) -> DatasetSplits:
    """Reads the data set that a manifest lists; without a split column it is unsplit.

    Raises:
        DataError: the file is missing, a line is invalid (the message has its number), there are no labels or fewer than two
            classes, or there are no training images.
    """
    rows = list(read_manifest(path))
    if unlabeled := next((row for row in rows if row.label is None), None):
        raise DataError(f"{path}, line {unlabeled.line} has no label", "a classifier needs a column `label`")
    if not rows:
        raise DataError(f"{path} lists no images", "write one line per image below the header")
    names = {str(row.label) for row in rows if row.split in (None, TRAIN_NAME)}
    if not names:
        raise DataError(f"{path} has no images of the split train", "mark some as train, or leave the column out")
    if len(names) == 1:
        raise DataError(f"{path} has one class, {next(iter(names))!r}", "a classifier needs two or more")
    classes = tuple(sorted(names))
    if unknown := next((row for row in rows if row.label not in names), None):
        raise DataError(f"{path}, line {unknown.line} has a class {unknown.label!r} that no training image has", "remove it")
    if rows[0].split is None:
        return DatasetSplits(_source(path, rows, classes), unsplit=True)
    sources = {
        name: _source(path, split_rows, classes)
        for name in (TRAIN_NAME, VALIDATION_NAMES[0], TEST_NAME)
        if (split_rows := [row for row in rows if row.split == name])
    }
    origin = f"the manifest's own splits: {', '.join(sources)}"
    return DatasetSplits(sources[TRAIN_NAME], sources.get(VALIDATION_NAMES[0]), sources.get(TEST_NAME), origin=origin)


def unlabeled_manifest(path: Path) -> FileSource:
    """Reads the images of a manifest as one class, except for those of the test split. Labels may be missing.

    Raises:
        DataError: as in :func:`manifest_splits`.
    """
    rows = [row for row in read_manifest(path) if row.split != TEST_NAME]
    if len(rows) < 2:
        raise DataError(f"{path} lists {len(rows)} images to train on", "list more images")
    return FileSource(path.parent, tuple(row.path for row in rows), UNLABELED, np.zeros(len(rows), np.int64))


def read_manifest(path: Path) -> Iterator[Row]:
    """Yields the rows of a manifest, with splits named ``train``, ``val`` and ``test``.

    Raises:
        DataError: as in :func:`manifest_splits`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "write shorter paths or several manifests")
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the path") from error
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    first: Row | None = None
    for row in read(path):
        first = first or row
        if (row.split is None) != (first.split is None) or (row.label is None) != (first.label is None):
            raise DataError(
                f"{path}, line {row.line} has other columns than line {first.line}", "give all lines the same columns"
            )
        yield row


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = csv.reader(_lines(path), strict=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        if "path" not in header or len(set(header)) != len(header):
            raise DataError(f"{path} does not start with a header such as path,label", "name its columns in the first line")
        for fields in lines:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                counts = f"{len(fields)} fields, the header {len(header)}"
                raise DataError(f"{path}, line {lines.line_num} has {counts}", "quote paths that contain a comma")
            yield _row(path, lines.line_num, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num} is not valid CSV ({error})", "check its quotes") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not valid JSON", "write one object per line") from error
        if not isinstance(content, dict) or "path" not in content:
            raise DataError(f"{path}, line {number} is not an object with a path", 'write {"path": ..., "label": ...}')
        invalid = [key for key in ("path", "label", "split") if not isinstance(content.get(key, ""), str | int)]
        if invalid:
            raise DataError(f"{path}, line {number} has a {invalid[0]} that is not a string", "write it in quotes")
        yield _row(path, number, {key: str(content[key]) for key in ("path", "label", "split") if key in content})


def _row(manifest: Path, line: int, fields: dict[str, str]) -> Row:
    path, label, split = fields["path"], fields.get("label"), fields.get("split")
    location = f"{manifest}, line {line}"
    if not path or "\0" in path:
        raise DataError(f"{location} has no path", "every line needs a path")
    if os.pardir in path and not Path(path).is_absolute() and os.pardir in Path(path).parts:
        raise DataError(
            f"{location} leaves the manifest's folder", "put the manifest next to the images, or write absolute paths"
        )
    if label is not None and not (label := label.strip()):
        raise DataError(f"{location} has no label", "add a label or remove the line")
    if split is not None:
        split = VALIDATION_NAMES[0] if split.strip() in VALIDATION_NAMES else split.strip()
        if split not in (TRAIN_NAME, VALIDATION_NAMES[0], TEST_NAME):
            raise DataError(f"{location} has the unknown split {split!r}", "use train, val or test")
    return Row(line, path, label, split)


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number} is longer than {MAX_LINE_BYTES} bytes", "it is not a list of images")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number} is not valid UTF-8", "save it in UTF-8") from error


def _source(manifest: Path, rows: list[Row], classes: tuple[str, ...]) -> FileSource:
    indices = {name: index for index, name in enumerate(classes)}
    labels = np.asarray([indices[str(row.label)] for row in rows], np.int64)
    return FileSource(manifest.parent, tuple(row.path for row in rows), classes, labels)
