"""Manifests: lists of images, labels and splits in one file, CSV with a header or JSON lines.

Columns are known by their usual names, in any order; other columns are ignored. Relative paths start at the manifest's folder,
or at a folder in it that holds the images, and must not leave it; absolute paths are used as written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deit.data.class_names import ClassLookup, similar_names_note
from deit.data.datasets.manifest_paths import PathResolver, joined
from deit.data.datasets.manifest_table import MISSING, Row, has_label_column, read_table
from deit.data.sources import UNLABELED, FileSource, ImageSource
from deit.data.split_names import SPLITS, split_of
from deit.data.splits import DatasetSplits
from deit.errors import DataError
from deit.images.listing import LeftOut, OtherKind

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_OTHER_TABLES = {
    ".xlsx": "save it as the type 'CSV UTF-8' in Excel",
    ".xls": "save it as the type 'CSV UTF-8' in Excel",
    ".ods": "save it as CSV in UTF-8",
    ".json": "write one object per line into a file that ends in .jsonl",
    ".txt": "write it as CSV, with a header such as path,label, into a file that ends in .csv",
    ".gz": "unpack it",
    ".zip": "unpack it, and pass the folder or the list in it",
    ".tar": "unpack it, and pass the folder or the list in it",
    ".tgz": "unpack it, and pass the folder or the list in it",
}
_FLOAT_INTEGER = re.compile(r"(-?\d+)\.0+$")


@dataclass(frozen=True)
class Manifest:
    """The images that a manifest lists, each once.

    Attributes:
        rows: the images, with paths relative to the manifest's folder or absolute, and splits named ``train``, ``validation``
            and ``test``.
        notes: remarks for the user.
        left_out: rows that are not used.
    """

    rows: list[Row]
    notes: tuple[str, ...]
    left_out: LeftOut


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest by its suffix, and not a folder.

    Raises:
        DataError: it is a table in a format that is not read, such as that of a spreadsheet.
    """
    if path.suffix.lower() in SUFFIXES:
        return not path.is_dir()
    if path.suffix.lower() in _OTHER_TABLES and path.is_file():
        raise DataError(f"{path} is not a manifest in a format that is read", _OTHER_TABLES[path.suffix.lower()])
    return False


def manifest_splits(path: Path) -> DatasetSplits:
    """Reads the data set that a manifest lists; without a split column it is unsplit.

    Raises:
        DataError: the file is missing, a line is invalid (the message has its number), an image has no label or two, or is in
            two splits, or there are no images.
    """
    return _dataset(path, read_manifest(path, labeled=True))


def metadata_splits(root: Path) -> DatasetSplits | None:
    """Reads a folder whose labels are in ``metadata.csv`` or ``metadata.jsonl``, as Hugging Face's ``imagefolder`` does.

    The file is in the folder itself, or in a folder of each split.

    Returns:
        The data set; None if there is no such file with a column of labels.

    Raises:
        DataError: as in :func:`manifest_splits`.
    """
    if (path := _metadata(root)) is not None:
        return manifest_splits(path)
    folders = [] if not root.is_dir() else sorted(folder for folder in root.iterdir() if folder.is_dir())
    files = {folder: path for folder in folders if split_of(folder.name) and (path := _metadata(folder)) is not None}
    if not files:
        return None
    rows: list[Row] = []
    left_out = LeftOut()
    for folder, path in files.items():
        manifest = read_manifest(path, labeled=True)
        prefix, split = folder.name, split_of(folder.name)
        rows += [replace(row, path=joined(prefix, row.path), split=split) for row in manifest.rows]
        left_out.update(manifest.left_out)
    return _dataset(root / next(iter(files.values())).name, Manifest(rows, ("The labels are in metadata files",), left_out))


def _metadata(folder: Path) -> Path | None:
    """Returns the metadata file in a folder that has a column of labels, if any."""
    paths = [folder / name for name in METADATA_NAMES]
    return next((path for path in paths if path.is_file() and has_label_column(path)), None)


def _dataset(path: Path, manifest: Manifest) -> DatasetSplits:
    rows = manifest.rows
    if not rows:
        raise DataError(f"{path} lists no images", "write one line per image below the header")
    reference = [row for row in rows if row.split in (None, "train")] or rows
    classes = tuple(sorted({str(row.label) for row in reference}))
    lookup = ClassLookup(classes)
    for row in rows:
        if lookup.find(str(row.label)) is None:
            raise DataError(
                f"{path}, line {row.line} has a class {row.label!r} that no training image has",
                "add training images of it, or remove the line",
            )
    notes = (*manifest.notes, *similar_names_note(classes))
    obstacle = None
    if len(classes) == 1:
        obstacle = DataError(f"{path} has one class, {classes[0]!r}", "a classifier needs two or more")
    sources: dict[str | None, ImageSource] = {
        split: _source(path, split_rows, classes)
        for split in (None, *SPLITS)
        if (split_rows := [row for row in rows if row.split == split])
    }
    if "train" not in sources and None not in sources:
        obstacle = DataError(f"{path} has no images of the split train", "mark some as train, or leave the column out")
    unsplit = set(sources) in ({None}, {"train"})
    return DatasetSplits(
        sources.get("train", sources.get(None)),
        sources.get("validation"),
        sources.get("test"),
        unsplit=unsplit,
        origin="" if unsplit else f"the manifest's own splits: {', '.join(map(str, sources))}",
        obstacle=obstacle,
        notes=notes,
        left_out=manifest.left_out,
    )


def unlabeled_manifest(path: Path) -> DatasetSplits:
    """Reads the images of a manifest as one class, except for those of the test split. Labels may be missing.

    Raises:
        DataError: as in :func:`manifest_splits`, or there are fewer than two images.
    """
    manifest = read_manifest(path, labeled=False)
    rows = [row for row in manifest.rows if row.split != "test"]
    if len(rows) < 2:
        raise DataError(f"{path} lists {len(rows)} images to train on", "list more images")
    source = FileSource(path.parent, tuple(row.path for row in rows), UNLABELED, np.zeros(len(rows), np.int64))
    return DatasetSplits(source, unsplit=True, notes=manifest.notes, left_out=manifest.left_out)


def read_manifest(path: Path, labeled: bool = True) -> Manifest:
    """Reads a manifest, and finds the files that it lists.

    Args:
        path: the manifest.
        labeled: each image needs a label, unless it is in the test split.

    Raises:
        DataError: as in :func:`manifest_splits`.
    """
    table = read_table(path)
    left_out = LeftOut()
    rows = [_with_split(path, row) for row in table.rows]
    if labeled:
        rows = _labeled(path, rows, left_out)
    resolver = PathResolver(path)
    resolver.find_base(rows)
    resolved = [replace(row, path=resolver.resolve(row)) for row in rows]
    notes = (*table.notes, *resolver.notes)
    return Manifest(_unique(path, resolved, resolver, labeled, left_out), notes, left_out)


def _with_split(path: Path, row: Row) -> Row:
    if row.split is None:
        return row
    split = split_of(row.split)
    if split is None:
        problem = f"has the unknown split {row.split!r}" if row.split else "has no split"
        raise DataError(f"{path}, line {row.line} {problem}", "use train, val or test")
    return replace(row, split=split)


def _labeled(path: Path, rows: list[Row], left_out: LeftOut) -> list[Row]:
    """Returns the rows with labels, in one spelling. Rows of the test split may lack one, and are left out."""
    kept, missing = [], []
    for row in rows:
        if row.label is not None and row.label.lower() not in MISSING:
            kept.append(row)
        elif row.split == "test":
            left_out.add(OtherKind.UNLABELED_ROW, row.path)
        else:
            missing.append(row)
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        has_column = missing[0].label is not None
        remedy = "add a label or remove the line" if has_column else "a classifier needs a column `label`"
        raise DataError(f"{path}, line {missing[0].line} has no label{more}", remedy)
    labels = {str(row.label) for row in kept}
    if not all(_is_number(label) for label in labels):
        return kept
    return [replace(row, label=_FLOAT_INTEGER.sub(r"\1", str(row.label))) for row in kept]  # 1 and 1.0 are one class


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _unique(path: Path, rows: list[Row], resolver: PathResolver, labeled: bool, left_out: LeftOut) -> list[Row]:
    """Returns each image once, under whatever paths it is listed.

    Raises:
        DataError: an image has two labels, or is in two splits.
    """
    first: dict[object, Row] = {}
    unique = []
    for row in rows:
        earlier = first.setdefault(resolver.identity(row.path, len(rows)), row)
        if earlier is row:
            unique.append(row)
            continue
        lines = f"{path}, lines {earlier.line} and {row.line}"
        if labeled and earlier.label != row.label:
            labels = f"two labels, {earlier.label!r} and {row.label!r}"
            raise DataError(f"{lines} give the image {row.path} {labels}", "keep one of them")
        if earlier.split != row.split:
            raise DataError(
                f"{lines} put the image {row.path} into two splits, {earlier.split} and {row.split}", "keep one of them"
            )
        left_out.add(OtherKind.REPEATED_ROW, row.path)
    return unique


def _source(manifest: Path, rows: list[Row], classes: tuple[str, ...]) -> FileSource:
    lookup = ClassLookup(classes)
    labels = np.asarray([lookup.find(str(row.label)) for row in rows], np.int64)
    return FileSource(manifest.parent, tuple(row.path for row in rows), classes, labels)
