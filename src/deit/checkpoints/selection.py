"""Selects the best epoch of a run: the one whose weights are saved as ``best``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

STANDARD_ERRORS = 2.0  # by which the highest of many noisy accuracies may be too high


def best_epoch(log: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the index of the best row; None if no row has a validation loss.

    It is the latest epoch whose top-1 is within two standard errors of the highest. The highest of many epochs is so by chance:
    on 700 validation images the standard error is 1.3 points, and an earlier epoch, with a higher learning rate, usually
    generalizes worse (``docs/log.md``). Without accuracies, as in masked image modeling, it is the epoch of the lowest loss.

    Args:
        log: rows of ``log.jsonl``, each with ``validation`` metrics if they are known: ``loss``, ``top1``, and the number of
            ``images``. Without this number, the standard error counts as 0.
    """
    rows = [(index, row.get("validation") or {}) for index, row in enumerate(log)]
    rows = [(index, validation) for index, validation in rows if validation.get("loss") is not None]
    if not any(validation.get("top1") for _, validation in rows):
        return min(rows, key=lambda row: row[1]["loss"], default=(None, {}))[0]
    highest, images = max((validation.get("top1") or 0.0, validation.get("images") or 0) for _, validation in rows)
    error = STANDARD_ERRORS * math.sqrt(highest * (1 - highest) / images) if images else 0.0
    return max(index for index, validation in rows if (validation.get("top1") or 0.0) >= highest - error)
