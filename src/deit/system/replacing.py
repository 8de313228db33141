"""Replaces directories so that a crash, a full disk or an unusual file system loses nothing that was saved.

A new directory is written under a hidden name beside its destination and synced to the disk. It then takes the place of the old
one by a single system call that exchanges both names (``renameat2`` on Linux, ``renamex_np`` on macOS), so that there is a
complete directory at any moment. Where the file system cannot do that, two renamings do, and a program that is killed between
them leaves the old directory under a hidden name, from which :func:`clean_up` restores it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_NAME_BYTES = 200  # of names that are made from other names; file systems allow 255, and endings are added
_DRAFT_NAME_BYTES = 100
# Renaming a directory fails if it lies in an image layer (EXDEV), is a mounted volume (EBUSY), or its parent is read-only.
_NOT_RENAMED = (errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_EXCHANGED = (*_NOT_RENAMED, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # by file systems that cannot sync a directory
_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_MARK = "deit-"  # in the names of drafts, so that no file of a user is taken for one
_OLD = ".old"
_COPY = ".copy"  # not removed by :func:`clean_up`: only a person can tell whether it is complete
_LOCK = "lock"
_DRAFT = re.compile(rf"\.(.+)\.{_MARK}(?:{_LOCK}|[0-9a-f]{{8}}({re.escape(_OLD)})?)", re.DOTALL)


def shortened(name: str, limit: int = MAX_NAME_BYTES) -> str:
    """Returns the beginning of a file name that has at most ``limit`` bytes. File systems count bytes, not characters."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= limit else encoded[:limit].decode("utf-8", "ignore")


def is_empty_directory(path: Path) -> bool:
    """Whether a path is a directory without content, such as a new volume, which may be replaced without asking."""
    return path.is_dir() and not any(path.iterdir())


def draft_prefix(path: Path) -> str:
    """Returns the prefix of the names of hidden temporary files and directories that are to replace ``path``."""
    return f".{shortened(path.name, _DRAFT_NAME_BYTES)}.{_MARK}"


def draft_name(path: Path) -> str:
    """Returns a new name for a hidden temporary file or directory that is to replace ``path``."""
    return f"{draft_prefix(path)}{secrets.token_hex(4)}"


def lock_name(path: Path) -> str:
    """Returns the name of the hidden file that is locked while ``path`` is replaced."""
    return f"{draft_prefix(path)}{_LOCK}"


def draft_directory(path: Path) -> Path:
    """Creates a hidden temporary directory beside ``path``; in it, if it is a volume mounted in a read-only directory."""
    name = draft_name(path)
    draft = path.parent / name
    try:
        draft.mkdir()
    except OSError as error:
        if error.errno not in _NOT_WRITABLE or not path.is_dir():
            raise
        draft = path / name
        draft.mkdir()
    return draft


def sync(path: Path) -> None:
    """Waits until a file is on the disk; for a directory, the names in it. Directories cannot be synced on Windows."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Syncs a directory with everything in it."""
    for folder, _, files in os.walk(directory):
        for name in files:
            if not (path := Path(folder, name)).is_symlink():
                sync(path)
        sync(Path(folder))


def replace_directory(draft: Path, path: Path) -> None:
    """Moves a directory to ``path``. What was there is removed only once the new directory has taken its place.

    Args:
        draft: what :func:`draft_directory` returned for ``path``.
        path: a directory, or nothing yet.
    """
    sync_tree(draft)
    if not path.exists():
        draft.rename(path)
        sync(path.parent)
    elif exchange(draft, path):
        sync(path.parent)
        shutil.rmtree(draft, ignore_errors=True)  # what was at ``path``
    else:
        _replace_in_two_steps(draft, path)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two directories by one system call. Returns False, and changes nothing, where that is not possible."""
    rename = _exchanging_call()
    if rename is None:
        return False
    number = rename(os.fsencode(one), os.fsencode(other))
    if number and number not in _NOT_EXCHANGED:
        raise OSError(number, os.strerror(number), str(other))
    return not number


@functools.cache
def _exchanging_call() -> Callable[[bytes, bytes], int] | None:
    """Returns a function that exchanges two names and returns 0 or the number of an error; None on other systems."""
    name = {"linux": "renameat2", "darwin": "renamex_np"}.get(sys.platform)
    function = None if name is None else getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        return None

    def rename(one: bytes, other: bytes) -> int:
        flags = ctypes.c_uint(_EXCHANGE)
        paths = (one, other) if sys.platform == "darwin" else (_AT_FDCWD, one, _AT_FDCWD, other)
        return ctypes.get_errno() if function(*paths, flags) else 0

    return rename


def clean_up(directory: Path) -> None:
    """Removes what killed programs have left unfinished in a directory, at any depth, and restores what they had moved away.

    No other program may be writing to it (:mod:`deit.system.locking`).
    """
    for folder, folders, files in os.walk(directory):
        _clean_up_names(Path(folder), [*folders, *files])


def clean_up_drafts(path: Path, draft: Path) -> None:
    """As :func:`clean_up`, for the drafts of one directory, whose lock is held, beside files of other programs.

    Args:
        path: the directory that the drafts were to replace.
        draft: the draft that is in use.
    """
    in_use = (draft.name, lock_name(path))
    names = [file.name for file in draft.parent.iterdir() if file.name.startswith(draft_prefix(path))]
    _clean_up_names(draft.parent, [name for name in names if name not in in_use])


def _clean_up_names(folder: Path, names: Sequence[str]) -> None:
    """Cleans up the drafts among the names in a folder. A directory that was moved away comes before what was to replace it."""
    for name in sorted(names, reverse=True):
        match, path = _DRAFT.fullmatch(name), folder / name
        if match is None:
            continue
        original = folder / match[1]
        is_complete = len(os.fsencode(match[1])) < _DRAFT_NAME_BYTES  # the name is not shortened
        if match[2] and is_complete and not original.exists():
            path.rename(original)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _replace_in_two_steps(draft: Path, path: Path) -> None:
    old = draft.with_name(f"{draft.name}{_OLD}")
    try:
        path.rename(old)
        draft.rename(path)
    except OSError as error:
        _undo(path, old)
        if error.errno not in _NOT_RENAMED:
            raise
        _replace_content(draft, path, draft.with_name(f"{draft.name}{_COPY}"))
    except BaseException:  # a signal
        _undo(path, old)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _undo(path: Path, old: Path) -> None:
    """Puts the old directory back, unless the new one has taken its place."""
    if not old.exists():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)


def _replace_content(draft: Path, path: Path, copy: Path) -> None:
    """Replaces the files in a directory that cannot be renamed. A copy of them is kept until the end."""
    hidden = (draft.name, copy.name)  # they may lie in the directory
    try:
        shutil.copytree(path, copy, symlinks=True, ignore=lambda folder, _: hidden if Path(folder) == path else ())
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    try:
        _clear(path, hidden)
        for child in list(draft.iterdir()):
            shutil.move(child, path / child.name)
    except BaseException:
        _clear(path, hidden)
        shutil.copytree(copy, path, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
        raise
    sync_tree(path)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(draft, ignore_errors=True)


def _clear(path: Path, kept: tuple[str, ...]) -> None:
    for child in list(path.iterdir()):
        if child.name in kept:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
