"""The paper's models as a table (tables 1, 5 and 6; the parameter counts follow from the shapes)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from deit.errors import UserError

HUB_ORGANISATION = "facebook"
LAYER_NORM_EPS = 1e-6  # of the authors' models; the Hugging Face files say 1e-12


@dataclass(frozen=True)
class Variant:
    """One published model.

    Attributes:
        top1: published ImageNet-1k accuracy in percent.
        parameters: number of parameters with 1000 classes.
        gmacs: billions of multiply-adds of a forward pass of one image.
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
        """Where the published weights are."""
        return f"{HUB_ORGANISATION}/{self.name}"

    @property
    def shape(self) -> dict[str, Any]:
        """The fields of its configuration that differ from the base model's."""
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
    """The variant of a name, with or without the hub's organization.

    Raises:
        UserError: no such variant; the message names the nearest.
    """
    short = name.removeprefix(f"{HUB_ORGANISATION}/")
    if short not in VARIANTS:
        near = difflib.get_close_matches(short, VARIANTS, n=1, cutoff=0)[0]
        raise UserError(f"There is no model called {name!r}", f"did you mean {near}? `deit model list` shows all")
    return VARIANTS[short]
