"""Selects the best epoch of a run: the one whose weights are saved as ``best``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def rank(validation: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the key by which epochs are compared: higher ``top1`` first, then lower ``loss``.

    Args:
        validation: validation metrics of an epoch; ``top1`` is absent in masked image modeling.
    """
    return validation.get("top1") or 0.0, -validation["loss"]


def best_epoch(log: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the index of the best row by :func:`rank`, the earliest of equal ones; None if no row has a validation loss.

    Args:
        log: rows of ``log.jsonl``, each with ``validation`` metrics if they are known.
    """
    indices = [index for index, row in enumerate(log) if (row.get("validation") or {}).get("loss") is not None]
    return max(indices, key=lambda index: rank(log[index]["validation"]), default=None)
