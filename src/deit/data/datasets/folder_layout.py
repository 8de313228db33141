"""Decides which folders of a data set are splits and which are classes, by their names and by what is in them.

Folders are splits if their names say so (:mod:`deit.data.split_names`) and class folders are in them. A class may have such a
name, too: ``train`` beside ``car`` and ``plane`` is a class. What could be either is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deit.data.class_names import class_key
from deit.data.split_names import SPLITS, Split, split_of, splits_of
from deit.errors import DataError
from deit.images.listing import Folder, LeftOut, OtherKind, join

# Names of folders that only hold the class folders: "train/images/CLASS".
_WRAPPER_NAMES = frozenset(("classes", "data", "dataset", "image", "images", "img", "imgs", "jpegimages", "jpg", "photos"))
SHOWN_NAMES = 4


@dataclass(frozen=True)
class ClassFolders:
    """The class folders of a split.

    Attributes:
        base: the folder that they are in, at any depth.
        classes: (class name, folder) of each.
    """

    base: Folder
    classes: Sequence[tuple[str, Folder]]


@dataclass(frozen=True)
class Layout:
    """Which folders hold the classes.

    Attributes:
        base: the folder that holds the splits, or the classes if there are no splits.
        splits: the class folders by split. The only key is None if there are no splits.
        names: split -> name of its folder; empty if there are no splits.
        left_out: images that belong to no class.
        notes: remarks for the user.
    """

    base: Folder
    splits: Mapping[Split | None, ClassFolders]
    names: Mapping[Split, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()


def find_layout(root: Path, listing: Folder, known_classes: Sequence[str] = ()) -> Layout:
    """Finds splits and classes in a folder.

    Args:
        root: path of the folder, for messages.
        listing: its content.
        known_classes: classes of the model that the data is for, if any: a folder of such a name is a class.

    Raises:
        DataError: the folders may be splits or classes, two are the same split, or splits have no class folders.
    """
    known = {class_key(name) for name in known_classes}
    base = listing
    name = root.resolve().name
    if base.images and not _filled(base) and class_key(name) in known:  # the folder of one class
        return Layout(base, {None: ClassFolders(base, [(name, base)])})
    while True:
        if layout := _split_layout(root, base) or _class_first_layout(base, known):
            break
        child = _wrapped(base, known)
        if child is None:
            layout = Layout(base, {None: _class_folders(base)}, left_out=_loose(base), notes=_class_notes(base))
            break
        base = child
    notes = (f"The data set is in its folder {base.path}",) if base.path else ()
    return replace(layout, notes=(*notes, *layout.notes, *_nested_notes(layout)))


def find_split_folders(listing: Folder) -> dict[Split, list[Folder]]:
    """Returns the folders whose names say that they are splits, for images without labels; empty if there are none."""
    base = listing
    while True:
        filled = _filled(base)
        splits = splits_of(filled)
        if splits and (len(splits) == len(filled) or len(set(splits.values())) > 1):
            return {split: [filled[name] for name in splits if splits[name] == split] for split in SPLITS}
        if base.images or len(filled) != 1:
            return {}
        base = next(iter(filled.values()))


def _split_layout(root: Path, base: Folder) -> Layout | None:
    """Returns the layout of a folder with a folder per split; None if its folders are classes."""
    filled = _filled(base)
    splits = splits_of(filled)
    others = [name for name in filled if name not in splits]
    labeled = {name: _unwrapped(filled[name]) for name in splits if _filled(_unwrapped(filled[name]))}
    if not splits or (others and not _are_splits_beside(root, others, splits, labeled)):
        return None
    if not labeled:
        raise _no_classes(root, base, sorted(splits, key=lambda name: SPLITS.index(splits[name])))
    notes = _check_empty(root, base)
    folders: dict[Split, Folder] = {}
    names: dict[Split, str] = {}
    left_out = _loose(base)
    for name in splits:
        split = splits[name]
        if name not in labeled or _is_unlabeled_test(split, labeled[name], splits, labeled):
            images = filled[name].image_paths()
            left_out.add(OtherKind.UNLABELED, images[0], len(images))
        elif split in names:
            raise DataError(
                f"{root} has two folders for the {split} split, {names[split]} and {name}",
                "merge them, or move one of them elsewhere",
            )
        else:
            folders[split], names[split] = labeled[name], name
    for name in others:
        left_out.add(OtherKind.OTHER_FOLDER, filled[name].path, filled[name].count())
    for folder in folders.values():
        left_out.update(_loose(folder))
    ordered: list[Split] = [split for split in SPLITS if split in folders]
    classes: dict[Split | None, ClassFolders] = {split: _class_folders(folders[split]) for split in ordered}
    return Layout(base, classes, {split: names[split] for split in ordered}, left_out, notes)


def _is_unlabeled_test(split: Split, folder: Folder, splits: Mapping[str, Split], labeled: Mapping[str, Folder]) -> bool:
    """Whether a test split has one folder, which is not a class of the training split, such as ``test/unknown``."""
    train = next((labeled[name] for name in labeled if splits[name] == "train"), None)
    names = [class_key(name) for name in _filled(folder)]
    return split == "test" and train is not None and len(names) == 1 and names[0] not in map(class_key, _filled(train))


def _check_empty(root: Path, base: Folder) -> tuple[str, ...]:
    """Returns notes on folders of splits without images.

    Raises:
        DataError: there are class folders in one.
    """
    notes = []
    for name, folder in base.folders.items():
        if folder.has_images() or split_of(name) is None:
            continue
        if folder.folders:
            raise DataError(f"{root / folder.path} holds no images", "put them into its class folders")
        notes.append(f"The folder {folder.path} holds no images")
    return tuple(notes)


def _are_splits_beside(root: Path, others: list[str], splits: Mapping[str, Split], labeled: Mapping[str, Folder]) -> bool:
    """Whether folders named as splits are splits although other folders are beside them.

    Raises:
        DataError: one such folder has folders in it, which may be classes or not.
    """
    if labeled and len(set(splits.values())) > 1:
        return True
    for name, folder in labeled.items():
        inner = _filled(folder)
        if len(inner) > 1:
            raise DataError(
                f"{root} has a folder {name!r} with folders in it ({shown(inner)}), beside {shown(others)}, so that it may be "
                "a split or a class",
                f"move {shown(others)} elsewhere if it is a split, or rename it if it is a class",
            )
    return False


def _class_first_layout(base: Folder, known: set[str]) -> Layout | None:
    """Returns the layout ``CLASS/train/image``, ``CLASS/test/image``; None if the folder has another one."""
    filled = _filled(base)
    classes: dict[Split, list[tuple[str, Folder]]] = {}
    names: dict[Split, str] = {}
    for name, folder in filled.items():
        inner = _filled(folder)
        if len(filled) == 1 and class_key(name) not in known:
            return None  # the folder of an archive, with splits in it
        splits = splits_of(inner)
        if folder.images or len(splits) != len(inner):
            return None
        for split_name, split in splits.items():
            classes.setdefault(split, []).append((name, inner[split_name]))
            names.setdefault(split, split_name)
    if len(names) < 2:
        return None
    ordered: list[Split] = [split for split in SPLITS if split in names]
    return Layout(
        base,
        {split: ClassFolders(base, classes[split]) for split in ordered},
        {split: names[split] for split in ordered},
        _loose(base),
        ("Each class folder has folders of the splits in it",),
    )


def _wrapped(base: Folder, known: set[str]) -> Folder | None:
    """Returns the only folder with images in ``base`` if it is no class, as in an archive that was unpacked into a folder."""
    filled = _filled(base)
    if len(filled) != 1:
        return None
    [(name, child)] = filled.items()
    if class_key(name) in known or split_of(name):
        return None
    inner = _filled(child)
    if child.images:  # a class with images, unless splits are beside them
        return child if len(set(splits_of(inner).values())) > 1 else None
    if len(inner) > 1:
        return child
    return child if splits_of(inner) or _wrapped(child, known) else None


def _unwrapped(split: Folder) -> Folder:
    """Returns the folder of a split that holds its class folders or images: ``images`` of ``train/images/CLASS``."""
    filled = _filled(split)
    while len(filled) == 1 and not split.images:
        [(name, child)] = filled.items()
        if name.casefold() not in _WRAPPER_NAMES and name.casefold() != split.name.casefold():
            return split
        split, filled = child, _filled(child)
    return split


def _class_notes(base: Folder) -> tuple[str, ...]:
    """Returns a note if a class has the name of a split."""
    classes = _filled(base)
    named = [name for name in classes if split_of(name)]
    if not named or len(classes) < 2:
        return ()
    if len(named) == 1:
        return (f"The folder {named[0]} is read as a class, because other class folders are beside it",)
    return (f"The folders {shown(named)} are read as classes, because other class folders are beside them",)


def _nested_notes(layout: Layout) -> tuple[str, ...]:
    """Returns a note if a class folder has several folders, or one that is named as a split: these may be meant otherwise."""
    for folders in layout.splits.values():
        for _, folder in folders.classes:
            inner = _filled(folder)
            if len(inner) > 1 or any(map(split_of, inner)):
                start = len(layout.base.path) + 1 if layout.base.path else 0
                paths = [child.path[start:] for child in inner.values()]
                return (f"Folders in a class folder belong to its class, such as {shown(paths)}",)
    return ()


def _no_classes(root: Path, base: Folder, names: list[str]) -> DataError:
    path = root / base.path if base.path else root
    if len(names) == 1:
        problem = f"{path} has one folder, {names[0]!r}, which is named as a split and has no class folders in it"
    else:
        problem = f"The folders of {path} are named as splits ({shown(names)}) and have no class folders in them"
    return DataError(
        problem,
        f"put the images into {join(names[0], 'CLASS')}, list them with their labels in a manifest, or rename "
        f"{'it' if len(names) == 1 else 'them'} if {'it is a class' if len(names) == 1 else 'they are classes'}",
    )


def _class_folders(base: Folder) -> ClassFolders:
    return ClassFolders(base, list(base.folders.items()))


def _filled(folder: Folder) -> dict[str, Folder]:
    """Returns the folders that hold images at any depth."""
    return {name: child for name, child in folder.folders.items() if child.has_images()}


def _loose(folder: Folder) -> LeftOut:
    """Returns the images beside class folders or splits."""
    left_out = LeftOut()
    if folder.images:
        first = join(folder.path, folder.images[0])
        left_out.add(OtherKind.LOOSE, first, len(folder.images))
    return left_out


def shown(names: Sequence[str] | Mapping[str, object]) -> str:
    """Returns a few of several names, for a message."""
    listed = list(names)
    more = ", ..." if len(listed) > SHOWN_NAMES else ""
    return ", ".join(listed[:SHOWN_NAMES]) + more
