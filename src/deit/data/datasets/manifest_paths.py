"""Finds the files that a manifest lists, under the spellings that other programs use for paths."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deit.data.datasets.manifest_table import Row
from deit.errors import DataError
from deit.images.listing import base_name, is_system_name
from deit.images.sniffing import KIND_OF_ENDING, FileKind, ending_of, has_image_ending

SAMPLE_ROWS = 20  # rows that tell which folder the paths start at
MAX_FOLDERS = 200  # beside a manifest, among which that folder is looked for
MAX_STATUS_CHECKS = 50_000  # in longer manifests an image is recognized by its path only
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class PathResolver:
    """Turns the paths of a manifest into paths of files.

    A path is used as written if there is such a file. Otherwise backslashes are read as slashes, spaces at the ends are left
    out, and an image ending is added to a name without one, such as Kaggle's ``id``.

    Args:
        manifest: the manifest; relative paths start at its folder.

    Attributes:
        notes: remarks for the user.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest, self.folder = manifest, manifest.parent
        self.notes: list[str] = []
        self._base = ""
        self._files_by_stem: dict[str, dict[str, list[str]]] = {}

    def find_base(self, rows: Sequence[Row]) -> None:
        """Finds the folder that relative paths start at: the manifest's own, or the one in it that has the images.

        Raises:
            DataError: several folders have files of these names.
        """
        sample = [row for row in rows[:: max(len(rows) // SAMPLE_ROWS, 1)] if not self._is_absolute(row.path)][:SAMPLE_ROWS]
        if not sample or any(self._exists(row) for row in sample):
            return
        found = []
        for folder in self._subfolders():
            self._base = folder
            if all(self._exists(row) for row in sample):
                found.append(folder)
        self._base = ""
        named = [folder for folder in found if base_name(folder).casefold() == self.manifest.stem.casefold()]
        if len(named) == 1:
            found = named
        if len(found) > 1:
            raise DataError(
                f"{self.manifest}, line {sample[0].line}: {sample[0].path} may be in {found[0]} or in {found[1]}",
                "write paths that start at the manifest's folder",
            )
        if found:
            self._base = found[0]
            self.notes.append(f"The paths of the manifest start at its folder {found[0]}")

    def resolve(self, row: Row) -> str:
        """Returns the path of an image, absolute or relative to the manifest's folder. The file need not exist.

        Raises:
            DataError: it is a URL, a path of Windows, leads out of the manifest's folder, or may be one of several files.
        """
        self._check(row)
        spellings = [joined(self._base, path) for path in self._spellings(row.path)]
        if len(spellings) == 1 and has_image_ending(spellings[0]):
            return spellings[0]  # without a look at the disk, which would take long for a million rows
        return next((found for path in spellings if (found := self._existing(row, path))), spellings[-1])

    def identity(self, path: str, count: int) -> object:
        """Returns what is equal for two paths of one file; in manifests of many rows, for two spellings of one path."""
        full = os.path.normpath(joined(str(self.folder), path))
        if count <= MAX_STATUS_CHECKS:
            try:
                status = Path(full).stat()
            except OSError:
                return full
            if status.st_ino:
                return status.st_dev, status.st_ino
        return full

    def _check(self, row: Row) -> None:
        location = f"{self.manifest}, line {row.line}"
        if _URL.match(row.path.strip()):
            raise DataError(f"{location} has a URL, {row.path.strip()}", "download the images and list their files")
        if os.sep == "/" and _WINDOWS_DRIVE.match(row.path.strip()) and not (self.folder / row.path).exists():
            raise DataError(f"{location} has a path of Windows, {row.path.strip()}", "write paths that start at the manifest")
        for path in self._spellings(row.path):
            if os.pardir in path and not is_absolute(path) and os.pardir in PurePosixPath(path).parts:
                raise DataError(
                    f"{location} leaves the manifest's folder", "put the manifest next to the images, or write absolute paths"
                )

    def _exists(self, row: Row) -> bool:
        try:
            return any(self._existing(row, joined(self._base, path)) is not None for path in self._spellings(row.path))
        except DataError:
            return True

    def _existing(self, row: Row, path: str) -> str | None:
        """Returns a path if there is such a file, or with an image ending if that is the only such file."""
        try:
            if (self.folder / path).is_file():
                return path
        except ValueError:
            return None
        if KIND_OF_ENDING.get(ending_of(base_name(path))) in (FileKind.IMAGE, FileKind.HEIC):
            return None
        folder, _, stem = path.rpartition(os.sep)
        names = self._names(folder).get(stem, [])
        if len(names) > 1:
            raise DataError(
                f"{self.manifest}, line {row.line}: {row.path} may be {names[0]} or {names[1]}", "write the ending of the file"
            )
        return joined(folder, names[0]) if names else None

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Returns stem -> names of the images in a folder."""
        if folder not in self._files_by_stem:
            names: defaultdict[str, list[str]] = defaultdict(list)
            try:
                for name in sorted(entry.name for entry in (self.folder / folder).iterdir()):
                    if has_image_ending(name) and not is_system_name(name, is_folder=False):
                        names[name.rpartition(".")[0]].append(name)
            except OSError:
                pass
            self._files_by_stem[folder] = names
        return self._files_by_stem[folder]

    def _subfolders(self) -> list[str]:
        """Returns the folders in the manifest's folder, and those in them."""
        found: list[str] = []
        level = [""]
        for _ in range(2):
            level = [child for folder in level for child in self._children(folder)]
            found += level
        return found[:MAX_FOLDERS]

    def _children(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.folder / folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not is_system_name(entry.name, True))
        except OSError:
            return []
        return [joined(folder, name) for name in names]

    @staticmethod
    def _is_absolute(path: str) -> bool:
        return is_absolute(path.strip()) or bool(_WINDOWS_DRIVE.match(path.strip()) or _URL.match(path.strip()))

    @staticmethod
    def _spellings(path: str) -> list[str]:
        """Returns a path as written, and as meant by programs that use backslashes or leave spaces at the ends."""
        meant = path.strip().replace("\\", "/")
        return [path] if meant == path else [path, meant]


def joined(folder: str, path: str) -> str:
    """Returns a path below a folder, both as text; an absolute path is returned as it is."""
    return f"{folder}{os.sep}{path}" if folder and not is_absolute(path) else path


def is_absolute(path: str) -> bool:
    """Whether a path does not depend on a folder; faster than ``Path`` for a million paths."""
    return path.startswith(os.sep)
