"""Text for standard output and standard error, whatever their encoding."""

from __future__ import annotations

import io
import sys
from typing import TextIO

JOINERS = "\u200c\u200d"  # not printable, but parts of words and of emoji


def configure_streams() -> None:
    """Makes standard output and standard error escape the characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str, stream: TextIO | None) -> None:
    """Writes text to a stream, with the characters that its encoding lacks escaped. A closed stream (None) is ignored."""
    if stream is None:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:  # raised before anything is written
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def can_encode(text: str, stream: TextIO | None) -> bool:
    """Whether all characters of a text are in the encoding of a stream."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Replaces control characters and those that change the direction of text, which names and paths may contain."""
    return "".join(letter if letter.isprintable() or letter in JOINERS else "\N{REPLACEMENT CHARACTER}" for letter in text)
