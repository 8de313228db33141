"""Directories are replaced on any file system, and what was saved survives every failure."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deit.errors import UserError
from deit.system import replacing
from deit.system.files import new_directory, new_file, write_text
from deit.system.locking import locked_file
from deit.system.replacing import (
    clean_up,
    clean_up_drafts,
    draft_directory,
    draft_name,
    draft_prefix,
    exchange,
    lock_name,
    shortened,
)

BROKEN_RENAMES = [errno.EXDEV, errno.EBUSY, errno.EACCES]


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """A saved model with a folder and a link in it."""
    path = tmp_path / "best"
    (path / "inner").mkdir(parents=True)
    (path / "weights").write_text("old")
    (path / "inner" / "more").write_text("old")
    (path / "link").symlink_to("weights")
    return path


def content(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


OLD = {"inner/more": "old", "link": "old", "weights": "old"}
NEW = {"inner/other": "new", "weights": "new"}


def write_new(draft: Path) -> None:
    (draft / "weights").write_text("new")
    (draft / "inner").mkdir()
    (draft / "inner" / "other").write_text("new")


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange two names."""
    monkeypatch.setattr(replacing, "exchange", lambda *_: False)


def refuse_rename(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Makes renaming this directory fail, as in an image layer of an overlay file system or at a mount point."""
    rename = os.rename

    def refusing(source: Any, target: Any, **options: Any) -> None:
        if Path(source) == path:
            raise OSError(number, os.strerror(number), str(source))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refusing)
    monkeypatch.setattr(replacing, "exchange", lambda *_: False)


@pytest.mark.parametrize("number", BROKEN_RENAMES)
def test_directory_that_cannot_be_renamed_is_replaced(best: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_rename(monkeypatch, best, number)
    with new_directory(best) as draft:
        write_new(draft)
    assert content(best) == NEW
    assert names(best.parent) == ["best"]


@pytest.mark.parametrize("number", BROKEN_RENAMES)
def test_full_disk_while_replacing_keeps_the_old_content(best: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse_rename(monkeypatch, best, number)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError, match="No space left"), new_directory(best) as draft:
        write_new(draft)
    assert content(best) == OLD
    assert (best / "link").is_symlink()
    assert names(best.parent) == ["best"]


@pytest.mark.usefixtures("two_steps")
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_failure_between_both_renames_keeps_the_old_content(
    best: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = os.rename

    def failing(source: Any, target: Any, **options: Any) -> None:
        if Path(target) == best and not str(source).endswith(".old"):
            raise error
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(type(error)), new_directory(best) as draft:
        write_new(draft)
    assert content(best) == OLD
    assert names(best.parent) == ["best"]


@pytest.mark.usefixtures("two_steps")
def test_signal_after_the_directory_is_replaced_removes_the_old_one(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def interrupted(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        if Path(target) == best:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_directory(best) as draft:
        write_new(draft)
    assert content(best) == NEW
    assert names(best.parent) == ["best"]


def test_volume_in_a_read_only_directory_is_filled(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def read_only(path: Path, **options: Any) -> None:
        if path.parent == best.parent and not path.exists():
            raise OSError(errno.EROFS, "Read-only file system")
        mkdir(path, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    refuse_rename(monkeypatch, best, errno.EBUSY)
    with new_directory(best) as draft:
        assert draft.parent == best
        write_new(draft)
    assert content(best) == NEW
    assert names(best) == ["inner", "weights"]


def test_link_to_a_directory_stays(best: Path) -> None:
    link = best.with_name("latest")
    link.symlink_to("best")
    with new_directory(link) as draft:
        write_new(draft)
    assert link.is_symlink()
    assert content(best) == NEW


def test_mounted_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "config.json", "old")

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    write_text(tmp_path / "config.json", "new")
    assert (tmp_path / "config.json").read_text() == "new"
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "name", ["n" * 250, "ß" * 125, "類" * 83, "😀" * 62, "best", b"caf\xe9".decode("utf-8", "surrogateescape")]
)
def test_names_of_any_length_and_script_can_be_replaced(tmp_path: Path, name: str) -> None:
    for text in ("1", "2"):
        with new_directory(tmp_path / name) as draft:
            (draft / "a").write_text(text)
        write_text(tmp_path / name / name, text)
    assert content(tmp_path / name) == {"a": "2", name: "2"}
    assert len(os.fsencode(draft_prefix(Path(name)))) <= 107
    assert names(tmp_path) == [name]


def test_shortened_name_is_a_prefix_without_half_characters() -> None:
    assert shortened("photos") == "photos"
    assert shortened("類" * 100, 200) == "類" * 66
    assert shortened("a" * 300) == "a" * 200


def test_directories_are_exchanged_in_one_call(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = best.with_name("other")
    other.mkdir()
    write_new(other)
    if not exchange(other, best):
        pytest.skip("this file system cannot exchange two names")
    assert (content(best), content(other)) == (NEW, OLD)
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("a second step"))
    with new_directory(best) as draft:
        (draft / "a").write_text("b")
    assert content(best) == {"a": "b"}
    assert names(best.parent) == ["best", "other"]
    with pytest.raises(FileNotFoundError):
        exchange(best.with_name("nothing"), best)


def test_unfinished_work_of_killed_programs_is_removed(best: Path) -> None:
    run = best.parent
    write_new(draft_directory(best))
    (run / draft_name(run / "recipe.toml")).write_text("half")
    (best / draft_name(best / "weights")).write_text("half")
    (run / lock_name(best)).touch()
    for name in (".best.settings", ".bash.original", ".gitignore", "notes.deit-0123456z"):
        (run / name).write_text("of the user")
    clean_up(run)
    assert names(run) == [".bash.original", ".best.settings", ".gitignore", "best", "notes.deit-0123456z"]
    assert content(best) == OLD


def test_directory_that_was_moved_away_is_restored(best: Path) -> None:
    draft = draft_directory(best)
    write_new(draft)
    best.rename(draft.with_name(f"{draft.name}.old"))
    clean_up(best.parent)
    assert content(best) == OLD
    assert names(best.parent) == ["best"]


def test_new_directory_removes_drafts_of_its_own_path_only(best: Path) -> None:
    write_new(draft_directory(best))
    other = draft_directory(best.with_name("other"))
    with new_directory(best) as draft:
        write_new(draft)
    assert content(best) == NEW
    assert names(best.parent) == [other.name, "best"]


def test_directory_that_another_program_is_writing_is_refused(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.system.locking.WAIT_SECONDS", 0.1)
    with new_directory(best) as draft:
        write_new(draft)
        with pytest.raises(UserError, match=r"Another program is writing to .*best: wait for it"), new_directory(best):
            pytest.fail("not locked")
    assert content(best) == NEW
    assert names(best.parent) == ["best"]


def test_draft_is_made_again_if_another_program_has_removed_it(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def locked_after_another_program(*arguments: Any) -> Iterator[None]:
        clean_up_drafts(best, best.with_name("draft of the other program"))
        with locked_file(*arguments):
            yield

    monkeypatch.setattr("deit.system.files.locked_file", locked_after_another_program)
    with new_directory(best) as draft:
        write_new(draft)
    assert content(best) == NEW
    assert names(best.parent) == ["best"]


def test_new_file_replaces_a_file_on_success_only(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.csv"
    for text in ("old", "new"):
        with new_file(path) as draft:
            assert draft.name == path.name
            draft.write_text(text)
        assert path.read_text() == text
    with pytest.raises(RuntimeError, match="failed"), new_file(path) as draft:
        draft.write_text("half")
        raise RuntimeError("failed")
    assert path.read_text() == "new"
    assert names(path.parent) == ["results.csv"]


def test_new_file_removes_drafts_of_killed_programs_and_keeps_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("results.csv")
    path = tmp_path / "results.csv"
    (draft_directory(path) / "results.csv").write_text("half")
    with new_file(tmp_path / "link.csv") as draft:
        draft.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["link.csv", "results.csv"]
