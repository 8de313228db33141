"""The best epoch of a run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.selection import best_epoch


def row(epoch: int, **validation: Any) -> dict[str, Any]:
    return {"epoch": epoch, "validation": validation}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([row(1, top1=0.5, loss=1.0), row(2, top1=0.6, loss=2.0)], 2),
        ([row(1, top1=0.6, loss=1.0), row(2, top1=0.6, loss=2.0), row(3, top1=0.5, loss=0.1)], 2),  # the later one
        ([row(1, top1=0.9, loss=1.0, images=100), row(2, top1=0.85, loss=1.0, images=100)], 2),  # a standard error is 0.03
        ([row(1, top1=0.9, loss=1.0, images=100), row(2, top1=0.83, loss=1.0, images=100)], 1),
        ([row(1, top1=0.9, loss=1.0, images=100), row(2, top1=0.87, loss=1.0, images=100), row(3, top1=0.81, loss=1.0)], 2),
        ([row(1, top1=0.0, loss=3.0, images=9), row(2, top1=0.0, loss=2.0, images=9)], 2),
        ([row(1, loss=0.3), row(2, loss=0.2), row(3, loss=0.4)], 2),  # masked image modeling has no accuracy
        ([{"epoch": 1}, row(2, top1=None), {"epoch": 3, "validation": None}, row(4, top1=0.1, loss=1.0)], 4),
    ],
)
def test_best_epoch(history: list[dict[str, Any]], expected: int) -> None:
    best = best_epoch(history)
    assert best is not None
    assert history[best]["epoch"] == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_best_epoch_is_known_when_it_ends(correct: list[int]) -> None:
    """The epoch that is saved last as the best one is the best of the whole history."""
    history = [row(epoch, top1=count / 50, loss=1.0, images=50) for epoch, count in enumerate(correct)]
    saved = [epoch for epoch in range(len(history)) if best_epoch(history[: epoch + 1]) == epoch]
    assert saved[-1] == best_epoch(history)


def test_best_epoch_of_an_empty_history() -> None:
    assert best_epoch([]) is None
    assert best_epoch([{"epoch": 1}]) is None
