"""The limit on spinning: set for OpenMP before torch is loaded, unless the user has set one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deit.system import openmp
from deit.system.openmp import SPIN_COUNT, SPIN_VARIABLE, WAIT_VARIABLE, limit_spinning, torch_contains_gnu_openmp

VARIABLES = {WAIT_VARIABLE, SPIN_VARIABLE}
LIMIT, ACTIVE = {SPIN_VARIABLE: str(SPIN_COUNT)}, {WAIT_VARIABLE: "ACTIVE"}


@pytest.mark.parametrize(
    ("is_gnu", "before", "after"),
    [
        (True, {}, LIMIT | ACTIVE),
        (False, {}, LIMIT),
        (True, {SPIN_VARIABLE: "7"}, {SPIN_VARIABLE: "7"}),
        (True, {WAIT_VARIABLE: "PASSIVE"}, {WAIT_VARIABLE: "PASSIVE"}),
    ],
)
def test_a_setting_of_the_user_is_kept(
    monkeypatch: pytest.MonkeyPatch, is_gnu: bool, before: dict[str, str], after: dict[str, str]
) -> None:
    monkeypatch.setattr(openmp, "torch_contains_gnu_openmp", lambda: is_gnu)
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
    assert (f"{WAIT_VARIABLE} = 'ACTIVE'" in process.stderr) == torch_contains_gnu_openmp()


@pytest.mark.parametrize(
    ("library", "is_gnu"), [("libgomp.so.1", True), ("libgomp-98b21ff3.so.1", True), ("libiomp5.so", False)]
)
def test_implementation_is_found_without_importing_torch(tmp_path: Path, library: str, is_gnu: bool) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "torch" / "lib" / library).touch()
    code = "from deit.system.openmp import torch_contains_gnu_openmp\nprint(torch_contains_gnu_openmp())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert process.stdout == f"{is_gnu}\n"


def test_torch_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not torch_contains_gnu_openmp()
