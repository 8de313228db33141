"""``deit tune``: the arguments that it passes on, and its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deit.cli.common import STARTED
from deit.errors import UserError
from tests.unit.cli.options import SHARED, output


def test_tune(calls: list[Any]) -> None:
    vary = ["optimizer.lr=1e-3..1e-1", "smoothing=0,0.1"]
    text = output("tune", "photos", "--teacher", "t", "--vary", vary[0], "--vary", vary[1], "--trials", "9", "--seed", "3")
    assert text.splitlines()[1].split() == ["1", "20", "yes", "90.00%", "optimizer.lr=0.01"]
    assert text.splitlines()[-1] == "Recipe: runs/search/tuned.toml, for `deit train --recipe`"
    [(arguments, options)] = calls
    assert options.pop("started") == STARTED
    assert arguments == ("photos", "small-data-distilled")
    assert options == {
        **SHARED,
        "minutes": 30.0,
        "vary": vary,
        "max_trials": 9,
        "out": None,
        "resume": None,
        "teacher": "t",
        "teacher_weights": None,
        "teacher_classes": "name",
        "settings": {"seed": "3"},
        "checkpoint_minutes": 5.0,
        "track": False,
    }


def test_json(calls: list[Any]) -> None:
    content = json.loads(output("tune", "--resume", "runs/search", "--json"))
    assert calls[0][1]["resume"] == Path("runs/search")
    assert content["recipe"] == "runs/search/tuned.toml"
    assert content["trials"][1] == {"number": 0, "values": {}, "epochs": 2, "top1": None, "loss": None, "finished": False}
    assert content["model"] == "runs/photos/best"


def test_resumed_search_keeps_its_own_recipe(calls: list[Any]) -> None:
    with pytest.raises(UserError, match="keeps its own recipe"):
        output("tune", "--resume", "runs/search", "--recipe", "deit")
    assert not calls
