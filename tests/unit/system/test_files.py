"""Atomic writing, JSON reading with limits, and atomic directories."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deit.errors import CheckpointError, UserError, WorkError
from deit.system.files import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    check_writable,
    json_line,
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


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
JSON = st.recursive(
    st.one_of(NUMBERS, st.text()),
    lambda values: st.one_of(st.lists(values), st.lists(NUMBERS), st.dictionaries(st.text(), values)),
)


@given(JSON)
def test_any_content_is_written_as_valid_json(content: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for text in (json_text(content), json_line(content)):
        assert json.loads(text, parse_constant=refuse) == _without_non_finite(content)
        assert text.endswith("\n")
    assert json_line(content).count("\n") == 1


def _without_non_finite(content: Any) -> Any:
    if isinstance(content, list):
        return list(map(_without_non_finite, content))
    if isinstance(content, dict):
        return {name: _without_non_finite(value) for name, value in content.items()}
    return None if content != content or content in (math.inf, -math.inf) else content


def test_lists_of_numbers_are_on_one_line() -> None:
    content = {"a": [1, -2.5, None, True], "b": [[1, 2], [3]], "c": ["[\n1,\n2\n]", 1], "d": []}
    text = json_text(content)
    assert json.loads(text) == content
    assert '"a": [1, -2.5, null, true]' in text
    assert "[1, 2],\n" in text


def test_numbers_that_are_not_finite_become_null() -> None:
    content = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}]}
    assert json.loads(json_text(content)) == {"a": None, "b": [None, {"c": [None, 1.5]}]}


def test_file_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"a\.json would be larger than 16 MiB"):
        write_json(tmp_path / "a.json", {"a": "x" * MAX_JSON_BYTES})
    assert not list(tmp_path.iterdir())
    content = {"a": "x" * (MAX_JSON_BYTES - 14)}
    write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").stat().st_size == MAX_JSON_BYTES
    assert read_json(tmp_path / "a.json") == content


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


def test_directory_that_cannot_be_created_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in (Path(), Path("new/run"), tmp_path, tmp_path / "new" / "run"):
        check_writable(directory)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: pass another --out"):
        check_writable(Path("file/run"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission to write to"):
        check_writable(Path("new/run"))
