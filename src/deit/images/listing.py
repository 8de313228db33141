"""Lists the images below a folder, by one rule for every command, and counts by kind what is left out.

Directories of this package (runs, models, caches, bundles) and files of operating systems and other programs are not part of a
data set. Links are followed; a folder that was listed already is not listed again, so that loops of links end.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from deit.images.sniffing import KIND_OF_ENDING, FileKind, ending_of, heic_remedy, is_readable, sniff
from deit.system.files import (
    BUNDLE_NAME,
    CACHE_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    PROCESSOR_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    RUN_NAME,
    WEIGHTS_NAME,
)

# Folders of operating systems, file servers and programs, in lower case. Whatever starts with a dot is one, too: .git, .venv,
# .Trash, .thumbnails, .ipynb_checkpoints, .DS_Store, and "._x.jpg", which macOS writes beside x.jpg.
SYSTEM_FOLDERS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@sharesnap",
        "@tmp",
        "__macosx",
        "__pycache__",
        "lost+found",
        "network trash folder",
        "node_modules",
        "system volume information",
        "temporary items",
    }
)
SYSTEM_FOLDER_ENDINGS = frozenset({"lrdata", "lrlibrary", "photolibrary", "photoslibrary"})  # previews of photo programs
SYSTEM_FILES = frozenset(
    {
        "albumart.pamp",
        "albumartsmall.jpg",
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "icon\r",
        "picasa.ini",
        "thumbs.db",
        "thumbs.db:encryptable",
        "zbthumbnail.info",
    }
)
_SYNOLOGY_FILE = re.compile(r".+@syno\w+$", re.IGNORECASE)

# Files by which a directory of this package, or of a program that saves models, is recognized. All of one row must be there.
_MARKERS: tuple[frozenset[str], ...] = (
    frozenset({RUN_NAME, RECIPE_NAME}),
    frozenset({BUNDLE_NAME, PROCESSOR_NAME}),
    frozenset({CONFIG_NAME, WEIGHTS_NAME}),
    frozenset({CONFIG_NAME, INDEX_NAME}),
    frozenset({CONFIG_NAME, "pytorch_model.bin"}),
    frozenset({CONFIG_NAME, RECORD_NAME}),
    frozenset({"adapter_config.json", "adapter_model.safetensors"}),
    frozenset({"trainer_state.json"}),
)
_MARKER_NAMES = frozenset().union(*_MARKERS, {CACHE_NAME})
_ENVIRONMENT_MARKERS = frozenset({"conda-meta", "pyvenv.cfg"})  # a Python environment, whose packages have images
OUTPUT_FOLDERS = frozenset({"exports", "runs"})  # where the commands write by default
QUICKSTART_RUNS = frozenset({"student", "teacher"})
MAX_EXAMPLES = 3


class OtherKind(StrEnum):
    """Kinds of entries that are left out, beside those of :class:`FileKind`. Their values read as the singular."""

    OWN = "directory of runs, models or exports"
    SYSTEM = "hidden or system file"
    BROKEN_LINK = "broken link"
    REPEATED_LINK = "link to a folder that is listed already"
    SPECIAL = "device, socket or pipe"
    DENIED = "folder that cannot be opened"
    DENIED_FILE = "file that cannot be opened"
    LOOSE = "loose image beside class folders"
    UNLABELED = "image of a split without class folders"
    OTHER_FOLDER = "image of a folder beside the splits"
    UNLABELED_ROW = "row without a label in the test split"
    REPEATED_ROW = "row that repeats an image"


Kind = FileKind | OtherKind
_PLURALS: dict[Kind, str] = {
    FileKind.OTHER_IMAGE: "images in unsupported formats",
    FileKind.RAW: "camera raw images",
    OtherKind.OWN: "directories of runs, models or exports",
    OtherKind.BROKEN_LINK: "broken links",
    OtherKind.REPEATED_LINK: "links to folders that are listed already",
    OtherKind.SPECIAL: "devices, sockets or pipes",
    OtherKind.DENIED: "folders that cannot be opened",
    OtherKind.DENIED_FILE: "files that cannot be opened",
    OtherKind.LOOSE: "loose images beside class folders",
    OtherKind.UNLABELED: "images of a split without class folders",
    OtherKind.OTHER_FOLDER: "images of folders beside the splits",
    OtherKind.UNLABELED_ROW: "rows without a label in the test split",
    OtherKind.REPEATED_ROW: "rows that repeat an image",
}


@dataclass
class LeftOut:
    """What is left out of a data set: the number of entries of each kind, and a few of their paths.

    Attributes:
        counts: kind -> number of files, folders or rows.
        examples: kind -> up to three paths, relative to the data set.
    """

    counts: dict[Kind, int] = field(default_factory=dict)
    examples: dict[Kind, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, path: str, count: int = 1) -> None:
        """Counts an entry, or ``count`` entries of which ``path`` is the first."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            paths = self.examples.setdefault(kind, [])
            if len(paths) < MAX_EXAMPLES:
                paths.append(path)

    def update(self, other: LeftOut) -> None:
        """Adds the entries of another one."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            paths = self.examples.setdefault(kind, [])
            paths.extend(other.examples[kind][: MAX_EXAMPLES - len(paths)])

    def describe(self, hidden: bool = False) -> str:
        """Returns "2 videos, 1 broken link (cat/x.jpg)", the most frequent kind first; empty if nothing is left out.

        Args:
            hidden: also count hidden files and files of the operating system.
        """
        shown = {kind: count for kind, count in self.counts.items() if hidden or kind is not OtherKind.SYSTEM}
        ordered = sorted(shown.items(), key=lambda item: (-item[1], item[0].value))
        return ", ".join(f"{count:,} {noun(kind, count)} ({self._details(kind, count)})" for kind, count in ordered)

    def _details(self, kind: Kind, count: int) -> str:
        paths = self.examples[kind]
        details = ", ".join(paths) if count <= len(paths) else f"{paths[0]}, ..."
        return f"{details}; to read them: {heic_remedy()}" if kind is FileKind.HEIC else details


@dataclass
class Folder:
    """A folder and what is below it.

    Attributes:
        path: relative to the folder that was listed; empty for that folder itself.
        images: names of the images in it, sorted.
        folders: the folders in it by name, sorted; directories that are not part of a data set are missing.
        left_out: entries of this folder that are not read, not counting those of ``folders``.
    """

    path: str = ""
    images: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def name(self) -> str:
        """Name without the folders above it."""
        return base_name(self.path)

    def walk(self) -> Iterator[Folder]:
        """Yields this folder and all below it; each before those in it."""
        pending = [self]
        while pending:
            folder = pending.pop()
            yield folder
            pending.extend(reversed(folder.folders.values()))

    def count(self) -> int:
        """Returns the number of images at any depth."""
        return sum(len(folder.images) for folder in self.walk())

    def has_images(self) -> bool:
        """Whether there is an image at any depth."""
        return any(folder.images for folder in self.walk())

    def image_paths(self) -> list[str]:
        """Returns the paths of all images at any depth, relative to the folder that was listed, sorted folder by folder."""
        paths = [join(folder.path, image) for folder in self.walk() for image in folder.images]
        return sorted(paths, key=path_key)

    def all_left_out(self) -> LeftOut:
        """Returns what is left out of this folder and all below it."""
        total = LeftOut()
        for folder in self.walk():
            total.update(folder.left_out)
        return total


def join(folder: str, name: str) -> str:
    """Returns the path of a file in a folder, as text: faster than ``Path`` for a million files."""
    return f"{folder}{os.sep}{name}" if folder else name


def base_name(path: str) -> str:
    """Returns the name at the end of a path."""
    return path.rpartition(os.sep)[2]


def examples(names: Sequence[str]) -> str:
    """Returns a few of several names, for a message: "a.jpg, b.jpg, c.jpg, ..."."""
    return ", ".join(names[:MAX_EXAMPLES]) + (", ..." if len(names) > MAX_EXAMPLES else "")


def path_key(path: str) -> str:
    """Returns the key that sorts paths folder by folder, as ``Path`` objects compare."""
    return path.replace(os.sep, "\0")


def noun(kind: Kind, count: int) -> str:
    """Returns the name of a kind in the singular or plural."""
    return kind.value if count == 1 else _PLURALS.get(kind, f"{kind.value}s")


def list_folder(root: Path) -> Folder:
    """Lists a folder.

    Files are images by their ending. Only a file with an unknown ending, or none, is opened to look at its first bytes.

    Raises:
        OSError: ``root`` itself cannot be opened.
    """
    listing = Folder()
    os.scandir(root).close()
    seen = _ancestors(root)
    pending, links = [listing], deque[Folder]()
    while pending or links:
        folder = pending.pop() if pending else links.popleft()
        path = root / folder.path if folder.path else root
        if folder.path and not _first_visit(path, seen):
            _detach(listing, folder, OtherKind.REPEATED_LINK)
            continue
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            _detach(listing, folder, OtherKind.DENIED)
            continue
        if folder.path and (kind := _foreign_kind({entry.name for entry in found})):
            _detach(listing, folder, kind)
            continue
        children: list[Folder] = []
        for entry in found:
            _sort_in(folder, entry, children, links)
        pending.extend(reversed(children))
    _drop_outputs(listing)
    return listing


def is_own_directory(path: Path) -> bool:
    """Whether a directory is a run, a model, a cache or a bundle rather than a folder of images."""
    try:
        return _foreign_kind({entry.name for entry in path.iterdir()}) is OtherKind.OWN
    except OSError:
        return False


def is_system_name(name: str, is_folder: bool) -> bool:
    """Whether a file or folder belongs to an operating system, a file server or another program, by its name."""
    lowered = name.lower()
    if name.startswith("."):
        return True
    if is_folder:
        return lowered in SYSTEM_FOLDERS or ending_of(lowered) in SYSTEM_FOLDER_ENDINGS
    return lowered in SYSTEM_FILES or ("@" in name and _SYNOLOGY_FILE.match(name) is not None)


def _sort_in(folder: Folder, entry: os.DirEntry[str], children: list[Folder], links: deque[Folder]) -> None:
    """Adds an entry of a directory to the images, folders or left-out entries of ``folder``."""
    name = entry.name
    path = join(folder.path, name)
    is_folder = _is_directory(entry)
    if is_system_name(name, is_folder):
        folder.left_out.add(OtherKind.SYSTEM, path)
    elif is_folder:
        child = folder.folders[name] = Folder(path)
        (links if entry.is_symlink() else children).append(child)
    elif is_readable(kind := _kind_of(entry)):
        folder.images.append(name)
    else:
        folder.left_out.add(kind, path)


def _kind_of(entry: os.DirEntry[str]) -> Kind:
    try:
        if not entry.is_file():
            return OtherKind.BROKEN_LINK if entry.is_symlink() and not Path(entry.path).exists() else OtherKind.SPECIAL
        return KIND_OF_ENDING.get(ending_of(entry.name)) or sniff(entry.path)
    except OSError:
        return OtherKind.BROKEN_LINK if entry.is_symlink() else OtherKind.DENIED_FILE


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _ancestors(root: Path) -> set[tuple[int, int]]:
    """Returns device and inode of a folder and of all above it, which links must not lead back into."""
    resolved = root.resolve()
    seen: set[tuple[int, int]] = set()
    for folder in (resolved, *resolved.parents):
        _first_visit(folder, seen)
    return seen


def _first_visit(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Remembers a directory by device and inode. Returns whether it is new."""
    try:
        status = path.stat()
    except OSError:
        return True
    key = (status.st_dev, status.st_ino)
    if not status.st_ino:  # a file system without inodes
        return True
    is_new = key not in seen
    seen.add(key)
    return is_new


def _detach(listing: Folder, folder: Folder, kind: OtherKind) -> None:
    """Removes a folder from the one above it, and counts it there."""
    parent = _parent(listing, folder)
    del parent.folders[folder.name]
    parent.left_out.add(kind, folder.path)


def _parent(listing: Folder, folder: Folder) -> Folder:
    parent = listing
    for name in Path(folder.path).parts[:-1]:
        parent = parent.folders[name]
    return parent


def _foreign_kind(names: set[str]) -> OtherKind | None:
    """Returns the kind of a directory that is no part of a data set, by the names in it: a run, a model, an environment."""
    if not _ENVIRONMENT_MARKERS.isdisjoint(names):
        return OtherKind.SYSTEM
    if _MARKER_NAMES.isdisjoint(names) or any(KIND_OF_ENDING.get(ending_of(name)) is FileKind.IMAGE for name in names):
        return None
    is_cache = CACHE_NAME in names and (len(names) == 1 or any(name.startswith("view-") for name in names))
    return OtherKind.OWN if is_cache or any(markers <= names for markers in _MARKERS) else None


def _drop_outputs(listing: Folder) -> None:
    """Drops the folders that hold runs, models or exports, such as ``runs``, and no images beside them."""
    for folder in reversed(list(listing.walk())):
        if not folder.path:
            continue
        own = {base_name(path) for path in folder.left_out.examples.get(OtherKind.OWN, ())}
        is_quickstart = own >= QUICKSTART_RUNS and not folder.images
        is_empty = not folder.images and not folder.folders
        if is_quickstart or (is_empty and (own or (folder.name in OUTPUT_FOLDERS and not folder.left_out.counts))):
            _detach(listing, folder, OtherKind.OWN)
