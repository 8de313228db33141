"""Replaces directories so that a crash, a full disk or an unusual file system loses nothing that was saved."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

MAX_NAME_BYTES = 200  # of names that are made from other names; file systems allow 255, and endings are added
_DRAFT_NAME_BYTES = 100
# Renaming a directory fails if it lies in an image layer (EXDEV), is a mounted volume (EBUSY), or its parent is read-only.
_NOT_RENAMED = (errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def shortened(name: str, limit: int = MAX_NAME_BYTES) -> str:
    """Returns the beginning of a file name that has at most ``limit`` bytes. File systems count bytes, not characters."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= limit else encoded[:limit].decode("utf-8", "ignore")


def is_empty_directory(path: Path) -> bool:
    """Whether a path is a directory without content, such as a new volume, which may be replaced without asking."""
    return path.is_dir() and not any(path.iterdir())


def draft_prefix(path: Path) -> str:
    """Returns the prefix of the hidden temporary file or directory that is to replace ``path``."""
    return f".{shortened(path.name, _DRAFT_NAME_BYTES)}."


def draft_directory(path: Path) -> Path:
    """Creates a hidden temporary directory beside ``path``; in it, if it is a volume mounted in a read-only directory."""
    try:
        return Path(tempfile.mkdtemp(dir=path.parent, prefix=draft_prefix(path)))
    except OSError as error:
        if error.errno not in _NOT_WRITABLE or not path.is_dir():
            raise
        return Path(tempfile.mkdtemp(dir=path, prefix=draft_prefix(path)))


def replace_directory(draft: Path, path: Path) -> None:
    """Moves a directory to ``path``. What was there is removed only once the new directory has taken its place.

    Args:
        draft: what :func:`draft_directory` returned for ``path``.
        path: a directory, or nothing yet.
    """
    if not path.exists():
        draft.rename(path)
        return
    old = draft.with_name(f"{draft.name}.old")
    try:
        path.rename(old)
        draft.rename(path)
    except OSError as error:
        _undo(path, old)
        if error.errno not in _NOT_RENAMED:
            raise
        _replace_content(draft, path, old)
    except BaseException:  # a signal
        _undo(path, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _undo(path: Path, old: Path) -> None:
    """Puts the old directory back, unless the new one has taken its place."""
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)


def _replace_content(draft: Path, path: Path, old: Path) -> None:
    """Replaces the files in a directory that cannot be renamed. A copy of them is kept until the end."""
    hidden = (draft.name, old.name)  # they may lie in the directory
    try:
        shutil.copytree(path, old, symlinks=True, ignore=lambda folder, _: hidden if Path(folder) == path else ())
    except BaseException:
        shutil.rmtree(old, ignore_errors=True)
        raise
    try:
        _clear(path, hidden)
        for child in list(draft.iterdir()):
            shutil.move(child, path / child.name)
    except BaseException:
        _clear(path, hidden)
        shutil.copytree(old, path, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        raise
    shutil.rmtree(draft, ignore_errors=True)


def _clear(path: Path, kept: tuple[str, ...]) -> None:
    for child in list(path.iterdir()):
        if child.name in kept:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
