"""Folds batch norms into convolutions, for networks that are only evaluated."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batch_norms(network: nn.Module) -> nn.Module:
    """Returns a network with each batch norm folded into the convolution before it in the same :class:`torch.nn.Sequential`.

    The outputs are the same up to rounding. A network without such a pair is returned itself, any other as a copy.

    Args:
        network: in evaluation mode.
    """
    assert not network.training
    if not any(_pairs(module) for module in network.modules()):
        return network
    fused = copy.deepcopy(network)
    for module in list(fused.modules()):
        for index in _pairs(module):
            module[index] = fuse_conv_bn_eval(module[index], module[index + 1])  # type: ignore[index, operator]
            module[index + 1] = nn.Identity()  # type: ignore[operator]
    return fused


def _pairs(module: nn.Module) -> list[int]:
    """Returns the positions of the convolutions of a sequence that a batch norm follows."""
    if not isinstance(module, nn.Sequential):
        return []
    children = list(module)
    return [
        index
        for index, (first, second) in enumerate(pairwise(children))
        if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d
    ]
