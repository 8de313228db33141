"""A list of images and labels in one file: CSV with a header, or JSON lines.

``path,label`` or ``path,label,split``, in any order of the columns; further columns are passed over. A relative path starts
from the manifest's folder and may not leave it; an absolute one is taken as it is written. A split is ``train``, ``val``
(or ``valid``, ``validation``) or ``test``.
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
    """One image of a manifest; a label or split that is not given is None."""

    line: int
    path: str
    label: str | None
    split: str | None


def is_manifest(path: Path) -> bool:
    """Whether a name is that of a manifest, and not of a folder."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def manifest_parts(path: Path) -> DatasetSplits:
    """The data set that a manifest lists; without a split column it is plain.

    Raises:
        DataError: no such file, a line that cannot be understood (its number is in the message), no labels, fewer than two
            classes, or a split without training images.
    """
    rows = list(read_manifest(path))
    if bare := next((row for row in rows if row.label is None), None):
        raise DataError(f"{path}, line {bare.line} has no label", "a classifier needs a column `label`")
    if not rows:
        raise DataError(f"{path} lists no images", "write one line an image below the header")
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
    found = {
        name: _source(path, own, classes)
        for name in (TRAIN_NAME, VALIDATION_NAMES[0], TEST_NAME)
        if (own := [row for row in rows if row.split == name])
    }
    origin = f"the manifest's own parts: {', '.join(found)}"
    return DatasetSplits(found[TRAIN_NAME], found.get(VALIDATION_NAMES[0]), found.get(TEST_NAME), origin=origin)


def unlabeled_manifest(path: Path) -> FileSource:
    """The images of a manifest as one class, whatever their labels; those of the split test are left out.

    Raises:
        DataError: as :func:`manifest_parts`, but labels may be missing.
    """
    rows = [row for row in read_manifest(path) if row.split != TEST_NAME]
    if len(rows) < 2:
        raise DataError(f"{path} lists {len(rows)} images to learn from", "list more of them")
    return FileSource(path.parent, tuple(row.path for row in rows), UNLABELED, np.zeros(len(rows), np.int64))


def read_manifest(path: Path) -> Iterator[Row]:
    """The rows of a manifest, one by one; splits go by the names ``train``, ``val`` and ``test``.

    Raises:
        DataError: as :func:`manifest_parts`.
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
            raise DataError(f"{path}, line {row.line} has other columns than line {first.line}", "give all lines the same")
        yield row


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = csv.reader(_lines(path), strict=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        if "path" not in header or len(set(header)) != len(header):
            raise DataError(f"{path} does not begin with a header such as path,label", "name its columns in the first line")
        for fields in lines:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                what = f"{len(fields)} fields, the header {len(header)}"
                raise DataError(f"{path}, line {lines.line_num} has {what}", "put a path with a comma in it into quotes")
            yield _row(path, lines.line_num, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num} is no CSV ({error})", "mend its quotes") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is no JSON", "write one object a line") from error
        if not isinstance(content, dict) or "path" not in content:
            raise DataError(f"{path}, line {number} is no object with a path", 'write {"path": ..., "label": ...}')
        wrong = [key for key in ("path", "label", "split") if not isinstance(content.get(key, ""), str | int)]
        if wrong:
            raise DataError(f"{path}, line {number} has a {wrong[0]} that is no text", "write it in quotes")
        yield _row(path, number, {key: str(content[key]) for key in ("path", "label", "split") if key in content})


def _row(manifest: Path, line: int, fields: dict[str, str]) -> Row:
    path, label, split = fields["path"], fields.get("label"), fields.get("split")
    here = f"{manifest}, line {line}"
    if not path or "\0" in path:
        raise DataError(f"{here} has no path", "every line names an image")
    if os.pardir in path and not Path(path).is_absolute() and os.pardir in Path(path).parts:
        raise DataError(f"{here} leaves the manifest's folder", "put the manifest beside the images, or write absolute paths")
    if label is not None and not (label := label.strip()):
        raise DataError(f"{here} has no label", "give it one or remove the line")
    if split is not None:
        split = VALIDATION_NAMES[0] if split.strip() in VALIDATION_NAMES else split.strip()
        if split not in (TRAIN_NAME, VALIDATION_NAMES[0], TEST_NAME):
            raise DataError(f"{here} has the split {split!r}", "known are train, val and test")
    return Row(line, path, label, split)


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number} is longer than {MAX_LINE_BYTES} bytes", "it is no list of images")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number} is no UTF-8", "save it in that encoding") from error


def _source(manifest: Path, rows: list[Row], classes: tuple[str, ...]) -> FileSource:
    places = {name: place for place, name in enumerate(classes)}
    labels = np.asarray([places[str(row.label)] for row in rows], np.int64)
    return FileSource(manifest.parent, tuple(row.path for row in rows), classes, labels)
