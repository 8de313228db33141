"""Devices and numerical precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from deit.errors import UserError
from deit.system.hardware import cpu_name, has_bf16
from deit.system.progress import plural
from deit.system.torchrun import local_rank, world_size

Precision = Literal["fp32", "bf16"]


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device of this name. ``auto`` means CUDA if available, then MPS, then the CPU.

    Under torchrun, each process of a machine has a GPU of its own.

    Raises:
        UserError: the device does not exist on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda") if world_size() == 1 else choose_device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and world_size() == 1 else "cpu")
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        remedy = "pass --device auto, or cpu"
        if world_size() > 1:
            remedy = "start one process per GPU: torchrun --nproc-per-node gpu; or pass --device cpu"
        raise UserError(f"There is no device {name!r} on this machine", remedy) from error
    return device


def choose_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Returns the named precision. ``auto`` means bf16 if the hardware has bf16 matrix products, else fp32.

    fp16 is not supported, because base models overflow in it.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_bf16() else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Returns a context in which matrix products run in ``precision``. Weights and losses stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def describe(device: torch.device) -> str:
    """Returns a readable name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {plural(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type
