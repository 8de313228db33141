"""Side by side, in order, and alone where others work already."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from typing import Any

import pytest

from deit.system.threads import ordered_map, thread_map


def test_the_results_are_in_the_order_of_the_items() -> None:
    assert thread_map(lambda item: item * item, range(50)) == [item * item for item in range(50)]
    assert thread_map(str, []) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_items_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=10)  # breaks unless two wait at it together
    assert sorted(thread_map(lambda _: both.wait(), range(2))) == [0, 1]


def _threads_of_a_child(queue: Any) -> None:
    queue.put(set(thread_map(lambda _: threading.current_thread().name, range(4))))


def test_a_child_process_takes_one_thread() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_threads_of_a_child, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == {"MainThread"}
    process.join()


def test_an_error_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        thread_map(lambda item: 1 // item, [1, 0, 1])


def test_a_stream_comes_in_order_and_is_taken_as_it_is_read() -> None:
    taken = []

    def endless() -> Any:
        for item in itertools.count():
            taken.append(item)
            yield item

    def late(item: int) -> int:
        time.sleep(0.01 if item % 2 else 0)
        return item

    stream = ordered_map(late, endless(), threads=3)
    assert [next(stream) for _ in range(20)] == list(range(20))
    assert len(taken) <= 20 + 2 * 3 + 1
    stream.close()  # type: ignore[attr-defined]


def test_a_streams_error_comes_in_its_place() -> None:
    stream = ordered_map(lambda item: 1 // item, [1, 1, 0, 1], threads=2)
    assert [next(stream), next(stream)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
