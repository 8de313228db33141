"""The best epoch of a run."""

from __future__ import annotations

from typing import Any

import pytest

from deit.checkpoints.selection import best_epoch, rank


def row(epoch: int, **validation: Any) -> dict[str, Any]:
    return {"epoch": epoch, "validation": validation}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([row(1, top1=0.5, loss=1.0), row(2, top1=0.6, loss=2.0)], 2),
        ([row(1, top1=0.6, loss=2.0), row(2, top1=0.6, loss=1.0), row(3, top1=0.5, loss=0.1)], 2),  # lower loss
        ([row(1, top1=0.6, loss=1.0), row(2, top1=0.6, loss=1.0)], 1),  # the earlier one
        ([row(1, loss=0.3), row(2, loss=0.2), row(3, loss=0.4)], 2),  # masked image modeling has no accuracy
        ([{"epoch": 1}, row(2, top1=None), {"epoch": 3, "validation": None}, row(4, top1=0.1, loss=1.0)], 4),
    ],
)
def test_best_epoch(history: list[dict[str, Any]], expected: int) -> None:
    best = best_epoch(history)
    assert best is not None
    assert history[best]["epoch"] == expected


def test_best_epoch_of_an_empty_history() -> None:
    assert best_epoch([]) is None
    assert best_epoch([{"epoch": 1}]) is None


def test_rank_orders_by_accuracy_then_loss() -> None:
    assert rank({"top1": 0.5, "loss": 9.0}) > rank({"top1": 0.4, "loss": 0.0})
    assert rank({"top1": 0.5, "loss": 1.0}) > rank({"top1": 0.5, "loss": 2.0})
