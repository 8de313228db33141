"""Freed memory is retained for reuse, measured in page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from deit.system.malloc import retain_freed_memory, retained_memory

RETAINED_IN_CONTEXT = """
import resource, sys, torch
from deit.system.malloc import retained_memory

def page_faults():  # while a block of 64 MiB, 16,384 pages of 4 KiB, is allocated ten times
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

faults = [page_faults()]
with retained_memory(torch.device("meta")):
    faults.append(page_faults())
with retained_memory(torch.device("cpu")):
    page_faults()
    faults.append(page_faults())
faults.append(page_faults())
print(*faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_retained_within_the_context() -> None:
    # In a new process, since the threads of pytest have their own arenas.
    process = subprocess.run([sys.executable, "-c", RETAINED_IN_CONTEXT], check=True, capture_output=True, text=True)
    before, other_device, within, after = map(int, process.stdout.split())
    assert min(before, other_device) > 100_000
    assert within < 1_000
    # The pages went back to the system. How often later blocks return theirs depends on their position in the heap.
    assert after > 16_000


RETAINED = """
import resource
import numpy as np
from deit.system.malloc import retain_freed_memory

def page_faults():  # while four blocks of 8 MiB, 8,192 pages of 4 KiB, are allocated ten times
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [np.full(8 * 2**20, 1, np.uint8) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

retain_freed_memory()
page_faults()
print(page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_retained_for_the_rest_of_the_process() -> None:
    process = subprocess.run([sys.executable, "-c", RETAINED], check=True, capture_output=True, text=True)
    assert int(process.stdout) < 1_000  # 25,000 by default


def test_other_c_libraries_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda _name: pytest.fail("a C library was loaded"))
    retain_freed_memory()
    with retained_memory(torch.device("cpu")):
        assert torch.ones(2).sum() == 2
