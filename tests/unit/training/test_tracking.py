"""Event files for TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit.errors import MissingExtraError
from deit.recipes.presets import get_recipe
from deit.training.run import train
from deit.training.tracking import FOLDER, Tracker
from tests.helpers import pattern

pytestmark = pytest.mark.filterwarnings("default")  # of the library


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_are_scalars_and_repeated_epochs_replace_earlier_ones(tmp_path: Path) -> None:
    with Tracker(tmp_path, 1) as tracker:
        for epoch in (1, 2, 3):
            tracker.add({"epoch": epoch, "loss": 4.0 / epoch, "validation": {"top1": 0.25, "loss": None}, "lr": 0.5})
    with Tracker(tmp_path, 3) as tracker:
        tracker.add({"epoch": 3, "loss": 8.0, "validation": {"top1": 0.5}})
    assert curve(tmp_path, "loss") == [(1, 4.0), (2, 2.0), (3, 8.0)]
    assert curve(tmp_path, "validation/top1") == [(1, 0.25), (2, 0.25), (3, 0.5)]


def test_run_is_tracked(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pattern(32, 32, number).save(tmp_path / "photos" / label / f"{number}.png")
    run = tmp_path / "run"
    train(tmp_path / "photos", get_recipe("deit").tiny(), out=run, device="cpu", workers=0, track=True)
    assert [step for step, _ in curve(run, "validation/top1")] == [1, 2]
    train(resume=run, settings={"epochs": "3"}, device="cpu", workers=0)  # a resumed run is still tracked
    assert [step for step, _ in curve(run, "loss")] == [1, 2, 3]


def test_missing_library_is_an_error_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"deit\[track\]"):
        train(tmp_path, get_recipe("deit").tiny(), out=tmp_path / "run", track=True)
