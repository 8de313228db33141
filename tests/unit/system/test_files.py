"""Atomic writing, JSON reading with limits, and atomic directories."""

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


def test_json_round_trips_without_escapes(tmp_path: Path) -> None:
    content = {"классы": ["猫", "naïve"], "rate": 1e-5, "none": None}
    write_json(tmp_path / "new folder" / "a.json", content)
    assert read_json(tmp_path / "new folder" / "a.json") == content
    assert "猫" in (tmp_path / "new folder" / "a.json").read_text(encoding="utf-8")


def test_lone_surrogates_round_trip(tmp_path: Path) -> None:
    content = {"half \ud83d": ["\udfff", "\\ud800", "😀"]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "😀" in json_text(content)


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("No space left on device")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr("deit.system.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
        with new_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(previous)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_corrupt_json_is_reported(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json is {problem}"):
        read_json(path)


def test_large_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"config\.json is larger than 16 MiB"):
        read_json(path)


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        nested = opening * (MAX_JSON_DEPTH - 1) + "1" + closing * (MAX_JSON_DEPTH - 1)
        path.write_text(f'{{"a": {nested}}}')
        assert read_json(path)
        path.write_text(f'{{"a": [{nested}]}}')
        with pytest.raises(CheckpointError, match="nested deeper than 64 levels"):
            read_json(path)


def test_missing_file_and_directory_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_json(tmp_path)


@given(st.binary(max_size=60) | st.text('{}[]":,0123456789eEtrufalsn.- \\', max_size=60).map(str.encode))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_object_or_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.json").write_bytes(content)
    try:
        parsed = read_json(tmp_path / "any.json")
    except CheckpointError:
        return
    assert parsed == json.loads(content) or "NaN" in content.decode()


def test_new_directory_appears_when_complete(tmp_path: Path) -> None:
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


def test_failed_new_directory_keeps_the_old_one(tmp_path: Path) -> None:
    with new_directory(tmp_path / "best") as draft:
        (draft / "weights").write_text("1")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "best") as draft:
        (draft / "weights").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "best" / "weights").read_text() == "1"
    assert names(tmp_path) == ["best"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
