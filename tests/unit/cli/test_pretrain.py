"""``deit pretrain``: the arguments that it passes on, and its output."""

from __future__ import annotations

from typing import Any

from tests.unit.cli.options import SHARED, output


def test_pretrain(calls: list[Any]) -> None:
    text = output("pretrain", "photos", "--init", "a model")
    assert "Best epoch: 3, validation loss 0.2500" in text
    assert 'Next: deit train DATA --init "runs/mim"' in text
    assert calls == [
        (
            ("photos", "pretrain-mim"),
            {
                **SHARED,
                "init": "a model",
                "out": None,
                "resume": None,
                "settings": {},
                "checkpoint_minutes": 5.0,
                "track": False,
                "compiled": False,
                "shard": False,
            },
        )
    ]
