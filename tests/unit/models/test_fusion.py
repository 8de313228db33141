"""Folding batch norms into convolutions keeps the outputs."""

from __future__ import annotations

import timm
import torch
from torch import nn

from deit.models.fusion import fuse_batch_norms
from deit.models.plain_convnet import PlainConvNet
from tests.helpers import noise


def randomize_batch_norms(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                assert tensor is not None
                tensor.data.normal_(generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2, generator=generator)


def test_outputs_and_features_of_the_plain_convnet_are_kept() -> None:
    network = PlainConvNet(5).eval().to(memory_format=torch.channels_last)
    randomize_batch_norms(network)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fused, images = fuse_batch_norms(network), noise(2, 3, 32, 32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(images), network(images), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(fused.forward_intermediates(images)[1], network.forward_intermediates(images)[1], strict=True):  # type: ignore[operator]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())


def test_other_networks_are_fused_where_they_can_be() -> None:
    network = timm.create_model("resnet10t", num_classes=4).eval()  # its residual branches are no sequences
    randomize_batch_norms(network)
    fused, images = fuse_batch_norms(network), noise(2, 3, 64, 64)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert 0 < sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) < count
    torch.testing.assert_close(fused(images), network(images), rtol=1e-3, atol=1e-3)


def test_network_without_a_pair_is_returned_itself() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    assert fuse_batch_norms(network) is network
