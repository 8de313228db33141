"""A plain convolutional network for a few thousand small images, known to timm as ``plain_convnet`` once this is imported.

Convolutions one after the other, each with batch norm and ReLU, and three poolings: no branches and no stem that shrinks the
image before it is looked at. On small data it leaves chance in a quarter of the images that a narrow ResNet takes
(``docs/log.md``), and its maps are fine enough to teach patches with.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import Tensor, nn

PLAIN_CONVNET = "plain_convnet"
CHANNELS = (32, 64, 96, 128, 192, 256)
POOLED = (0, 1, 3)  # layers that halve the map
FIRST_TAUGHT = 1  # the first layer's map is edges: nothing that a patch embedding would have to be taught


class PlainConvNet(nn.Module):
    """Convolutions of 3 x 3, an average over the map, a linear classifier.

    Args:
        num_classes: K.
        in_chans: channels of the input.
        channels: of each layer's map.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError("channels must be positive numbers, one a layer")
        self.num_classes, self.num_features = num_classes, channels[-1]
        self.layers = nn.ModuleList()
        inputs, reduction = in_chans, 1
        self.feature_info: list[dict[str, Any]] = []
        for place, outputs in enumerate(channels):
            parts = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            if place in POOLED:
                parts.append(nn.MaxPool2d(2))
                reduction *= 2
            self.layers.append(nn.Sequential(*parts))
            if place >= FIRST_TAUGHT:
                self.feature_info.append({"num_chs": outputs, "reduction": reduction, "module": f"layers.{place}"})
            inputs = outputs
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, K)."""
        for layer in self.layers:
            x = layer(x)
        return self.forward_head(x)

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As timm's networks have it: (B, 3, H, W) -> the last map, and those of ``feature_info``, each (B, C, h, w)."""
        maps = []
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place >= FIRST_TAUGHT:
                maps.append(x)
        return x, maps

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map -> logits."""
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh last layer for other classes."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes)


@register_model
def plain_convnet(pretrained: bool = False, channels: list[int] | None = None, **arguments: Any) -> PlainConvNet:
    """The constructor that ``timm.create_model`` calls."""
    if pretrained:
        raise RuntimeError("there are no published weights of plain_convnet")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # which timm passes to all
        arguments.pop(name, None)
    return PlainConvNet(channels=CHANNELS if channels is None else tuple(channels), **arguments)
