"""``deit model``: lists and shows models."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from deit.cli.main import app
from deit.models.modeling import ViTForImageClassification
from deit.variants import VARIANTS
from tests.helpers import tiny_vit


def output(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["model", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_has_every_variant() -> None:
    assert [row["name"] for row in json.loads(output("list", "--json"))] == list(VARIANTS)


def test_variant_is_shown_without_its_thousand_class_names() -> None:
    text = output("show", "deit-tiny-patch16-224")
    assert "hidden_size" in text and "192" in text
    assert "id2label" not in text
    assert text.splitlines()[-1].split() == ["classes", "1000"]


def test_saved_model_is_shown_with_its_format(tmp_path: Path) -> None:
    ViTForImageClassification(tiny_vit()).save_pretrained(tmp_path)
    content = json.loads(output("show", tmp_path, "--json"))
    assert (content["format"], content["class"]) == ("transformers", "ViTForImageClassification")
    assert content["hidden_size"] == 24
