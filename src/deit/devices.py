"""Where the work runs, and in which precision."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from deit.errors import UserError
from deit.hardware import cpu_name, has_bf16

Precision = Literal["fp32", "bf16"]

# Parameters of glibc's mallopt (malloc.h), and what they are when nobody sets them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_USUAL_TRIM_THRESHOLD, _USUAL_MMAP_MAX = 128 * 1024, 65_536
_NEVER_TRIM = 2**31 - 1


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; ``auto`` takes a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"There is no device {name!r} here", "pass --device auto, or cpu") from error
    return device


def choose_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """bf16 where the hardware multiplies matrices in it, else fp32. fp16 is not offered: base models overflow in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_bf16() else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Matrix products in bf16 within, where that is the precision; weights and losses stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[None]:
    """Within, a CPU's memory that is freed is kept for the next tensor; at the end the system has it back.

    glibc takes each large block from the system and gives it back at once, and the system fills it with zeros each time. A
    training step frees and takes the same sizes again and again. Without glibc, or on another device, this does nothing.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def describe(device: torch.device) -> str:
    """The hardware's name, for a person."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
