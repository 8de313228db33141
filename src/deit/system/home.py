"""The user's directories, also for users without a home: containers often run under a number that no account has."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CACHE_VARIABLE = "DEIT_CACHE"


def user_cache() -> Path:
    """Returns the cache directory: ``$XDG_CACHE_HOME``, ``~/.cache``, or one among the temporary files without a home."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return Path(configured) if configured else _home() / ".cache"


def cache_directory() -> Path:
    """Returns the directory of what can be computed again: ``$DEIT_CACHE``, or ``deit`` in the user's cache."""
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured) if configured else user_cache() / "deit"


def expand_user(path: str | Path) -> Path:
    """Returns a path with ``~`` expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no home directory, or no such user
        text = str(path)
        return _home() / text[2:] if text == "~" or text.startswith("~/") else Path(path)


def ensure_home() -> None:
    """Sets ``$HOME`` if the user has no home directory, for libraries that fail without one."""
    if not _has_home():
        os.environ["HOME"] = str(_temporary_home())


def _home() -> Path:
    return Path.home() if _has_home() else _temporary_home()


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _temporary_home() -> Path:
    """Returns a directory of this user among the temporary files. One that another user has made is not trusted."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"deit-home-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink() or path.lstat().st_uid != user:
            raise OSError
    except OSError:
        return Path(tempfile.mkdtemp(prefix="deit-home-"))
    return path
