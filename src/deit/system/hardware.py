"""Properties of the CPU. Does not import torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores() -> int:
    """Returns the number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Returns a readable name of the CPU."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Returns the CPU flags that Linux lists for the first core; empty on other systems."""
    return frozenset(_cpu_info("flags").split())


def has_bf16() -> bool:
    """Returns whether the CPU has instructions for bf16 matrix products."""
    return bool(BF16_FLAGS & cpu_flags())


def _cpu_info(field: str) -> str:
    """Returns a field of the first core in ``/proc/cpuinfo``; empty if there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == field), "")
