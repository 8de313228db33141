"""Properties of the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deit.system import hardware
from deit.system.hardware import cores, cpu_flags, cpu_name, has_bf16


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("fpu avx512f", False), ("", False)]
)
def test_bf16_follows_the_cpu_flags(monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool) -> None:
    monkeypatch.setattr(hardware, "_cpu_info", lambda field: flags if field == "flags" else "")
    assert has_bf16() is expected
    assert cpu_flags() == set(flags.split())


def test_cpu_name_without_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_name()
    monkeypatch.setattr(hardware, "_cpu_info", lambda _field: "")
    assert cpu_name()
    monkeypatch.setattr(hardware, "_cpu_info", lambda field: "Abacus 3000" if field == "model name" else "")
    assert cpu_name() == "Abacus 3000"


@pytest.mark.parametrize(
    ("content", "expected"), [("150000 100000\n", 2), ("10000 100000", 1), ("max 100000", 3), ("900000 100000", 3), ("", 3)]
)
def test_cores_follow_the_limit_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2, 5}, raising=False)
    monkeypatch.setattr(hardware, "CONTAINER", tmp_path)
    (tmp_path / "cpu.max").write_text(content)
    assert cores() == expected


def test_cores_follow_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2, 5}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1
