"""Python threads with compute threads of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from deit.system.torch_threads import torch_thread_pool


def test_threads_of_the_pool_have_their_own_number_of_compute_threads() -> None:
    before = torch.get_num_threads()
    with torch_thread_pool(2, compute_threads=before + 1) as pool:
        assert {future.result() for future in [pool.submit(torch.get_num_threads) for _ in range(8)]} == {before + 1}
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == before
