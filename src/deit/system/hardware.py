"""What this machine's processor is and has; nothing here needs torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cores() -> int:
    """How many threads of this process can run at the same time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name, for a person."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The instruction sets that Linux lists for the first core; empty elsewhere."""
    return frozenset(_cpu_info("flags").split())


def has_bf16() -> bool:
    """Whether the processor multiplies matrices in bf16."""
    return bool(BF16_FLAGS & cpu_flags())


def _cpu_info(field: str) -> str:
    """A field of the first core in Linux's list; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return ""
    rows = (line.partition(":") for line in info.read_text().splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == field), "")
