"""The benchmark of waiting threads: what each process gets, the step that it measures, and its ratios."""

from __future__ import annotations

import os

import pytest
from benchmarks.busy_machine import (
    BUSY,
    CHOSEN,
    DEFAULT,
    DIVIDED,
    PASSIVE,
    QUIET,
    make_step,
    settings,
    summarize,
    table,
    variables_set,
)

from deit.system.openmp import SPIN_COUNT, SPIN_VARIABLE, WAIT_VARIABLE


def test_each_contender_gets_its_own_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "ACTIVE")
    found = {}
    for setting in settings([0, 100]):
        with variables_set(setting.variables):
            found[setting.name] = {name: os.environ[name] for name in (WAIT_VARIABLE, SPIN_VARIABLE) if name in os.environ}
    assert found == {
        DEFAULT: {},
        PASSIVE: {WAIT_VARIABLE: "PASSIVE"},
        f"{SPIN_VARIABLE}=0": {SPIN_VARIABLE: "0"},
        f"{SPIN_VARIABLE}=100": {SPIN_VARIABLE: "100"},
        f"{DIVIDED}{SPIN_VARIABLE}=0": {SPIN_VARIABLE: "0"},
        f"{DIVIDED}{SPIN_VARIABLE}=100": {SPIN_VARIABLE: "100"},
        CHOSEN: {SPIN_VARIABLE: str(SPIN_COUNT), WAIT_VARIABLE: "ACTIVE"},
    }
    assert os.environ[WAIT_VARIABLE] == "ACTIVE"


@pytest.mark.parametrize("divides_batch", [False, True])
def test_the_step_distills_features(divides_batch: bool) -> None:
    losses = make_step(divides_batch)()
    assert losses["feature_loss"] > 0
    assert losses["distillation_loss"] > 0


def test_ratios_are_within_a_repeat() -> None:
    rates = {QUIET: {DEFAULT: [10.0, 20.0], "x": [20.0, 40.0]}, BUSY: {DEFAULT: [1.0, 2.0], "x": [15.0, 30.0]}}
    default, other = summarize(rates)
    assert (default["setting"], default[QUIET]["of_default"]["median"], default["busy_share"]["median"]) == (DEFAULT, 1.0, 0.1)
    assert other[QUIET]["of_default"]["median"] == 2.0
    assert other[BUSY]["of_default"]["median"] == 15.0
    assert other["busy_share"]["median"] == 0.75


def test_the_page_marks_the_setting_of_the_program() -> None:
    chosen = CHOSEN
    rates = {QUIET: {DEFAULT: [10.0], chosen: [9.8]}, BUSY: {DEFAULT: [1.0], chosen: [6.0]}}
    result = {"date": "today", "hardware": "an abacus", "software": "beads", "spins": [SPIN_COUNT], "steps": 8, "repeats": 1}
    text = table({**result, "chosen": chosen, "rows": summarize(rates)})
    assert f"| {chosen} (in `deit train`) | 10 (10 to 10) | 0.98 (0.98 to 0.98) | 6 (6 to 6) | 6.00 (6.00 to 6.00) |" in text
    assert f"--spins {SPIN_COUNT} --steps 8 --repeats 1 --write" in text
