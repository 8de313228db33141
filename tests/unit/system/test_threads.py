"""Thread pools: order, concurrency, errors, and use in child processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from typing import Any

import pytest

from deit.system.threads import ordered_map, thread_map


def test_results_are_in_the_order_of_the_items() -> None:
    assert thread_map(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    assert thread_map(str, []) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_items_run_concurrently() -> None:
    barrier = threading.Barrier(2, timeout=10)  # breaks unless two threads wait at the same time
    assert sorted(thread_map(lambda _: barrier.wait(), range(2))) == [0, 1]


def _report_threads(queue: Any) -> None:
    queue.put(set(thread_map(lambda _: threading.current_thread().name, range(4))))


def test_child_process_uses_one_thread() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_report_threads, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == {"MainThread"}
    process.join()


def test_error_propagates() -> None:
    with pytest.raises(ZeroDivisionError):
        thread_map(lambda item: 1 // item, [1, 0, 1])


def test_ordered_map_is_ordered_and_lazy() -> None:
    consumed = []

    def endless() -> Any:
        for item in itertools.count():
            consumed.append(item)
            yield item

    def delay(item: int) -> int:
        time.sleep(0.01 if item % 2 else 0)
        return item

    results = ordered_map(delay, endless(), threads=3)
    assert [next(results) for _ in range(20)] == list(range(20))
    assert len(consumed) <= 20 + 2 * 3 + 1
    results.close()  # type: ignore[attr-defined]


def test_ordered_map_raises_at_the_failing_item() -> None:
    results = ordered_map(lambda item: 1 // item, [1, 1, 0, 1], threads=2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
