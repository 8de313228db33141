"""Standard input, output and error of the program, which may be closed, full, or read by a program that has exited."""

from __future__ import annotations

import os
import sys

_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)


def open_standard_files() -> None:
    """Opens the null device in place of standard files that are closed.

    Python sets their objects to None then, and the next file that any library opens would get their number, so that output
    could end up in a checkpoint.
    """
    for number, (name, mode) in enumerate(zip(("stdin", "stdout", "stderr"), _MODES, strict=True)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def flush_output() -> None:
    """Writes buffered output.

    Raises:
        OSError: it cannot be written; without this call, Python would print a traceback at its exit.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def silence_output() -> None:
    """Sends standard output to the null device: results are printed by the first of several processes."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def discard_output() -> None:
    """Sends further output to the null device, since nobody reads it."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())
    os.close(null)
