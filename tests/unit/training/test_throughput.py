"""Measuring throughput leaves the trainer unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deit.errors import DataError
from deit.system.hardware import cores
from deit.training import throughput
from deit.training.throughput import Costs, _decoding_seconds, _seconds_per_image, _steady, _Timing, measure_costs
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


def test_first_phase_counts_for_its_share_of_the_samples(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    recipe = trainer.context.recipe.replace(model={"patch_dropout": 0.5, "patch_dropout_until": 0.75})
    trainer.context = replace(trainer.context, recipe=recipe)
    assert Costs(sample=2.0, evaluation=0.0, loading=0.0, first_phase=0.5).per_sample(trainer) == 2.0 * (0.75 * 0.5 + 0.25)
    assert measure_costs(trainer, 0.01).first_phase > 0
    timings = [_Timing(32, 0.5, 1.5), _Timing(32, 0.0, 0.8, is_first_phase=True), _Timing(16, 0.0, 1.0)]
    assert [_seconds_per_image(timings, is_first_phase) for is_first_phase in (False, True)] == [3 / 48, 0.8 / 32]
    assert _seconds_per_image(timings[:1], is_first_phase=True) == 2 / 32


def test_images_that_are_not_kept_yet_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path)
    measured: list[Any] = []
    durations = iter([0.4, 0.5, 0.1, 0.9, 0.3])  # a validation image not kept, being kept, kept; a training image likewise

    def scripted(samples: Any, *_: Any) -> float:
        measured.append(samples)
        return next(durations)

    monkeypatch.setattr(throughput, "_seconds_per_plan", scripted)
    cache: Any = SimpleNamespace(reduces=False, store=None, pixels=lambda _index, _settings, load: load())
    trainer.samples, trainer.validation = replace(trainer.samples, cache=cache), replace(trainer.validation, cache=cache)
    costs = measure_costs(trainer, 0.01)
    assert [samples.cache is cache for samples in measured] == [False, True, True, True, True]
    assert costs.loading == pytest.approx(0.4 / cores())
    assert costs.not_kept == pytest.approx(0.3 / cores())
    assert costs.decoding == pytest.approx(0.6 / cores())


def test_decoding_is_measured_without_cached_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path)
    cached: Any = object()
    trainer.samples = replace(trainer.samples, cache=cached, teacher_targets=cached)
    measured: list[Any] = []

    def scripted(samples: Any, *_: Any) -> float:
        measured.append(samples)
        return 0.0

    monkeypatch.setattr(throughput, "_seconds_per_plan", scripted)
    assert _decoding_seconds(trainer, 0.01) == 0
    assert [(samples.cache, samples.teacher_targets) for samples in measured] == [(cached, None)] * 2


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
