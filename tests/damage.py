"""Damaged versions of a file, drawn from a seed: what disks, transfers, editors and attackers make of it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

EXTREMES = (
    *(b"\0", b"\xff" * 8, b"\n", b'"', b"[" * 5000, b"{", b"}", b"]", b"\\ud800", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"0.5", b"9" * 30, b"9" * 5000),
)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields ``count`` versions of a file, each different from it."""
    draws = random.Random(seed)
    ways = (flip_bit, truncate, delete, repeat, insert, overwrite, replace_number)
    while count:
        version = draws.choice(ways)(content, draws)
        if draws.random() < 0.2:
            version = draws.choice(ways)(version, draws)
        if version != content:
            count -= 1
            yield version


def flip_bit(content: bytes, draws: random.Random) -> bytes:
    """Changes one bit."""
    if not content:
        return b"\1"
    position = draws.randrange(len(content))
    return content[:position] + bytes([content[position] ^ 1 << draws.randrange(8)]) + content[position + 1 :]


def truncate(content: bytes, draws: random.Random) -> bytes:
    """Leaves out the end."""
    return content[: draws.randrange(len(content) + 1)]


def delete(content: bytes, draws: random.Random) -> bytes:
    """Leaves out a few bytes in the middle, or a line."""
    start, end = _range(content, draws)
    return content[:start] + content[end:]


def repeat(content: bytes, draws: random.Random) -> bytes:
    """Repeats a few bytes, or a line."""
    start, end = _range(content, draws)
    return content[:end] + content[start:end] + content[end:]


def insert(content: bytes, draws: random.Random) -> bytes:
    """Inserts a value that readers often do not expect."""
    position = draws.randrange(len(content) + 1)
    return content[:position] + draws.choice(EXTREMES) + content[position:]


def overwrite(content: bytes, draws: random.Random) -> bytes:
    """Overwrites a few bytes by random ones."""
    start = draws.randrange(len(content) + 1)
    return content[:start] + draws.randbytes(8) + content[start + 8 :]


def replace_number(content: bytes, draws: random.Random) -> bytes:
    """Replaces a number by one that readers often do not expect."""
    numbers = list(NUMBER.finditer(content))
    if not numbers:
        return insert(content, draws)
    found = draws.choice(numbers)
    return content[: found.start()] + draws.choice(EXTREMES) + content[found.end() :]


def _range(content: bytes, draws: random.Random) -> tuple[int, int]:
    start = draws.randrange(len(content) + 1)
    if draws.random() < 0.5:
        return start, min(start + draws.randrange(1, 40), len(content))
    line = content.rfind(b"\n", 0, start) + 1
    end = content.find(b"\n", start)
    return line, len(content) if end < 0 else end + 1
