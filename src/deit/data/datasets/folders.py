"""Image files in folders: one folder a class, or any folders at all."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit.data.sources import UNLABELED, FileSource, path_key
from deit.data.splits import DatasetSplits
from deit.errors import DataError
from deit.images.decoding import is_image_name

VALIDATION_NAMES = ("val", "valid", "validation")
TEST_NAME = "test"


def folder_parts(root: Path) -> DatasetSplits:
    """``train/CLASS/image`` and ``val/CLASS/image`` (also ``valid``, ``validation``, ``test``), or ``CLASS/image``.

    Images may lie deeper within a class.

    Raises:
        DataError: no such folder, no images, one class, an empty class, or a class that only one part has.
    """
    if not has_part_folders(root):
        return DatasetSplits(folder_source(root), unsplit=True)
    folders = {name: root / name for name in ("train", *VALIDATION_NAMES, TEST_NAME) if (root / name).is_dir()}
    train = folder_source(folders["train"])
    validation_name = next((name for name in VALIDATION_NAMES if name in folders), None)
    validation = folder_source(folders[validation_name], train.classes) if validation_name else None
    test = folder_source(folders[TEST_NAME], train.classes) if TEST_NAME in folders else None
    names = ", ".join(part.root.name for part in (train, validation, test) if part is not None)
    return DatasetSplits(train, validation, test, origin=f"the folder's own parts: {names}")


def has_part_folders(root: Path) -> bool:
    """Whether a folder comes with a training part of its own, and is no plain folder of classes."""
    train = root / "train"
    return train.is_dir() and any(child.is_dir() for child in train.iterdir())


def folder_source(root: Path, classes: Sequence[str] | None = None) -> FileSource:
    """``root/CLASS/.../image``.

    Args:
        classes: names and order to follow, those of the training part; a folder of another name is an error. By default
            the folders' own names, sorted.

    Raises:
        DataError: as :func:`folder_parts` says.
    """
    check_folder(root)
    found: dict[str, list[str]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):  # two Unicode forms of one name are one class
            found.setdefault(unicodedata.normalize("NFC", folder.name), []).extend(images_below(root, folder.name))
    files = dict(sorted(found.items()))
    if classes is None:
        _check_classes(root, files)
        classes = tuple(files)
    elif unknown := sorted(files.keys() - set(classes)):
        raise DataError(f"{root} has a class {unknown[0]!r} that the training part lacks", "rename or remove its folder")
    named = [(name, label) for label, known in enumerate(classes) for name in files.get(known, [])]
    if not named:
        raise DataError(f"{root} holds no images", "put them into one folder a class")
    labels = np.asarray([label for _, label in named], np.int64)
    return FileSource(root, tuple(name for name, _ in named), tuple(classes), labels)


def unlabeled_source(root: Path) -> FileSource:
    """Every image below a folder, at any depth, as one class.

    Raises:
        DataError: no such folder, or fewer than two images in it.
    """
    check_folder(root)
    names = images_below(root)
    if len(names) < 2:
        raise DataError(f"{root} holds {len(names)} images", "put more of them into it, at any depth")
    return FileSource(root, tuple(names), UNLABELED, np.zeros(len(names), np.int64))


def images_below(root: Path, folder: str = "") -> list[str]:
    """Names of the images below ``root/folder``, relative to ``root``, in an order that does not depend on the disk."""
    names: list[str] = []
    for directory, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as .ipynb_checkpoints
        inside = os.path.relpath(directory, root)
        images = [name for name in files if is_image_name(Path(name))]
        names.extend(images if inside == os.curdir else [f"{inside}{os.sep}{name}" for name in images])
    return sorted(names, key=path_key)


def check_folder(root: Path) -> None:
    """Whether there is such a folder.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "pass the folder of your data set, or a name that `deit data list` shows")


def _check_classes(root: Path, files: dict[str, list[str]]) -> None:
    if not files:
        raise DataError(f"{root} has no folders in it", "make one folder a class and put its images there")
    if len(files) == 1:
        raise DataError(f"{root} has one class, {next(iter(files))!r}", "a classifier needs two or more")
    empty = [name for name, images in files.items() if not images]
    if empty:
        raise DataError(f"The class {empty[0]!r} in {root} holds no images", "add images or remove its folder")
