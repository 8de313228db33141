"""Runs the ``deit`` program as ``python -m deit``."""

from __future__ import annotations

from deit.cli.main import run

if __name__ == "__main__":
    run()
