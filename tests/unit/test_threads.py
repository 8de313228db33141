"""Side by side, in order, and alone where others work already."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import pytest

from deit.threads import on_threads


def test_the_results_are_in_the_order_of_the_items() -> None:
    assert on_threads(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    assert on_threads(str, []) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_items_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=10)  # breaks unless two wait at it together
    assert sorted(on_threads(lambda _: both.wait(), range(2))) == [0, 1]


def _threads_of_a_child(queue: Any) -> None:
    queue.put(set(on_threads(lambda _: threading.current_thread().name, range(4))))


def test_a_child_process_takes_one_thread() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_threads_of_a_child, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == {"MainThread"}
    process.join()


def test_an_error_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        on_threads(lambda item: 1 // item, [1, 0, 1])
