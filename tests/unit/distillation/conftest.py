"""A teacher, and a finished cache of its logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit.models.timm_classifier import new_timm_classifier
from deit.recipes.presets import get_recipe
from tests.helpers import randomized
from tests.unit.distillation.caches import CLASSES, build


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("a teacher")
    network = new_timm_classifier("test_resnet", CLASSES, get_recipe("deit").tiny().processor(), {}, seed=0)
    randomized(network, std=0.1).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Path:
    directory = tmp_path_factory.mktemp("caches") / "cache"
    build(directory, teacher, views=2)
    return directory
