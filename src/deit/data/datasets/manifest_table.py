"""Reads the table in a manifest, CSV or JSON lines, as spreadsheets and other programs write it, and finds its columns."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.data.split_names import Split, split_of
from deit.errors import DataError
from deit.images.sniffing import has_image_ending

MAX_BYTES = 2**30
MAX_LINE_LENGTH = 2**16
SAMPLE_ROWS = 20  # whose values tell which column has the paths
DELIMITERS = ",;\t|"
# Names of columns without case, spaces and punctuation, in order of preference.
PATH_COLUMNS = (
    *("path", "filepath", "filepaths", "imagepath", "imgpath", "filename", "filenames", "file", "files", "imagefile"),
    *(
        "imagefilename",
        "imagename",
        "imgname",
        "image",
        "images",
        "img",
        "photo",
        "picture",
        "imageurl",
        "imageuri",
        "url",
        "uri",
    ),
    *("imageid", "imgid", "idcode", "id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "labelname", "class", "classes", "classname", "classlabel", "category", "categoryname", "target"),
    *("targetname", "species", "choice", "y", "labelid", "classid", "categoryid"),
)
SPLIT_COLUMNS = ("split", "subset", "partition", "mluse")
MAYBE_SPLIT_COLUMNS = ("set", "dataset", "fold", "phase", "usage")  # only if all their values are names of splits
# Columns that are true for the images of one split.
FLAG_COLUMNS: dict[str, Split] = {
    **dict.fromkeys(("istrain", "istraining", "istrainingimage", "trainflag"), "train"),
    **dict.fromkeys(("isvalid", "isval", "isvalidation", "validflag"), "validation"),
    **dict.fromkeys(("istest", "istesting", "testflag"), "test"),
}
_FLAGS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0", ""), False),
}
MISSING = frozenset(("", "nan", "null", "none", "n/a", "na"))
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest.

    Attributes:
        line: number of its line.
        path: as written.
        label: None if the manifest has no labels; empty if this image has none.
        split: as written; None if the manifest has no splits.
    """

    line: int
    path: str
    label: str | None
    split: str | None


@dataclass(frozen=True)
class Table:
    """The rows of a manifest, and remarks on how its columns were chosen."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns: index in CSV, key in JSON. ``flags`` are columns that are true for one split each."""

    path: Any
    label: Any
    split: Any
    maybe_split: bool = False
    flags: tuple[tuple[Any, Split], ...] = ()
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Reads the rows of a manifest.

    CSV is separated by commas, semicolons, tabs or bars, with names of columns in its first line; JSON lines have an object per
    line. The encoding is UTF-8, or UTF-16 with a byte order mark.

    Raises:
        DataError: the file is missing, too large or not such a table; the message has the number of the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB", "write shorter paths or several manifests")
        table = _read_json(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the path") from error
    return table


def has_label_column(path: Path) -> bool:
    """Whether a table has a column of paths and one that is named as labels.

    Raises:
        DataError: as in :func:`read_table`.
    """
    try:
        first = next((line for _, line in _lines(path) if line.strip()), "").lstrip("\ufeff")
    except OSError as error:
        raise DataError(f"Cannot read {path}", error.strerror or "check the path") from error
    if path.suffix.lower() == ".csv":
        names = next(csv.reader([first], delimiter=_delimiter(first, path)), [])
    else:
        try:
            names = list(json.loads(first))
        except (ValueError, TypeError, RecursionError):
            return False
    columns = [_column_name(str(name)) for name in names]
    return _first(columns, PATH_COLUMNS) is not None and _first(columns, LABEL_COLUMNS) is not None


def _read_csv(path: Path) -> Table:
    lines = _lines(path)
    number, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    first = first.lstrip("\ufeff")
    if first[:4].lower() == "sep=" and len(first.rstrip("\r\n")) == 5:  # for Excel
        delimiter = first[4]
        number, first = next(lines, (2, ""))
    else:
        delimiter = _delimiter(first, path)
    records = _records(path, first, number, lines, delimiter)
    header = next(records, (1, []))[1]
    names = [_column_name(name) for name in header]
    columns, rows = _find_columns(names, header), list(records)
    if columns is None and (found := _column_of_paths(header, [fields for _, fields in rows])) is not None:
        columns = _find_columns(names, header, path=found)
    if columns is None:
        return _headerless(path, [(number, header), *rows])
    for index in (columns.path, columns.label, columns.split):
        if index is not None and names.count(names[index]) > 1:
            raise DataError(f"{path} has two columns named {header[index].strip()!r}", "rename or remove one of them")
    return _table(path, [(line, _padded(path, line, fields, header, columns)) for line, fields in rows], columns)


def _records(
    path: Path, first: str, number: int, lines: Iterator[tuple[int, str]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the last line and the fields of each record that is not empty."""
    current = number

    def text() -> Iterator[str]:
        nonlocal current
        yield first
        for current, line in lines:  # noqa: B007
            yield line

    reader = csv.reader(text(), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield current, fields
    except csv.Error as error:
        raise DataError(f"{path}, line {current} is not valid CSV ({error})", "check its quotes") from error


def _padded(path: Path, line: int, fields: list[str], header: list[str], columns: _Columns) -> list[str]:
    """Checks the number of fields. Empty ones may be missing or too many at the end, as spreadsheets write them."""
    flags = (index for index, _ in columns.flags)
    needed = max(index for index in (columns.path, columns.label, columns.split, *flags) if index is not None)
    if len(fields) <= needed or any(field.strip() for field in fields[len(header) :]):
        counts = f"{len(fields)} fields, the header {len(header)}"
        raise DataError(f"{path}, line {line} has {counts}", "quote paths that contain the separator")
    return fields


def _headerless(path: Path, records: list[tuple[int, list[str]]]) -> Table:
    """Reads a table without names of columns, if what is in them tells them apart, as of Google's AutoML."""
    remedy = "name its columns in the first line, such as path,label"
    width = len(records[0][1])
    problem = DataError(f"{path} does not start with a header such as path,label", remedy)
    if any(len(fields) != width for _, fields in records):
        raise problem
    if not width:
        raise problem
    columns = list(zip(*(fields for _, fields in records), strict=True))
    paths = [index for index, values in enumerate(columns) if _is_path(values[0])]
    if len(paths) != 1:
        raise problem
    others = [index for index in range(width) if index not in paths and any(value.strip() for value in columns[index])]
    splits = [index for index in others if all(split_of(value) for value in columns[index])] if len(others) > 1 else []
    labels = [index for index in others if index not in splits[:1]]
    if len(labels) != 1:
        raise problem
    note = "The manifest has no header: its columns were told apart by their values"
    return _table(path, records, _Columns(paths[0], labels[0], next(iter(splits), None), notes=(note,)))


def _column_of_paths(header: Sequence[str], records: Sequence[Sequence[str]]) -> int | None:
    """Returns the only column whose values, but not whose name, are paths of images, if any."""
    if not records or any(map(_is_path, header)):
        return None
    sample = records[:SAMPLE_ROWS]
    found = [index for index in range(len(header)) if all(len(row) > index and _is_path(row[index]) for row in sample)]
    return found[0] if len(found) == 1 else None


def _is_path(value: str) -> bool:
    return has_image_ending(value.strip()) or "://" in value


def _read_json(path: Path) -> Table:
    records: list[tuple[int, dict[str, Any]]] = []
    for number, line in _lines(path):
        text = line.strip().lstrip("\ufeff")
        if not text:
            continue
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not valid JSON", "write one object per line") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}, line {number} is not an object with a path", 'write {"path": ..., "label": ...}')
        records.append((number, content))
    if not records:
        return Table([])
    keys = list(dict.fromkeys(key for _, content in records for key in content))
    columns = _find_columns([_column_name(key) for key in keys], keys, keys)
    if columns is None:
        raise DataError(f"{path}, line {records[0][0]} is not an object with a path", 'write {"path": ..., "label": ...}')
    return _table(path, records, columns)


def _table(path: Path, records: Sequence[tuple[int, Any]], columns: _Columns) -> Table:
    """Makes rows of records."""
    notes = list(columns.notes)
    split = columns.split
    if columns.maybe_split and not all(split_of(_text(path, line, "split", record, split)) for line, record in records):
        notes.append("A column whose values are not train, val or test is not used for splits")
        split = None
    rows = []
    for line, record in records:
        value = _text(path, line, "path", record, columns.path)
        if not value.strip() or "\0" in value:
            raise DataError(f"{path}, line {line} has no path", "every line needs a path")
        label = None if columns.label is None else _text(path, line, "label", record, columns.label).strip()
        row_split = None if split is None else _text(path, line, "split", record, split).strip()
        if split is None and columns.flags:
            row_split = _flagged_split(path, line, record, columns.flags)
        rows.append(Row(line, value, label, row_split))
    return Table(rows, tuple(notes))


def _flagged_split(path: Path, line: int, record: Any, flags: Sequence[tuple[Any, Split]]) -> str:
    """Returns the split whose column is true. If none is: ``train``, or ``test`` if the only column is that of training."""
    found = []
    for column, split in flags:
        value = _text(path, line, "flag", record, column).strip()
        if value.lower() not in _FLAGS:
            raise DataError(f"{path}, line {line} has {value!r} in the column of the {split} split", "write true or false")
        if _FLAGS[value.lower()]:
            found.append(split)
    if len(found) > 1:
        raise DataError(f"{path}, line {line} is in two splits, {found[0]} and {found[1]}", "keep one of them")
    if found:
        return found[0]
    splits = [split for _, split in flags]
    if "train" not in splits:
        return "train"
    return "test" if splits == ["train"] else ""


def _text(path: Path, line: int, what: str, record: Any, column: Any) -> str:
    """Returns a field as text; empty if it is missing."""
    value = record.get(column) if isinstance(record, dict) else record[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise DataError(f"{path}, line {line} has a {what} that is not a string", "write it in quotes")
    return str(value)


def _find_columns(
    names: list[str], shown: Sequence[str], keys: Sequence[str] | None = None, path: int | None = None
) -> _Columns | None:
    """Finds the columns by their names; None if there is no column of paths.

    Args:
        names: simplified names.
        shown: the same names as written.
        keys: what finds a field in a record, for each name; None for its index.
        path: index of the column of paths, if it is known by its values.
    """
    notes = [] if path is None else [f"The column {shown[path].strip()!r} has the paths"]
    path = _first(names, PATH_COLUMNS) if path is None else path
    if path is None:
        return None
    split = _first(names, SPLIT_COLUMNS)
    maybe = _first(names, MAYBE_SPLIT_COLUMNS) if split is None else None
    label = _first(names, LABEL_COLUMNS)
    flags = [index for index, name in enumerate(names) if name in FLAG_COLUMNS] if split is None and maybe is None else []
    if label is None:
        known = (path, split, maybe, *flags)
        others = [i for i, name in enumerate(names) if i not in known and name not in ("", "index") and name[:7] != "unnamed"]
        if len(others) > 1:
            others = [i for i in others if names[i] not in PATH_COLUMNS]  # such as an id beside the path
        if len(others) == 1:
            label = others[0]
            notes.append(f"The column {shown[label].strip()!r} has the labels")
    if flags:
        plural = "s" if len(flags) > 1 else ""
        notes.append(f"The splits come from the column{plural} {', '.join(shown[index].strip() for index in flags)}")

    def key(index: int | None) -> Any:
        return index if index is None or keys is None else keys[index]

    flagged = tuple((key(index), FLAG_COLUMNS[names[index]]) for index in flags)
    return _Columns(key(path), key(label), key(maybe if split is None else split), maybe is not None, flagged, tuple(notes))


def _first(names: list[str], preferred: Sequence[str]) -> int | None:
    return next((names.index(name) for name in preferred if name in names), None)


def _column_name(name: str) -> str:
    """Returns the name of a column without case, spaces and punctuation: "File Name" and "file_name" are "filename"."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _delimiter(header: str, path: Path) -> str:
    """Returns the character that separates the columns in the first line of a table."""
    scores = []
    for delimiter in DELIMITERS:
        try:
            fields = next(csv.reader([header], delimiter=delimiter, skipinitialspace=delimiter != "\t"), [])
        except csv.Error:
            continue
        known = _first([_column_name(field) for field in fields], PATH_COLUMNS) is not None
        preferred = delimiter == ("\t" if path.suffix.lower() == ".tsv" else ",")
        scores.append((known or any(map(_is_path, fields)), len(fields), preferred, delimiter))
    return max(scores)[3] if scores else ","


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number and text of each line, with its line end."""
    with path.open("rb") as file:
        head = file.read(4)
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
        if head[:3] != b"" and head[1:2] == b"\0" and encoding == "utf-8":
            raise DataError(f"{path}, line 1 is not valid UTF-8", _ENCODING_REMEDY)
        file.seek(0)
        number = 0
        with io.TextIOWrapper(file, encoding, newline="") as text:
            try:
                while line := text.readline(MAX_LINE_LENGTH + 1):
                    number += 1
                    if len(line) > MAX_LINE_LENGTH:
                        problem = f"{path}, line {number} is longer than {MAX_LINE_LENGTH} characters"
                        raise DataError(problem, "it is not a list of images")
                    yield number, line
            except UnicodeError as error:
                line_number = number + 1 if encoding == "utf-16" else _invalid_line(path)
                shown = "UTF-16" if encoding == "utf-16" else "UTF-8"
                raise DataError(f"{path}, line {line_number} is not valid {shown}", _ENCODING_REMEDY) from error


_ENCODING_REMEDY = "save it in UTF-8; in Excel, as the type 'CSV UTF-8'"


def _invalid_line(path: Path) -> int:
    """Returns the number of the first line that is not UTF-8."""
    number = 1
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_LENGTH):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                if error.start < len(line) - 3 or line.endswith(b"\n"):
                    return number
            number += line.endswith(b"\n")
    return number
