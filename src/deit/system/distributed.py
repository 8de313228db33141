"""Collective operations of the processes that torchrun has started. In a process of its own, each does the obvious.

If one process fails, all do: the first one raises the error and speaks for all, and the others end with a :class:`PeerError`. A
process that is killed closes its connections, which ends the wait of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from deit.errors import DeiTError, PeerError
from deit.system.torchrun import is_main, restarts, world_size

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)  # the others wait while the first process checks the data and measures candidate models
CONNECTION_MARKS = ("gloo", "NCCL", "Connection")  # in the messages of lost connections, which have no type of their own


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connects the processes that torchrun has started, until the end of the context. Does nothing without torchrun.

    Tensors of the CPU are exchanged by gloo, those of a GPU by NCCL.

    Args:
        device: where this process computes.

    Raises:
        PeerError: the processes cannot be connected.
    """
    if world_size() == 1 or _has_group():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with connected():
        shared, place, size = next(rendezvous("env://", timeout=TIMEOUT))
        # The store of torchrun outlives the processes: addresses of those that were killed must not be found.
        store = dist.PrefixStore(f"restart {restarts()}", shared)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=place, world_size=size, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Returns whether this process is connected with others."""
    return group_size() > 1


def group_size() -> int:
    """Returns the number of connected processes; 1 if there are no others."""
    return dist.get_world_size() if _has_group() else 1


def group_rank() -> int:
    """Returns the number of this process among the connected ones, counted from 0."""
    return dist.get_rank() if _has_group() else 0


def totals(values: Sequence[int]) -> list[int]:
    """Returns the sums of integers over all processes.

    Raises:
        PeerError: another process has ended.
    """
    if not is_distributed():
        return list(values)
    sums = torch.tensor(values, dtype=torch.int64)
    with connected():
        dist.all_reduce(sums)
    return [int(value) for value in sums]


def from_main(value: T | None = None) -> T:
    """Returns the value of the first process in all of them. What other processes pass is not used.

    Raises:
        PeerError: another process has ended.
    """
    if not is_distributed():
        return cast(T, value)
    values = [value]
    with connected():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return cast(T, values[0])


def gathered(value: T) -> list[T]:
    """Returns the values of all processes, in the order of their ranks.

    Raises:
        PeerError: another process has ended.
    """
    if not is_distributed():
        return [value]
    values: list[T | None] = [None] * group_size()
    with connected():
        dist.all_gather_object(values, value)
    return cast(list[T], values)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor of which each process holds a part (DTensor); any other tensor as it is. All processes must call it.

    Raises:
        PeerError: another process has ended.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    with connected():
        gathered_tensor: Tensor = tensor.full_tensor()
    return gathered_tensor


def divided_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds, as a DTensor, if the reference is one; else the tensor itself.

    Args:
        tensor: the same in all processes.
        reference: of the same shape.
    """
    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


@contextmanager
def together(before_error: Callable[[], None] | None = None) -> Iterator[None]:
    """Runs a part of the work in every process. If it fails in one of them, it fails in all.

    Args:
        before_error: is called in all of them before the error is raised.

    Raises:
        DeiTError: the first error, in the first process.
        PeerError: in all others, once the first process has ended or left the group: it may have to save the work before.
    """
    error: DeiTError | None = None
    try:
        yield
    except DeiTError as raised:
        error = raised
    if isinstance(error, PeerError) or not is_distributed():
        if error is not None:
            raise error
        return
    if totals([int(error is not None)]) == [0]:
        return
    first = next(found for found in gathered(error) if found is not None)
    if before_error is not None:
        before_error()
    if is_main():
        raise first
    try:
        from_main(None)  # until the first process closes the connection
    except PeerError:
        raise PeerError(first.problem, first.remedy, first.exit_code) from None


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def connected() -> Iterator[None]:
    """Reports a lost connection.

    Raises:
        PeerError: the operation of the context failed, since another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DeiTError) or not any(mark in str(error) for mark in CONNECTION_MARKS):
            raise
        raise PeerError("Another process of the run has ended", "see its message, or the report of torchrun") from error
