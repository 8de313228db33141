"""``deit train``: the arguments that it passes on, and which options of the training commands exclude each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deit.cli.common import STARTED
from deit.errors import UserError
from tests.unit.cli.options import SHARED, output


def test_train(calls: list[Any]) -> None:
    text = output("train", "photos", "--teacher", "t", "--model", "m", "--epochs", "3", "--workers", "2", "--out", "here")
    assert text.splitlines()[-2:] == ["Model:  runs/photos/best", "Report: runs/photos/report.html"]
    [(arguments, options)] = calls
    assert options.pop("started") == STARTED
    assert arguments == ("photos", "small-data-distilled")
    settings = {"model.variant": "m", "epochs": "3"}
    assert options == {
        **SHARED,
        "workers": 2,
        "out": Path("here"),
        "resume": None,
        "teacher": "t",
        "teacher_weights": None,
        "teacher_classes": "name",
        "settings": settings,
        "checkpoint_minutes": 5.0,
        "track": False,
        "compiled": False,
        "shard": False,
    }


def test_resume_needs_no_data(calls: list[Any]) -> None:
    output("train", "--resume", "runs/photos")
    assert calls[0][0] == (None, "small-data")
    assert calls[0][1]["resume"] == Path("runs/photos")
    for command in (["train"], ["pretrain"], ["teacher", "train"]):
        with pytest.raises(UserError, match="pass --resume without another"):
            output(*command, "--resume", "runs/photos", "--recipe", "deit")
    output("train", "--resume", "runs/photos", "--epochs", "3")
    assert calls[-1][1]["settings"] == {"epochs": "3"}


@pytest.mark.parametrize(
    "command", [["train", "--model", "m"], ["pretrain", "--model", "m"], ["teacher", "train", "--arch", "a"]]
)
def test_init_and_a_shape_exclude_each_other(calls: list[Any], command: list[str]) -> None:
    with pytest.raises(UserError, match="both set the shape of the model"):
        output(*command, "--init", "a model")
    assert not calls
