"""Runs a command in this process, and the options that every training command passes on."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from deit.cli.main import app

SHARED: dict[str, Any] = {
    "init": None,
    "device": "auto",
    "workers": None,
    "skip_unreadable": False,
    "cache": "auto",
    "cache_limit": 50.0,
}


def output(*arguments: object) -> str:
    """Returns what a command prints; fails unless it succeeds. Errors of deit are raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
