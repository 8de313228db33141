"""Writes a comparison of runs as one HTML page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deit.evaluation.charts import curves_chart
from deit.evaluation.report import render_page
from deit.evaluation.runs import Comparison, shown_flips

KEYS = {"validation accuracy": ("validation", "top1"), "validation loss": ("validation", "loss"), "training loss": ("loss",)}


def write_run_page(path: Path, comparison: Comparison) -> None:
    """Writes the page.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    render_page(path, "runs.html", lambda: _context(comparison))


def _context(comparison: Comparison) -> dict[str, object]:
    charts = {}
    for label, keys in KEYS.items():
        curves = [_curve(log, keys) for log in comparison.curves]
        if any(np.isfinite(values).any() for _, values in curves):
            charts[label] = curves_chart(f"{label} over epochs", curves, is_share=keys[-1] == "top1")
    tests = [
        {"number": number, "run": run, "test": test, "flips": shown_flips(test)}
        for number, (run, test) in enumerate(zip(comparison.runs[1:], comparison.tests, strict=True), 2)
        if test is not None
    ]
    return {"comparison": comparison, "charts": charts, "tests": tests}


def _curve(log: list[dict[str, object]], keys: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns epochs and values of a log; NaN where there is none."""
    values = []
    for row in log:
        value: object = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(float(value) if isinstance(value, int | float) else np.nan)
    return np.asarray([row["epoch"] for row in log], np.float64), np.asarray(values, np.float64)
