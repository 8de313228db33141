"""Properties of the CPU. Does not import torch."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

UNKNOWN_MEMORY = 2**62
UNKNOWN_CORES = 2**20
CONTAINER = Path("/sys/fs/cgroup")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores() -> int:
    """Returns the number of logical cores that this process may use, in this container if it is limited; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(allowed, _container_cores()), 1)


def cpu_name() -> str:
    """Returns a readable name of the CPU."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Returns the CPU flags that Linux lists for the first core; empty on other systems."""
    return frozenset(_cpu_info("flags").split())


def has_bf16() -> bool:
    """Returns whether the CPU has instructions for bf16 matrix products."""
    return bool(BF16_FLAGS & cpu_flags())


def available_memory() -> int:
    """Returns the bytes of memory that programs may still allocate, in this container if it is limited; 2**62 if unknown."""
    return min(_meminfo("MemAvailable"), _container_memory())


def _meminfo(field: str) -> int:
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(rows[field].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return UNKNOWN_MEMORY


def _container_cores() -> int:
    """Returns the CPU time per time that a container may use, rounded up."""
    try:
        quota, period = map(int, (CONTAINER / "cpu.max").read_text().split())
        return math.ceil(quota / period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return UNKNOWN_CORES


def _container_memory() -> int:
    try:
        return max(int((CONTAINER / "memory.max").read_text()) - int((CONTAINER / "memory.current").read_text()), 0)
    except (OSError, ValueError):  # no such files, or "max"
        return UNKNOWN_MEMORY


def _cpu_info(field: str) -> str:
    """Returns a field of the first core in ``/proc/cpuinfo``; empty if there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == field), "")
