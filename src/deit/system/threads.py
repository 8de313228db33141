"""Work that other libraries do outside of Python's lock, side by side."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from deit.system.hardware import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function of each item, in their order, on as many threads as there are cores: Pillow and NumPy work in parallel.

    Child processes, as a loader's workers are, take one: their parent has made as many of them as there are cores.
    """
    threads = min(cores(), len(items)) if multiprocessing.parent_process() is None else 1
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The function of each item, in their order, on ``threads`` threads that are no further ahead than one item each.

    Items are taken, and results kept, only as the reader goes on: of a stream without end too, few are in memory.
    """
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) > 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
