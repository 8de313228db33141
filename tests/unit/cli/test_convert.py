"""``deit convert``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deit.errors import UserError
from deit.models.modeling import DeiTForImageClassification
from tests.helpers import randomized, tiny_deit
from tests.unit.cli.options import output


def test_model_is_converted_at_another_size(tmp_path: Path) -> None:
    randomized(DeiTForImageClassification(tiny_deit())).save_pretrained(tmp_path / "a model")
    result = json.loads(output("convert", tmp_path / "a model", tmp_path / "a copy", "--image-size", "64", "--json"))
    assert result["format"] == "transformers"
    assert DeiTForImageClassification.from_pretrained(tmp_path / "a copy").config.image_size == 64
    with pytest.raises(UserError, match="--overwrite"):
        output("convert", tmp_path / "a model", tmp_path / "a copy")
    assert "largest logit difference" in output("convert", tmp_path / "a model", tmp_path / "a copy", "--overwrite")
