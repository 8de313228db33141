"""The log of a run: rows come back as they were written, and a damaged log is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.run_log import read_log, write_log
from deit.errors import CheckpointError


def rows(first: int = 1, count: int = 4) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "loss": 1 / epoch, "skipped": 0, "validation": {"top1": 0.1 * epoch}}
        for epoch in range(first, first + count)
    ]


VALUES = st.floats(-1e200, 1e200) | st.integers(-(10**20), 10**20) | st.none()


@given(st.lists(st.dictionaries(st.text(min_size=1), VALUES), max_size=4))
def test_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, Any]]) -> None:
    directory = tmp_path_factory.mktemp("run")
    written = [{**row, "epoch": number} for number, row in enumerate(values, 3)]
    written = [{name: value for name, value in row.items() if name != "crc32"} for row in written]
    write_log(directory, written)
    assert read_log(directory) == written


def test_a_run_without_a_log_has_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    write_log(tmp_path, [{"epoch": 1, "loss": float("nan"), "validation": {"loss": float("inf")}}])
    assert read_log(tmp_path) == [{"epoch": 1, "loss": None, "validation": {"loss": None}}]


DAMAGES: dict[str, Callable[[list[str]], list[str]]] = {
    "a changed digit": lambda lines: [lines[0].replace("0.1", "0.2"), *lines[1:]],
    "a changed checksum": lambda lines: [lines[0][:-3] + "z" + lines[0][-2:], *lines[1:]],
    "no checksum": lambda lines: [json.dumps(rows()[0]), *lines[1:]],
    "a missing first row": lambda lines: lines[1:],
    "a missing row": lambda lines: [lines[0], *lines[2:]],
    "a repeated row": lambda lines: [lines[0], *lines],
    "exchanged rows": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a row of another log": lambda lines: [*lines, json.dumps({"epoch": 5})],
    "half a row": lambda lines: [*lines[:-1], lines[-1][:20]],
    "an empty line": lambda lines: [lines[0], "", *lines[1:]],
    "a list": lambda _: ["[1]"],
    "deep nesting": lambda _: ["[" * 100_000],
    "a large number": lambda _: ['{"epoch": ' + "9" * 5000 + "}"],
    "infinity": lambda _: ['{"epoch": Infinity}'],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_log_is_refused(tmp_path: Path, damage: str) -> None:
    write_log(tmp_path, rows())
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(DAMAGES[damage](path.read_text().splitlines())) + "\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl is damaged in line \d: restore it from a copy, or remove it"):
        read_log(tmp_path)


def test_a_log_may_start_at_any_epoch(tmp_path: Path) -> None:
    """As that of a run that was resumed after its log was removed."""
    write_log(tmp_path, rows(first=7))
    assert [row["epoch"] for row in read_log(tmp_path)] == [7, 8, 9, 10]
