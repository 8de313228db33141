"""What the benchmarks print and write: environment, quartiles, a Markdown page and JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit.system.devices import describe

RESULTS = Path(__file__).parent / "results"


def hardware_and_software(device: torch.device, versions: Mapping[str, str | None]) -> dict[str, str]:
    """Returns a description of the device, and the versions of Python and of the named libraries."""
    software = {"Python": platform.python_version(), **versions}
    return {"hardware": describe(device), "software": ", ".join(f"{name} {version}" for name, version in software.items())}


def environment(device: torch.device, versions: Mapping[str, str | None]) -> dict[str, str]:
    """Returns today's date, and :func:`hardware_and_software`."""
    return {"date": date.today().isoformat(), **hardware_and_software(device, versions)}


def dates(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the days on which rows were measured: ``2026-11-22``, or ``2026-11-22 to 2026-11-30``."""
    days = [row["date"] for row in rows]
    return " to ".join(sorted({min(days), max(days)}))


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Returns the 25th percentile (``low``), the median and the 75th percentile (``high``)."""
    return dict(zip(("low", "median", "high"), np.percentile(values, (25, 50, 75)).tolist(), strict=True))


def with_quartiles(figure: Mapping[str, float], digits: int) -> str:
    """Formats quartiles as ``36.1 (35.0 to 36.4)``."""
    return f"{figure['median']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def publish(result: Mapping[str, Any], page: str, name: str | None) -> None:
    """Prints a result.

    Args:
        result: printed as JSON on the last line.
        page: the result as Markdown; printed first.
        name: stem of the files in ``benchmarks/results``, ``NAME.json`` and ``NAME.md``; None writes no files.
    """
    print(page)
    if name is not None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(page)
    print(json.dumps(result))
