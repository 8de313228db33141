"""Python threads in which torch computes, each with compute threads of its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def torch_thread_pool(count: int, compute_threads: int = 1) -> ThreadPoolExecutor:
    """Returns a pool of ``count`` Python threads, in each of which an operation of torch runs on ``compute_threads`` threads.

    The number of compute threads of all other Python threads stays the same.
    """
    default, started = torch.get_num_threads(), threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(compute_threads)
        torch.get_num_threads()  # the first call in a thread applies the number that was set last in any thread
        started.wait()

    pool = ThreadPoolExecutor(count, "deit-torch")
    for _ in range(count):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(default)  # for threads that are started later
    return pool
