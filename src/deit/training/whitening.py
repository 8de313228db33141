"""Whitening initialization of ``plain_convnet`` (arXiv 2404.00498).

The filters of its first layer are the principal components of the patches of the training images, scaled to the same variance,
each with both signs. Where there are fewer components than half of the filters, as in gray images, the other filters are random
combinations of them. The layer is frozen: it has nothing left to learn, and needs no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.models.channels import to_gray
from deit.models.plain_convnet import PlainConvNet
from deit.models.timm_classifier import TimmClassifier

WHITENED_SAMPLES = 128  # the first samples of view 0; each has thousands of patches
LEAST_VARIANCE = 1e-4  # of a component, relative to the first; the channels of gray images differ by rounding only


def freeze_first_layer(model: TimmClassifier) -> bool:
    """Freezes the first layer of a ``plain_convnet``. Returns whether the model is one."""
    if not isinstance(model.network, PlainConvNet):
        return False
    model.network.first_convolution.weight.requires_grad_(False)
    return True


@torch.no_grad()
def whiten_first_layer_(model: TimmClassifier, images: Iterable[Tensor]) -> None:
    """Replaces the filters of the first layer in place.

    Args:
        model: a ``plain_convnet``, newly initialized.
        images: (B, 3, height, width) each, normalized.
    """
    assert isinstance(model.network, PlainConvNet)
    convolution = model.network.first_convolution
    batches = (to_gray(batch) if model.is_gray else batch for batch in images)
    moments = [_second_moments(image, convolution) for batch in batches for image in batch]
    if not moments:  # no image is readable; training says so
        return
    filters = whitening_filters(torch.stack(moments).mean(0), len(convolution.weight) // 2)
    others = convolution.weight[2 * len(filters) :].flatten(1)[:, : len(filters)]  # random numbers
    combinations = F.normalize(others) @ filters
    convolution.weight.copy_(torch.cat([filters, -filters, combinations]).view_as(convolution.weight))


def whitening_filters(moments: Tensor, count: int) -> Tensor:
    """Returns the filters (n, P) that map patches to uncorrelated values of variance 1, at most ``count``.

    Args:
        moments: (P, P) float64, mean product of the values of a patch.
        count: number of filters; components of almost no variance are left out.
    """
    variances, components = (values.flip(-1) for values in torch.linalg.eigh(moments))  # the largest first
    kept = min(int((variances > LEAST_VARIANCE * variances[0]).sum()), count)
    filters: Tensor = (components[:, :kept] / variances[:kept].sqrt()).T
    return filters.float().contiguous()


def _second_moments(image: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Returns the mean product of the values of a patch, (P, P) float64, over the positions of an image (3, height, width)."""
    patches = F.unfold(image[None], convolution.kernel_size)[0].double()  # (P, positions)
    return patches @ patches.T / patches.shape[1]
