"""Test that two samples have the same distribution."""

from __future__ import annotations

from typing import Any

import numpy as np

# Of the Kolmogorov-Smirnov statistic, in units of sqrt(1/n + 1/m): exceeded by chance once in 100,000 tests.
CRITICAL_VALUE = 2.48


def assert_same_distribution(ours: Any, theirs: Any) -> None:
    """Asserts that two samples have the same distribution, by the Kolmogorov-Smirnov test."""
    ours, theirs = np.sort(np.asarray(ours, np.float64)), np.sort(np.asarray(theirs, np.float64))
    values = np.concatenate([ours, theirs])
    ours_cdf, theirs_cdf = (np.searchsorted(sample, values, "right") / len(sample) for sample in (ours, theirs))
    gap = np.abs(ours_cdf - theirs_cdf).max()
    assert gap < CRITICAL_VALUE * np.sqrt(1 / len(ours) + 1 / len(theirs)), f"the distributions differ by {gap:.3f}"
