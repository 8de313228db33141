"""Measuring throughput leaves the trainer unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deit.errors import DataError
from deit.training.throughput import Costs, _steady, _Timing, measure_costs
from tests.helpers import MemorySource
from tests.unit.training.trainers import tiny_trainer


def test_measurement_does_not_change_the_model(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    costs = measure_costs(trainer, 0.01)
    assert costs.sample > 0
    assert costs.evaluation > costs.loading > 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.state.steps_taken == 0


def test_unreadable_images_are_an_error(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    source = MemorySource(48, broken=frozenset(range(48)))
    trainer.samples = replace(trainer.samples, source=source, skip_unreadable=True)
    with pytest.raises(DataError, match="No image of the first batches is readable"):
        measure_costs(trainer, 0.01)


def test_evaluation_between_epochs_is_shared_by_the_samples(tmp_path: Path) -> None:
    assert Costs(sample=2.0, evaluation=16.0, loading=1.0).per_sample(tiny_trainer(tmp_path)) == 2.0 + 16.0 * 9 / 48


@pytest.mark.parametrize(
    ("waiting", "measured"),
    [
        ([5.0], [0]),  # a single batch
        ([5.0, 0.0, 0.0, 0.01], [1, 2, 3]),  # the step is slower than the loader
        ([5.0, 0.0, 0.0, 1.0, 0.0, 1.0], [3, 4, 5]),  # two batches were made ahead of time
    ],
)
def test_batches_made_ahead_of_time_are_not_measured(waiting: list[float], measured: list[int]) -> None:
    timings = [_Timing(32, seconds, 1.0) for seconds in waiting]
    assert list(_steady(timings)) == [timings[index] for index in measured]
