"""Runs for a given time, on simulated machines; and that a written plan is repeated exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.run_log import read_log
from deit.checkpoints.weights import read_tensors
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training import run, time_limit
from deit.training.run import train_on
from deit.training.run_directory import read_run
from deit.training.throughput import Costs
from deit.training.time_limit import MIN_STEPS, REPORT_SECONDS, StepBudget, TimeLimit
from tests.helpers import memory_splits

SEVEN_MINUTES = 420.0


class Clock:
    """A simulated clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def simulated_run(
    clock: Clock, budget: StepBudget, pace: Callable[[float], float], evaluation: float, first_phase: float = 1.0
) -> tuple[int, list[int]]:
    """Trains on a machine where a step at a time takes ``pace`` seconds. Returns the steps and the corrections.

    Steps of the first phase take ``first_phase`` times that.
    """
    total, corrections, progress = budget.total_steps(), [], 0.0
    for step in range(1, 1_000_000):
        seconds = pace(clock.now) * (first_phase if progress < budget.first_phase else 1.0)
        clock.now += seconds
        budget.add_step(seconds, progress)
        corrected = budget.correction(step, total, progress) if step < total else None
        progress += (1 - progress) / (total - step + 1)
        if corrected is not None:
            corrections.append(total := corrected)
        if step % budget.steps_per_epoch == 0 or step == total:
            clock.now += evaluation
            budget.add_evaluation(evaluation)
        if step == total:
            clock.now += budget.final_evaluations * evaluation + REPORT_SECONDS
            return step, corrections
    raise AssertionError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    simulated = Clock()
    monkeypatch.setattr(time_limit, "time", simulated)
    return simulated


def budget_of(step: float, evaluation: float = 5.0, steps_per_epoch: int = 88) -> StepBudget:
    return StepBudget(TimeLimit(SEVEN_MINUTES, 0.0), steps_per_epoch, step, evaluation, final_evaluations=2.0)


@pytest.mark.usefixtures("clock")
def test_extension_is_checked_after_a_share_of_its_own_steps() -> None:
    budget = budget_of(0.1)
    total = budget.total_steps(5000)
    for step in (5001, 5002, 5003):
        budget.add_step(0.5)  # a single slow step is no reason to end the run early
        assert budget.correction(step, total) is None


def test_first_evaluation_is_planned_for_until_it_is_done(clock: Clock) -> None:
    budget = budget_of(0.1)
    steps = budget.total_steps()
    budget.first_evaluation_seconds = 100.0
    assert budget.total_steps() < steps - 500
    budget.add_evaluation(5.0)
    assert budget.total_steps() == steps
    assert clock.now == 0


def test_evaluation_of_the_first_pass_does_not_count_for_the_others() -> None:
    budget = StepBudget(TimeLimit(SEVEN_MINUTES, 0.0), 88, 0.1, 5.0, 2.0, first_pass=88, first_pass_seconds=0.4)
    for seconds, expected in ((60.0, 5.0), (7.0, 7.0), (5.0, 6.0)):
        budget.add_evaluation(seconds)
        assert budget.epoch_seconds == expected


@pytest.mark.parametrize("cost", [0.3, 0.45, 0.6])
@pytest.mark.parametrize("steps_per_epoch", [88, 100_000])
def test_time_is_kept_with_a_cheaper_first_phase(clock: Clock, steps_per_epoch: int, cost: float) -> None:
    budget = budget_of(0.1, steps_per_epoch=steps_per_epoch)
    budget.first_phase, budget.first_phase_cost = 0.5, 0.45
    steps, _ = simulated_run(clock, budget, lambda _: 0.12, 5.0, first_phase=cost)
    assert 0.95 * SEVEN_MINUTES < clock.now < 1.03 * SEVEN_MINUTES
    assert steps > 0.85 * SEVEN_MINUTES / (0.12 * (0.5 + 0.5 * cost) + 5 / steps_per_epoch)


@pytest.mark.parametrize("steps_per_epoch", [88, 750, 100_000])
@pytest.mark.parametrize(
    "pace",
    [
        lambda _: 0.1,
        lambda _: 0.03,
        lambda _: 0.25,
        lambda now: 0.1 if now < 200 else 0.16,  # another program starts
        lambda now: 0.2 if now < 100 else 0.1,
        lambda now: 20.0 if 200 < now < 220 else 0.1,  # a loss of time
    ],
)
def test_run_ends_in_time(clock: Clock, pace: Callable[[float], float], steps_per_epoch: int) -> None:
    clock.now = 25.0  # before training
    _, corrections = simulated_run(clock, budget_of(0.1, steps_per_epoch=steps_per_epoch), pace, evaluation=5.0)
    assert 0.9 * SEVEN_MINUTES < clock.now < 1.1 * SEVEN_MINUTES
    assert len(corrections) <= len(time_limit.CHECKS)


def test_plan_that_holds_is_not_corrected(clock: Clock) -> None:
    steps, corrections = simulated_run(clock, budget_of(0.1), lambda _: 0.1, evaluation=5.0)
    assert corrections == []
    assert 0.09 * steps < SEVEN_MINUTES


@pytest.mark.parametrize("filling", [0.15, 0.4, 0.8])
def test_first_pass_is_not_taken_for_the_pace_of_later_ones(clock: Clock, filling: float) -> None:
    budget = budget_of(0.1, steps_per_epoch=500)
    budget.first_pass, budget.first_pass_seconds = 500, 0.3
    paces = iter([filling] * 500)
    steps, corrections = simulated_run(clock, budget, lambda _: next(paces, 0.1), evaluation=5.0)
    assert 0.9 * SEVEN_MINUTES < clock.now < 1.1 * SEVEN_MINUTES
    assert all(abs(total - steps) < 0.15 * steps for total in corrections)


def test_evaluation_slower_than_expected_is_planned_for(clock: Clock) -> None:
    simulated_run(clock, budget_of(0.1, evaluation=1.0), lambda _: 0.1, evaluation=15.0)
    assert clock.now < 1.1 * SEVEN_MINUTES


@given(st.floats(0.001, 1e4), st.floats(0.001, 1e3), st.floats(0, 1e4))
def test_run_has_a_minimum_of_steps(step: float, evaluation: float, spent: float) -> None:
    limit = SimpleNamespace(remaining=lambda: SEVEN_MINUTES - spent)
    budget = StepBudget(limit, 10, step, evaluation, final_evaluations=2.0)  # type: ignore[arg-type]
    assert budget.total_steps() >= MIN_STEPS
    for finished in range(1, MIN_STEPS):
        budget.add_step(step)
        corrected = budget.correction(finished, MIN_STEPS)
        assert corrected is None or corrected >= MIN_STEPS


def last_weights(directory: Path) -> dict[str, torch.Tensor]:
    return read_tensors(directory / "last" / "model.safetensors")


def assert_same(first: Path, second: Path) -> None:
    expected = last_weights(first)
    assert all(torch.equal(expected[name], value) for name, value in last_weights(second).items())
    for row, other in zip(read_log(first), read_log(second), strict=True):
        assert all(row[key] == other[key] for key in ("epoch", "loss", "lr", "validation"))


@pytest.fixture
def corrected_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run for a minute that is planned for 13 steps, three per epoch, and corrected to 15 and then to 11."""
    plan = iter([15, 11])
    monkeypatch.setattr(run, "measure_costs", lambda *_: Costs(sample=0.1, evaluation=0.1, loading=0.1))
    monkeypatch.setattr(StepBudget, "total_steps", lambda *_: 13)
    monkeypatch.setattr(StepBudget, "correction", lambda _, finished, *__: next(plan) if finished in (4, 8) else None)
    recipe = get_recipe("small-data").tiny().replace(minutes=1)
    train_on(memory_splits(100), recipe, RunSettings("memory"), tmp_path / "run", device="cpu", workers=0)
    return tmp_path / "run"


def test_corrections_are_written_down(corrected_run: Path) -> None:
    recipe = read_run(corrected_run)[0]
    assert (recipe.minutes, recipe.steps, recipe.corrections) == (None, 13, ((4, 15), (8, 11)))
    assert recipe.epochs == 4
    assert [row["epoch"] for row in read_log(corrected_run)] == [1, 2, 3, 4]


def test_written_plan_is_repeated_exactly(corrected_run: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(corrected_run / "recipe.toml")
    train_on(memory_splits(100), recipe, RunSettings("memory"), tmp_path / "again", device="cpu", workers=0)
    assert_same(corrected_run, tmp_path / "again")
    assert Recipe.load(tmp_path / "again" / "recipe.toml") == recipe


def test_resumed_run_takes_the_written_plan(corrected_run: Path, tmp_path: Path) -> None:
    resumed = Path(shutil.copytree(corrected_run, tmp_path / "resumed"))
    checkpoints = sorted((resumed / "checkpoints").iterdir())
    recipe, settings = read_run(resumed)
    train_on(memory_splits(100), recipe, settings, resumed, device="cpu", workers=0)
    assert_same(corrected_run, resumed)  # it was finished
    shutil.rmtree(resumed / "last")
    shutil.rmtree(checkpoints[-1])  # as if stopped within the last epoch
    train_on(memory_splits(100), recipe, settings, resumed, device="cpu", workers=0)
    assert_same(corrected_run, resumed)
    assert sorted((resumed / "checkpoints").iterdir()) == checkpoints
