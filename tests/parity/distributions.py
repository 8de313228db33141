"""Whether two samples were drawn alike."""

from __future__ import annotations

from typing import Any

import numpy as np

# Of Kolmogorov and Smirnov's statistic, in units of sqrt(1/n + 1/m): exceeded by chance once in 100,000 tests.
MOST = 2.48


def assert_alike(ours: Any, theirs: Any) -> None:
    """The largest gap between the two cumulative distributions is one that chance makes (test of Kolmogorov and Smirnov)."""
    one, other = np.sort(np.asarray(ours, np.float64)), np.sort(np.asarray(theirs, np.float64))
    places = np.concatenate([one, other])
    gap = np.abs(np.searchsorted(one, places, "right") / len(one) - np.searchsorted(other, places, "right") / len(other)).max()
    assert gap < MOST * np.sqrt(1 / len(one) + 1 / len(other)), f"the distributions are {gap:.3f} apart"
