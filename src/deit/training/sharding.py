"""Training of models that are too large for one GPU: their weights, gradients and optimizer state are divided among processes.

This is FSDP2 of torch (:func:`torch.distributed.fsdp.fully_shard`): the weights of a block are gathered when it is computed.
Numbers are those of :mod:`deit.training.data_parallel` up to rounding, and checkpoints are the same, of whole tensors, so
that a run may be resumed with or without.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from deit.data.loader import Batch
from deit.distillation.feature_distillation import FeatureDistillation
from deit.models.modeling import Block
from deit.system.distributed import connected, group_size, whole
from deit.training.data_parallel import Losses, LossModule
from deit.training.optimization import ModelEma

M = TypeVar("M", bound=nn.Module)


class Sharding:
    """Divides what is trained among all processes.

    Parameters are replaced: an optimizer must be made anew.

    Args:
        model: a transformer with the same weights in all processes.
        features: trained along with it; None without feature distillation.
        ema: the EMA of its weights, if any.
        device: where this process computes.
    """

    def __init__(
        self,
        model: nn.Module,
        features: FeatureDistillation | None,
        ema: ModelEma[Any] | None,
        device: torch.device,
    ) -> None:
        self._shape, self._device = copy.deepcopy(model).to("meta"), device
        mesh = init_device_mesh(device.type, (group_size(),))
        self._module = LossModule(model, features)
        for root in (self._module, *(() if ema is None else (ema.model,))):
            for module in root.modules():
                if isinstance(module, Block):
                    fully_shard(module, mesh=mesh)
            fully_shard(root, mesh=mesh)

    def accumulate(self, losses: Losses, batches: Sequence[Batch], total: str) -> dict[str, Tensor]:
        """Computes the gradients of the sum of a loss over the micro-batches of all processes.

        As :meth:`deit.training.data_parallel.DataParallel.accumulate`.
        """
        parts, module = [], self._module
        assert isinstance(module, FSDPModule)
        with connected():
            for number, batch in enumerate(batches, 1):
                module.set_requires_gradient_sync(number == len(batches))
                values = module(losses, batch)
                (group_size() * values[total]).backward()  # the mean over the processes is taken
                parts.append(torch.stack([value.detach() for value in values.values()]))
            sums = torch.stack(parts).sum(dim=0)
            dist.all_reduce(sums)
        return dict(zip(values, sums.unbind(), strict=True))

    def gather(self, model: M) -> M:
        """Returns a whole copy of the model, or of its EMA, in every process: to evaluate or save it.

        Raises:
            PeerError: another process has ended.
        """
        copied = copy.deepcopy(self._shape).to_empty(device=self._device)
        copied.load_state_dict({name: whole(tensor) for name, tensor in model.state_dict().items()})
        copied.requires_grad_(False)
        return copied  # type: ignore[return-value]
