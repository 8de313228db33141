"""Image folders: one folder per class, or unlabeled images at any depth."""

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


def folder_splits(root: Path) -> DatasetSplits:
    """Reads ``train/CLASS/image`` and ``val/CLASS/image`` (also ``valid``, ``validation``, ``test``), or ``CLASS/image``.

    Images may be nested deeper within a class folder.

    Raises:
        DataError: the folder is missing, has no images, one class or an empty class, or a class is in one split only.
    """
    if not has_split_folders(root):
        return DatasetSplits(folder_source(root), unsplit=True)
    folders = {name: root / name for name in ("train", *VALIDATION_NAMES, TEST_NAME) if (root / name).is_dir()}
    train = folder_source(folders["train"])
    validation_name = next((name for name in VALIDATION_NAMES if name in folders), None)
    validation = folder_source(folders[validation_name], train.classes) if validation_name else None
    test = folder_source(folders[TEST_NAME], train.classes) if TEST_NAME in folders else None
    names = ", ".join(source.root.name for source in (train, validation, test) if source is not None)
    return DatasetSplits(train, validation, test, origin=f"the folder's own splits: {names}")


def has_split_folders(root: Path) -> bool:
    """Whether a folder has a training split, and is not a folder of classes."""
    train = root / "train"
    return train.is_dir() and any(child.is_dir() for child in train.iterdir())


def folder_source(root: Path, classes: Sequence[str] | None = None) -> FileSource:
    """Reads ``root/CLASS/.../image``.

    Args:
        root: the folder.
        classes: class names and order of the training split; any other folder is an error. None takes the folders' names,
            sorted.

    Raises:
        DataError: as in :func:`folder_splits`.
    """
    check_folder(root)
    files_by_class: dict[str, list[str]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):  # Unicode forms of one name are one class
            files_by_class.setdefault(unicodedata.normalize("NFC", folder.name), []).extend(images_below(root, folder.name))
    files = dict(sorted(files_by_class.items()))
    if classes is None:
        _check_classes(root, files)
        classes = tuple(files)
    elif unknown := sorted(files.keys() - set(classes)):
        raise DataError(f"{root} has a class {unknown[0]!r} that the training split lacks", "rename or remove its folder")
    labeled = [(name, label) for label, class_name in enumerate(classes) for name in files.get(class_name, [])]
    if not labeled:
        raise DataError(f"{root} holds no images", "put them into one folder per class")
    labels = np.asarray([label for _, label in labeled], np.int64)
    return FileSource(root, tuple(name for name, _ in labeled), tuple(classes), labels)


def unlabeled_source(root: Path) -> FileSource:
    """Reads all images below a folder, at any depth, as one class.

    Raises:
        DataError: the folder is missing, or has fewer than two images.
    """
    check_folder(root)
    names = images_below(root)
    if len(names) < 2:
        raise DataError(f"{root} holds {len(names)} images", "add more images, at any depth")
    return FileSource(root, tuple(names), UNLABELED, np.zeros(len(names), np.int64))


def images_below(root: Path, folder: str = "") -> list[str]:
    """Returns the paths of the images below ``root/folder``, relative to ``root``, in an order independent of the disk."""
    names: list[str] = []
    for directory, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # such as .ipynb_checkpoints
        inside = os.path.relpath(directory, root)
        images = [name for name in files if is_image_name(Path(name))]
        names.extend(images if inside == os.curdir else [f"{inside}{os.sep}{name}" for name in images])
    return sorted(names, key=path_key)


def check_folder(root: Path) -> None:
    """Checks that a folder exists.

    Raises:
        DataError: it does not.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "pass the folder of your data set, or a name from `deit data list`")


def _check_classes(root: Path, files: dict[str, list[str]]) -> None:
    if not files:
        raise DataError(f"{root} has no folders in it", "make one folder per class and put its images there")
    if len(files) == 1:
        raise DataError(f"{root} has one class, {next(iter(files))!r}", "a classifier needs two or more")
    empty = [name for name, images in files.items() if not images]
    if empty:
        raise DataError(f"The class {empty[0]!r} in {root} holds no images", "add images or remove its folder")
