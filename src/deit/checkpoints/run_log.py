"""The logs of a training run.

``log.jsonl`` has one JSON object per epoch, each with a checksum of itself and all rows before. ``non_finite_steps.jsonl`` has
one per step whose loss or gradients were not finite.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deit.errors import CheckpointError
from deit.system.files import LOG_NAME, NON_FINITE_NAME, json_line, read_limited, write_text

MAX_ROW_BYTES = 64 * 2**10  # a row has 300
MAX_LOGGED = 1e300  # a larger number is not a measurement
CHECKSUM = "crc32"  # key of the checksum, 8 hexadecimal digits


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Returns the rows of ``log.jsonl``, one per epoch and without their checksums; empty if there is none yet.

    Raises:
        CheckpointError: a row is damaged, or an epoch is missing between two rows.
    """
    path = directory / LOG_NAME
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    previous = 0
    for number, line in enumerate(read_limited(path).splitlines(), 1):
        row, previous = _parse(line, previous)
        epoch = row.get("epoch") if row is not None else None
        if (
            row is None
            or type(epoch) is not int
            or epoch != (rows[-1]["epoch"] + 1 if rows else max(epoch, 1))
            or not all(map(_is_measurement, row.values()))
        ):
            raise CheckpointError(
                f"{path} is damaged in line {number}",
                "restore it from a copy, or remove it: a resumed run then starts a new log",
            )
        rows.append(row)
    return rows


def write_log(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``log.jsonl``."""
    lines, previous = [], 0
    for row in rows:
        previous = _checksum(row, previous)
        lines.append(json_line({**row, CHECKSUM: f"{previous:08x}"}))
    write_text(directory / LOG_NAME, "".join(lines))


def add_non_finite_step(
    directory: Path, epoch: int, step: int, values: Mapping[str, float], samples: Sequence[Sequence[int]]
) -> None:
    """Adds a row to ``non_finite_steps.jsonl``, in place of an earlier one of the same step, which a resumed run repeats.

    Args:
        directory: the run directory.
        epoch: counted from 1.
        step: within the epoch, counted from 1.
        values: measurements of the step, such as its loss; what is not finite is written as a string.
        samples: index in the data set, repeat, and position in the batch of each sample.
    """
    path = directory / NON_FINITE_NAME
    lines = read_limited(path).decode().splitlines(keepends=True) if path.is_file() else []
    texts = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    key = f'{{"epoch": {epoch}, "step": {step}, '
    row = json_line({"epoch": epoch, "step": step, **texts, "samples": samples})
    write_text(path, "".join([*(line for line in lines if not line.startswith(key)), row]))


def _is_measurement(value: object) -> bool:
    """Whether a value is a number, missing, or a mapping to those."""
    if isinstance(value, dict):
        return all(not isinstance(item, dict) and _is_measurement(item) for item in value.values())
    return value is None or (isinstance(value, int | float) and abs(value) < MAX_LOGGED)


def _parse(line: bytes, previous: int) -> tuple[dict[str, Any] | None, int]:
    """Returns a row, None if it is damaged, and its checksum."""
    try:
        row = json.loads(line) if len(line) <= MAX_ROW_BYTES else None
        if not isinstance(row, dict):
            return None, 0
        stored = row.pop(CHECKSUM, None)
        checksum = _checksum(row, previous)
    except (ValueError, RecursionError, OverflowError):
        return None, 0
    return (row if stored == f"{checksum:08x}" else None), checksum


def _checksum(row: Mapping[str, Any], previous: int) -> int:
    return zlib.crc32(json_line(row).encode("utf-8", "backslashreplace"), previous)
