"""Image folders: one folder per class, or unlabeled images at any depth."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit.data.class_names import ClassLookup, class_key, similar_names_note
from deit.data.datasets.folder_layout import ClassFolders, Layout, find_layout, find_split_folders
from deit.data.sources import UNLABELED, FileSource
from deit.data.split_names import Split
from deit.data.splits import DatasetSplits
from deit.errors import DataError
from deit.images.listing import Folder, is_own_directory, list_folder

MANIFEST_ENDINGS = (".csv", ".tsv", ".jsonl")


def folder_splits(root: Path, known_classes: Sequence[str] = ()) -> DatasetSplits:
    """Reads ``train/CLASS/image``, ``val/CLASS/image`` and ``test/CLASS/image``, or ``CLASS/image``.

    Images may be nested deeper within a class folder. Names of splits have synonyms, see
    :func:`deit.data.split_names.split_of`. What training cannot use, such as a single class, is the ``obstacle`` of the result.

    Args:
        root: the folder.
        known_classes: classes of the model that the data is for, if any: a folder of such a name is a class.

    Raises:
        DataError: the folder is missing or has no images, or its folders are neither clearly splits nor classes; a class is in
            one split only.
    """
    listing = list_images(root)
    layout = find_layout(root, listing, known_classes)
    left_out = listing.all_left_out()
    left_out.update(layout.left_out)
    sources, obstacle = _sources(root, layout)
    if not sources:
        raise _no_images(root, listing)
    notes = (*layout.notes, *similar_names_note(_class_names([next(iter(layout.splits.values()))])))
    train = sources.get(None) or sources.get("train")
    if len(sources) == 1 and train is not None:
        return DatasetSplits(train, unsplit=True, notes=notes, left_out=left_out, obstacle=obstacle)
    origin = f"the folder's own splits: {', '.join(layout.names.values())}"
    return DatasetSplits(
        train,
        sources.get("validation"),
        sources.get("test"),
        origin=origin,
        notes=notes,
        left_out=left_out,
        obstacle=obstacle,
    )


def folder_source(root: Path) -> FileSource:
    """Reads ``root/CLASS/.../image``, whatever the names of the classes are.

    Raises:
        DataError: as in :func:`folder_splits`, or there is one class or a class without images.
    """
    listing = list_images(root)
    folders = ClassFolders(listing, list(listing.folders.items()))
    if obstacle := _training_obstacle(root, folders):
        raise obstacle
    return _source(root, folders, _class_names([folders]))


def unlabeled_splits(root: Path) -> DatasetSplits:
    """Reads all images below a folder, at any depth, as one class; without those of the test split if there are splits.

    Raises:
        DataError: the folder is missing, or has fewer than two images to train on.
    """
    listing = list_images(root)
    splits = find_split_folders(listing)
    if splits.get("train") or splits.get("validation"):
        train = _unlabeled_source(root, splits["train"] or splits["validation"])
        validation = _unlabeled_source(root, splits["validation"]) if splits["train"] and splits["validation"] else None
    else:
        train, validation = _unlabeled_source(root, [listing]), None
    if len(train.labels) < 2:
        raise DataError(f"{root} holds {len(train.labels)} images", _images_remedy(listing, "add more images, at any depth"))
    names = [folder.name for folder in (*splits.get("train", ()), *splits.get("validation", ()))]
    return DatasetSplits(
        train,
        validation,
        unsplit=validation is None,
        origin=f"the folder's own splits: {', '.join(names)}" if validation is not None else "",
        left_out=listing.all_left_out(),
    )


def list_images(root: Path) -> Folder:
    """Lists a folder; see :func:`deit.images.listing.list_folder`.

    Raises:
        DataError: it is missing or cannot be opened, or is a run, model, cache or bundle.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "pass the folder of your data set, or a name from `deit data list`")
    if is_own_directory(root):
        raise DataError(f"{root} is a run, model, cache or bundle, not a data set", "pass a folder of images")
    try:
        return list_folder(root)
    except OSError as error:
        raise DataError(f"{root} cannot be opened", error.strerror or "check its permissions") from error


def _sources(root: Path, layout: Layout) -> tuple[dict[Split | None, FileSource], DataError | None]:
    """Returns a source for each split with images, and what prevents training, if anything."""
    reference: Split | None = None if None in layout.splits else "train"
    if reference in layout.splits:
        folders = layout.splits[reference]
        obstacle = _training_obstacle(_path(root, folders.base), folders)
        classes = _class_names([folders])
    else:
        obstacle = _missing_train(root, layout)
        classes = _class_names(list(layout.splits.values()))
    sources: dict[Split | None, FileSource] = {}
    for split, folders in layout.splits.items():
        source = _source(root, folders, classes)
        if len(source.labels):
            sources[split] = source
        elif split is not None:
            raise DataError(f"{_path(root, folders.base)} holds no images", "put them into one folder per class")
    return sources, obstacle


def _source(root: Path, folders: ClassFolders, classes: tuple[str, ...]) -> FileSource:
    """Returns the images of class folders, ordered by class and path.

    Raises:
        DataError: a folder with images is named as no class.
    """
    lookup = ClassLookup(classes)
    base = _path(root, folders.base)
    start = len(folders.base.path) + 1 if folders.base.path else 0
    names: dict[int, list[str]] = {}
    for name, folder in folders.classes:
        images = folder.image_paths()
        if not images:
            continue
        label = lookup.find(unicodedata.normalize("NFC", name))
        if label is None:
            remedy = "rename its folder, or move it elsewhere"
            raise DataError(f"{base} has a class {name!r} that the training split lacks", remedy)
        names.setdefault(label, []).extend(path[start:] for path in images)
    ordered = sorted(names)
    counts = [len(names[label]) for label in ordered]
    return FileSource(
        base,
        tuple(name for label in ordered for name in names[label]),
        classes,
        np.repeat(np.asarray(ordered, np.int64), counts),
    )


def _class_names(splits: Sequence[ClassFolders]) -> tuple[str, ...]:
    """Returns the names of the class folders with images; Unicode forms of one name are one class."""
    names = {
        unicodedata.normalize("NFC", name) for folders in splits for name, folder in folders.classes if folder.has_images()
    }
    if len(splits) == 1:
        return tuple(sorted(names))
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(class_key(name), name)
    return tuple(sorted(first.values()))


def _training_obstacle(path: Path, folders: ClassFolders) -> DataError | None:
    """Returns why class folders cannot be trained on, if so."""
    if not folders.classes:
        remedy = _images_remedy(folders.base, "make one folder per class and put its images there", path)
        return DataError(f"{path} has no folders in it", remedy)
    names = {unicodedata.normalize("NFC", name) for name, _ in folders.classes}
    if len(names) == 1:
        remedy = "a classifier needs two or more"
        name, folder = folders.classes[0]
        if len([child for child in folder.folders.values() if child.has_images()]) > 1:
            remedy += f"; pass {path / name} if its folders are the classes"
        return DataError(f"{path} has one class, {next(iter(names))!r}", remedy)
    for name in sorted(names):
        same = [folder for other, folder in folders.classes if unicodedata.normalize("NFC", other) == name]
        if not any(folder.has_images() for folder in same):
            remedy = _images_remedy(same[0], "add images, or move its folder elsewhere")
            return DataError(f"The class {name!r} in {path} holds no images", remedy)
    return None


def _missing_train(root: Path, layout: Layout) -> DataError:
    names = ", ".join(layout.names.values())
    base = _path(root, layout.base)
    first = next(iter(layout.splits.values()))
    plural = "splits" if len(layout.names) > 1 else "split"
    return DataError(
        f"{base} has no training split, only the {plural} {names}",
        f"add a folder `train`, or pass {_path(root, first.base)} to train on it",
    )


def _no_images(root: Path, listing: Folder) -> DataError:
    remedy = _images_remedy(listing, "make one folder per class and put its images there", root)
    if not any(folder.folders for folder in [listing]):
        return DataError(f"{root} has no folders in it", remedy)
    return DataError(f"{root} holds no images", remedy)


def _images_remedy(folder: Folder, remedy: str, path: Path | None = None) -> str:
    """Returns a remedy for a folder without usable images, with what is in it, and the manifest beside the images if any."""
    if path is not None and (manifests := _manifests(path)):
        return f"{remedy}, or pass {path / manifests[0]} if it lists their labels"
    found = folder.all_left_out().describe()
    return f"{remedy}; it has {found}" if found else remedy


def _manifests(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in MANIFEST_ENDINGS)
    except OSError:
        return []


def _unlabeled_source(root: Path, folders: Sequence[Folder]) -> FileSource:
    names = [name for folder in folders for name in folder.image_paths()]
    return FileSource(root, tuple(names), UNLABELED, np.zeros(len(names), np.int64))


def _path(root: Path, folder: Folder) -> Path:
    return root / folder.path if folder.path else root
