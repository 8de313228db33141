"""What the verbs share."""

from __future__ import annotations

import json

import pytest

from deit.cli.common import print_json, print_table, recipe_settings
from deit.errors import UserError


def test_an_assignment_wins_over_the_option_that_stands_for_it() -> None:
    shortcuts = {"epochs": 3, "seed": None, "model.variant": "x"}
    assert recipe_settings(["epochs = 5", "a.b=c=d"], shortcuts) == {"epochs": "5", "model.variant": "x", "a.b": "c=d"}
    with pytest.raises(UserError, match="NAME=VALUE"):
        recipe_settings(["epochs"], {})


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["class", "n"], [["[bold]кошка[/bold]", "1"]])
    assert "[bold]кошка[/bold]" in capsys.readouterr().out


def test_json_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"鳥": 1})
    out = capsys.readouterr().out
    assert "鳥" in out
    assert json.loads(out) == {"鳥": 1}
