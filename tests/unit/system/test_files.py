"""Whole files: what is read is whole, what was saved is never lost, and rubbish is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deit.errors import CheckpointError
from deit.system.files import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    json_text,
    new_directory,
    read_json,
    sha256,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_comes_back_and_stays_readable(tmp_path: Path) -> None:
    content = {"классы": ["猫", "naïve"], "rate": 1e-5, "none": None}
    write_json(tmp_path / "new folder" / "a.json", content)
    assert read_json(tmp_path / "new folder" / "a.json") == content
    assert "猫" in (tmp_path / "new folder" / "a.json").read_text(encoding="utf-8")


def test_text_that_utf_8_cannot_hold_comes_back_too(tmp_path: Path) -> None:
    content = {"half \ud83d": ["\udfff", "\\ud800", "😀"]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "😀" in json_text(content)


def test_a_crash_while_writing_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("No space left on device")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr("deit.system.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_others_may_read_what_the_users_umask_lets_them_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
        with new_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"\xff\xfe\x00", "no valid JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"a":' * 100_000, "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "no valid JSON"),
    ],
)
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json holds {says}"):
        read_json(path)


def test_a_huge_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"config\.json is larger than 16 MiB"):
        read_json(path)


def test_json_nested_deeper_than_any_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        inner = opening * (MAX_JSON_DEPTH - 1) + "1" + closing * (MAX_JSON_DEPTH - 1)
        path.write_text(f'{{"a": {inner}}}')
        assert read_json(path)
        path.write_text(f'{{"a": [{inner}]}}')
        with pytest.raises(CheckpointError, match="nested deeper than 64 levels"):
            read_json(path)


def test_a_missing_json_file_and_a_folder_in_its_place_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_json(tmp_path)


@given(st.binary(max_size=60) | st.text('{}[]":,0123456789eEtrufalsn.- \\', max_size=60).map(str.encode))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_object_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.json").write_bytes(content)
    try:
        parsed = read_json(tmp_path / "any.json")
    except CheckpointError:
        return
    assert parsed == json.loads(content) or "NaN" in content.decode()


def test_a_new_directory_stands_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "best"
    with new_directory(target) as draft:
        (draft / "weights").write_text("1")
        assert not target.exists()
    assert (target / "weights").read_text() == "1"
    with new_directory(target) as draft:
        (draft / "other").write_text("2")
        assert names(target) == ["weights"]
    assert names(target) == ["other"]
    assert names(target.parent) == ["best"]


def test_a_directory_that_fails_on_the_way_leaves_the_old_one(tmp_path: Path) -> None:
    with new_directory(tmp_path / "best") as draft:
        (draft / "weights").write_text("1")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "best") as draft:
        (draft / "weights").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "best" / "weights").read_text() == "1"
    assert names(tmp_path) == ["best"]


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
