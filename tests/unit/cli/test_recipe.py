"""``deit recipe``: lists recipes and prints one as TOML or JSON."""

from __future__ import annotations

import json
import tomllib

from typer.testing import CliRunner

from deit.cli.main import app
from deit.recipes.presets import RECIPES


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["recipe", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_has_every_recipe_with_its_purpose() -> None:
    purposes = json.loads(output("list", "--json"))
    assert list(purposes) == list(RECIPES)
    assert all(purposes.values())
    _, *lines = output("list").splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)


def test_shown_recipe_is_toml_with_the_purpose_as_a_comment() -> None:
    text = output("show", "deit", "--set", "seed=7")
    assert text.startswith("# ")
    assert tomllib.loads(text)["seed"] == 7
    assert json.loads(output("show", "deit", "--set", "seed=7", "--json"))["seed"] == 7
