"""The published models, one row each (paper, tables 1, 5 and 6; parameter counts follow from the shapes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deit.errors import UserError, did_you_mean

HUB_ORGANIZATION = "facebook"
LAYER_NORM_EPS = 1e-6  # of the original models; the Hugging Face configurations say 1e-12


@dataclass(frozen=True)
class Variant:
    """Published model.

    Attributes:
        name: name on the hub, without the organization.
        width: embedding dimension.
        heads: number of attention heads.
        image_size: height and width of the input in pixels.
        distilled: whether it has a distillation token.
        top1: published ImageNet-1k top-1 accuracy in percent.
        parameters: number of parameters with 1000 classes.
        gmacs: multiply-adds of a forward pass of one image, in billions.
    """

    name: str
    width: int
    heads: int
    image_size: int
    distilled: bool
    top1: float
    parameters: int
    gmacs: float

    @property
    def hub_name(self) -> str:
        """Repository of the published weights."""
        return f"{HUB_ORGANIZATION}/{self.name}"

    @property
    def shape(self) -> dict[str, Any]:
        """Configuration fields of the variant; all others keep their defaults."""
        return {
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.width,
            "image_size": self.image_size,
            "layer_norm_eps": LAYER_NORM_EPS,
        }


_ROWS = (
    Variant("deit-tiny-patch16-224", 192, 3, 224, False, 72.2, 5_717_416, 1.26),
    Variant("deit-small-patch16-224", 384, 6, 224, False, 79.9, 22_050_664, 4.61),
    Variant("deit-base-patch16-224", 768, 12, 224, False, 81.8, 86_567_656, 17.58),
    Variant("deit-base-patch16-384", 768, 12, 384, False, 83.1, 86_859_496, 55.54),
    Variant("deit-tiny-distilled-patch16-224", 192, 3, 224, True, 74.5, 5_910_800, 1.27),
    Variant("deit-small-distilled-patch16-224", 384, 6, 224, True, 81.2, 22_436_432, 4.63),
    Variant("deit-base-distilled-patch16-224", 768, 12, 224, True, 83.4, 87_338_192, 17.68),
    Variant("deit-base-distilled-patch16-384", 768, 12, 384, True, 85.2, 87_630_032, 55.65),
)
VARIANTS = {row.name: row for row in _ROWS}


def variant(name: str) -> Variant:
    """Returns the variant of this name, with or without the hub organization.

    Raises:
        UserError: unknown name; the message suggests the closest.
    """
    short_name = name.removeprefix(f"{HUB_ORGANIZATION}/")
    if short_name not in VARIANTS:
        raise UserError(f"Unknown model {name!r}", f"{did_you_mean(short_name, VARIANTS)}; `deit model list` shows all")
    return VARIANTS[short_name]
