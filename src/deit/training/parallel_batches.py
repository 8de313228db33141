"""Runs the micro-batches of a step at the same time on a CPU.

The threads of one operation wait for each other at its end, hundreds of times per step, and one that shares its core with
another program holds up all of them. Micro-batches are independent: each has a thread of its own, and they wait once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import TypeVar

import torch
from torch import nn

from deit.data.loader import Batch
from deit.distillation.feature_distillation import FeatureDistillation
from deit.recipes.schema import Recipe, Transformer
from deit.system.hardware import cores
from deit.system.torch_threads import torch_thread_pool
from deit.training.optimization import trainable_modules

MAX_GRADIENTS = 2**28  # values of all replicas together: 1 GiB
MAX_PIXELS = 128 * 224**2  # of all micro-batches together: their memory is at most that of one micro-batch of ``deit``
M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")
Replica = tuple[nn.Module, FeatureDistillation | None]


class ParallelBatches:
    """Computes the gradients of several micro-batches at the same time.

    Each micro-batch has a replica of the model, with the same weights in memory but gradients of its own. Afterwards, the
    gradients are added up in the order of the micro-batches, so that the result does not depend on the number of cores.

    Args:
        model: a model without batch norms, whose statistics the replicas do not share.
        features: trained along with it; None without feature distillation.
        count: largest number of micro-batches, at least 2.
    """

    def __init__(self, model: nn.Module, features: FeatureDistillation | None, count: int) -> None:
        self.count = count
        self._replicas: list[Replica] = [(model, features)]
        self._pool = torch_thread_pool(min(count, cores()), max(cores() // count, 1))

    def run(self, backward: Callable[[Replica, Batch], R], batches: Sequence[Batch]) -> list[R]:
        """Calls ``backward`` for each batch, which accumulates the gradients of the replica that it is given.

        Returns:
            The results in the order of the batches, of which there are at most ``count``. The model has the gradients of all.
        """
        model, features = self._replicas[0]
        for _ in range(self.count - len(self._replicas)):  # not before a checkpoint is restored
            self._replicas.append((_replica(model), None if features is None else _replica(features)))
        modules = [trainable_modules(*replica).train(model.training) for replica in self._replicas]
        pairs = zip(self._replicas[: len(batches)], batches, strict=True)  # no batch is left out
        pending = [self._pool.submit(backward, replica, batch) for replica, batch in pairs]
        wait(pending)  # for all of them, also if one fails
        try:
            results = [future.result() for future in pending]
            _add_gradients(modules[: len(batches)])
        finally:  # a failed step leaves nothing behind for the next one
            for module in modules[1:]:
                module.zero_grad(set_to_none=True)
        return results


def parallel_batches(
    recipe: Recipe, device: torch.device, model: nn.Module, features: FeatureDistillation | None
) -> ParallelBatches | None:
    """Returns what runs the micro-batches of a recipe at the same time; None where they run one after the other.

    That is for convolutional networks, on other devices than a CPU, and where they would take too much memory.
    """
    count = -(-recipe.images_per_batch // recipe.images_per_micro_batch)
    if not isinstance(recipe.model, Transformer) or device.type != "cpu" or count < 2:
        return None
    gradients = count * sum(parameter.numel() for parameter in trainable_modules(model, features).parameters())
    if gradients > MAX_GRADIENTS or recipe.images_per_batch * math.prod(recipe.image_hw) > MAX_PIXELS:
        return None
    return ParallelBatches(model, features, count)


def _replica(module: M) -> M:
    """Returns a copy whose parameters share the memory of the original ones, without gradients."""
    replica = copy.deepcopy(module)
    for copied, parameter in zip(replica.parameters(), module.parameters(), strict=True):
        copied.data, copied.grad = parameter.data, None
    return replica


def _add_gradients(modules: Sequence[nn.Module]) -> None:
    """Adds the gradients of all modules to those of the first."""
    sums = [parameter.grad for parameter in modules[0].parameters() if parameter.grad is not None]
    for module in modules[1:]:
        torch._foreach_add_(sums, [parameter.grad for parameter in module.parameters() if parameter.grad is not None])
