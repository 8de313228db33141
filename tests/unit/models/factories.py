"""Small models of every class, for tests of all models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTForImageClassification,
    ViTModel,
)
from deit.models.pretrained import PreTrainedModel
from tests.helpers import tiny_deit, tiny_vit

MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "ViTModel": lambda: ViTModel(tiny_vit()),
    "DeiTModel": lambda: DeiTModel(tiny_deit()),
    "DeiTModel, no pooler": lambda: DeiTModel(tiny_deit(), add_pooling_layer=False),
    "ViTForImageClassification": lambda: ViTForImageClassification(tiny_vit()),
    "DeiTForImageClassification": lambda: DeiTForImageClassification(tiny_deit()),
    "DeiTForImageClassificationWithTeacher": lambda: DeiTForImageClassificationWithTeacher(tiny_deit()),
    "no qkv bias": lambda: DeiTForImageClassificationWithTeacher(tiny_deit(qkv_bias=False)),
}
every_model = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
