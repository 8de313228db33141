"""``deit export``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deit.errors import UserError
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassification
from tests.helpers import pattern, randomized, tiny_deit
from tests.unit.cli.options import output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model"
    randomized(DeiTForImageClassification(tiny_deit()), std=0.1).save_pretrained(path)
    DeiTImageProcessor.for_size(32, 32).save_pretrained(path)
    return path


def test_bundle_and_its_comparison_are_printed(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "some photos"
    photos.mkdir()
    for number in range(40):
        pattern(40, 48, seed=number).save(photos / f"{number}.png")
    bundle = tmp_path / "a bundle"
    options = ("export", model, "--out", bundle, "--to", "torch", "--calibrate", photos)
    text = output(*options)
    assert text.splitlines()[-1] == f"Bundle: {bundle}"
    assert "torch fp32, original" in text
    assert json.loads(output(*options, "--overwrite", "--json"))


def test_int8_needs_images(model: Path) -> None:
    with pytest.raises(UserError, match="--calibrate"):
        output("export", model, "--precision", "int8")
