"""Thread pools for work that releases the GIL, as in Pillow and NumPy."""

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
    """Applies a function to each item on one thread per core. Returns the results in the order of the items.

    A child process, such as a worker of a data loader, uses one thread, since its parent starts one process per core.
    """
    threads = min(cores(), len(items)) if multiprocessing.parent_process() is None else 1
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Applies a function to each item on ``threads`` threads. Yields the results in the order of the items.

    Items are consumed lazily: at most ``2 * threads + 1`` are in flight, so ``items`` may be infinite.
    """
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
