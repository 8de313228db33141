"""Convolutional network for a few thousand small images, registered with timm as ``plain_convnet`` by importing this module.

3 x 3 convolutions in sequence, each with batch norm and ReLU, and three poolings: no residual branches, and no stem that
downsamples the image first. At first, layers pass their inputs on (identity initialization, as in arXiv 2404.00498), and
training whitens and freezes the first one (:mod:`deit.training.whitening`). On small
data it rises above chance after a quarter of the images that a narrow ResNet needs (``docs/log.md``), and the resolution of its
feature maps is high enough to distill them into patch tokens.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

PLAIN_CONVNET = "plain_convnet"
CHANNELS = (32, 64, 96, 128, 192, 256)
POOL_AFTER = (0, 1, 3)  # layers followed by a pooling that halves the feature map
FIRST_FEATURE_LAYER = 1  # the first layer's features are edges, which a patch embedding learns without a teacher


class PlainConvNet(nn.Module):
    """3 x 3 convolutions, global average pooling, and a linear classifier.

    Args:
        num_classes: number of classes K.
        in_chans: number of input channels.
        channels: output channels of each layer.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError("channels must be positive integers, one per layer")
        self.num_classes, self.num_features = num_classes, channels[-1]
        self.layers = nn.ModuleList()
        inputs, reduction = in_chans, 1
        self.feature_info: list[dict[str, Any]] = []
        for index, outputs in enumerate(channels):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            if index > 0:
                nn.init.dirac_(convolution.weight.data[:inputs])
            modules = [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            if index in POOL_AFTER:
                modules.append(nn.MaxPool2d(2))
                reduction *= 2
            self.layers.append(nn.Sequential(*modules))
            if index >= FIRST_FEATURE_LAYER:
                self.feature_info.append({"num_chs": outputs, "reduction": reduction, "module": f"layers.{index}"})
            inputs = outputs
        self.head = nn.Linear(inputs, num_classes)

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that takes the image."""
        layer = self.layers[0]
        assert isinstance(layer, nn.Sequential)
        assert isinstance(layer[0], nn.Conv2d)
        return layer[0]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, K) of images (B, 3, height, width)."""
        for layer in self.layers:
            x = layer(x)
        return self.forward_head(x)

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns feature maps, as the method of this name of timm's networks.

        Args:
            x: images (B, 3, height, width).

        Returns:
            The last feature map, and the feature maps of ``feature_info``, (B, C, rows, columns) each.
        """
        features = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index >= FIRST_FEATURE_LAYER:
                features.append(x)
        return x, features

    def forward_head(self, x: Tensor) -> Tensor:
        """Returns the logits (B, K) of the last feature map (B, C, rows, columns)."""
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the linear classifier by a newly initialized one."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes)


@register_model
def plain_convnet(pretrained: bool = False, channels: list[int] | None = None, **arguments: Any) -> PlainConvNet:
    """Builds a :class:`PlainConvNet`; called by ``timm.create_model``."""
    if pretrained:
        raise RuntimeError("plain_convnet has no published weights")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # passed by timm to every constructor
        arguments.pop(name, None)
    return PlainConvNet(channels=CHANNELS if channels is None else tuple(channels), **arguments)
