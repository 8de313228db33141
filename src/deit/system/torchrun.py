"""The place of this process among those that torchrun has started. Does not import torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Returns the number of this process among all, counted from 0; 0 without torchrun."""
    return _variable("RANK", 0)


def world_size() -> int:
    """Returns the number of processes; 1 without torchrun."""
    return _variable("WORLD_SIZE", 1)


def local_rank() -> int:
    """Returns the number of this process among those of its machine, counted from 0; 0 without torchrun."""
    return _variable("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Returns the number of processes on this machine; 1 without torchrun."""
    return _variable("LOCAL_WORLD_SIZE", 1)


def restarts() -> int:
    """Returns how often torchrun has started the processes again, after one of them had failed."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0)


def may_restart() -> bool:
    """Returns whether torchrun starts the processes again if one of them fails."""
    return _variable("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def is_main() -> bool:
    """Returns whether this is the first process, which writes all files and speaks for all."""
    return rank() == 0


def _variable(name: str, default: int) -> int:
    """Returns an integer that torchrun sets. Other programs set variables of the same names, such as ``RANK``."""
    return int(os.environ.get(name, default)) if "TORCHELASTIC_RUN_ID" in os.environ else default
