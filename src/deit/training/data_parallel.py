"""Data-parallel training in the processes that torchrun has started: each computes the gradients of a share of every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deit.data.loader import Batch
from deit.distillation.feature_distillation import FeatureDistillation
from deit.system.distributed import connected, group_size
from deit.training.parallel_batches import Replica

Losses = Callable[[Replica, Batch], dict[str, Tensor]]


class DataParallel:
    """Averages the gradients of all processes with torch's :class:`DistributedDataParallel`.

    All processes have the same model, with the weights and buffers that the first one had when this was created. Gradients are
    exchanged once per step, while those of the last micro-batch are computed.

    Args:
        model: the model.
        features: trained along with it; None without feature distillation.
    """

    def __init__(self, model: nn.Module, features: FeatureDistillation | None) -> None:
        with connected():
            self._module = DistributedDataParallel(LossModule(model, features))

    def accumulate(self, losses: Losses, batches: Sequence[Batch], total: str) -> dict[str, Tensor]:
        """Computes the gradients of the sum of a loss over the micro-batches of all processes.

        Args:
            losses: computes the losses of a micro-batch, each with its share of the mean over the global batch.
            batches: the micro-batches of this process, at least one.
            total: name of the loss that is differentiated.

        Returns:
            The sums of the losses over all processes, without their graphs.

        Raises:
            PeerError: another process has ended.
        """
        parts = []
        with connected():
            for number, batch in enumerate(batches, 1):
                with nullcontext() if number == len(batches) else self._module.no_sync():
                    values = self._module(losses, batch)
                    (group_size() * values[total]).backward()  # the mean over the processes is taken
                parts.append(torch.stack([value.detach() for value in values.values()]))
            sums = torch.stack(parts).sum(dim=0)
            dist.all_reduce(sums)
        return dict(zip(values, sums.unbind(), strict=True))


@torch.no_grad()
def copy_from_main(module: nn.Module) -> None:
    """Copies parameters and buffers of the first process to all others.

    The statistics of batch norms differ otherwise: each process takes them from its own images.

    Raises:
        PeerError: another process has ended.
    """
    with connected():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


class LossModule(nn.Module):
    """Everything that is trained; its forward pass computes the losses of a micro-batch."""

    def __init__(self, model: nn.Module, features: FeatureDistillation | None) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, losses: Losses, batch: Batch) -> dict[str, Tensor]:
        return losses((self.model, self.features), batch)
