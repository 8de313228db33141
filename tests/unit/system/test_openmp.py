"""The limit on spinning: set for OpenMP before torch is loaded, unless the user has set one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deit.system.openmp import SPIN_COUNT, SPIN_VARIABLE, WAIT_VARIABLE, limit_spinning

VARIABLES = {WAIT_VARIABLE, SPIN_VARIABLE}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {SPIN_VARIABLE: str(SPIN_COUNT)}),
        ({SPIN_VARIABLE: "7"}, {SPIN_VARIABLE: "7"}),
        ({WAIT_VARIABLE: "ACTIVE"}, {WAIT_VARIABLE: "ACTIVE"}),
    ],
)
def test_a_setting_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    limit_spinning()
    assert {name: os.environ[name] for name in VARIABLES & os.environ.keys()} == after


@pytest.mark.skipif(sys.platform != "linux", reason="torch contains GNU OpenMP on Linux only")
def test_openmp_reads_the_limit_when_torch_is_loaded() -> None:
    code = "from deit.system.openmp import limit_spinning\nlimit_spinning()\nimport torch"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    process = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert f"{SPIN_VARIABLE} = '{SPIN_COUNT}'" in process.stderr
