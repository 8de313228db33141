"""A user without a home, as in containers that run under a number, has a cache among the temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from deit.system.home import cache_directory, ensure_home, expand_user, user_cache


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Returns the directory that stands for the home."""

    def no_home(_: object) -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"deit-home-{os.getuid()}"


def test_cache_and_paths_without_a_home(homeless: Path) -> None:
    assert user_cache() == homeless / ".cache"
    assert homeless.stat().st_mode & 0o777 == 0o700
    assert user_cache() == homeless / ".cache"  # the same one again
    assert expand_user("~/data") == homeless / "data"
    assert expand_user("~") == homeless
    assert expand_user("~nobody-here/data") == Path("~nobody-here/data")


def test_libraries_find_a_home(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    ensure_home()
    assert os.environ["HOME"] == str(homeless)


def test_directory_of_another_user_is_not_trusted(homeless: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    homeless.symlink_to(tmp_path / "elsewhere")
    assert user_cache().parent not in (homeless, tmp_path / "elsewhere")


def test_home_and_variables_are_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    ensure_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert user_cache() == tmp_path / ".cache"
    assert expand_user("~/data") == tmp_path / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert user_cache() == tmp_path / "caches"


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("DEIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "deit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "deit"
