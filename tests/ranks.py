"""Calls a function in several connected processes, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PRELOADED = ["deit.training.run", "torch.distributed"]  # so that a process starts within milliseconds
DEADLINE = 120  # seconds


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Calls a function in ``size`` processes on the CPU.

    Returns:
        What it returned, or the error that it raised, by rank; None for a process that was killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, receivers = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_call, args=(function, rank, size, port, arguments, sender))
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    results = [_received(receiver) for receiver in receivers]
    for process in processes:
        process.join(DEADLINE)
    return results


def _received(receiver: Connection) -> Any:
    assert receiver.poll(DEADLINE), "A process hangs"
    try:
        return receiver.recv()
    except EOFError:
        return None


def _call(function: Callable[..., Any], rank: int, size: int, port: int, arguments: Any, sender: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        TORCHELASTIC_RUN_ID="test",
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 - the test says what it expects
        result = error
    sender.send(result)
