"""The benchmark of inference: that all answer the same kind of question, and that its ratios are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.inference import RATIOS, ratio, table
from benchmarks.inference_contenders import CPU_CONTENDERS, GPU_CONTENDERS, Job, answerer, jobs

from deit.inference.benchmark import made_photos


@pytest.fixture(scope="module")
def entrants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    folder = tmp_path_factory.mktemp("photos")
    return jobs("tiny", "cpu", str(folder), tuple(map(str, made_photos(folder, 3))))


def test_the_operations_are_those_of_each_graph(entrants: dict[str, Job]) -> None:
    theirs, ours = entrants["transformers fp32"].operations, entrants["ours, torch bf16"].operations
    assert theirs == pytest.approx(2 * 1.26e9, rel=0.02)
    assert 0.90 * theirs < ours < 0.95 * theirs  # the last of twelve blocks answers for two tokens


def test_the_contenders_of_each_device_are_those_that_are_named(entrants: dict[str, Job]) -> None:
    assert tuple(entrants) == CPU_CONTENDERS
    assert tuple(jobs("tiny", "cuda", "", ())) == GPU_CONTENDERS
    assert {job.precision for name, job in entrants.items() if "int8" in name} == {"int8"}
    assert {side for _, ours, theirs, _ in RATIOS for side in (ours, theirs)} <= set(CPU_CONTENDERS)


@pytest.mark.parametrize("name", ["ours, torch bf16", "timm bf16", "transformers bf16"])
def test_a_contender_answers_arrays_and_files(entrants: dict[str, Job], name: str) -> None:
    contender = answerer(entrants[name])
    values = contender.values(2)
    assert all(len(part) == 2 for part in values)
    contender.many(values)
    contender.single(contender.values(1)[0])
    contender.single_file(entrants[name].files[0])
    contender.files(entrants[name].files)


def row(contender: str, rates: list[float]) -> dict[str, Any]:
    spread = {"low": 1.0, "median": float(np.median(rates)), "high": 9.0}
    return {
        "size": "tiny",
        "contender": contender,
        "precision": "int8",
        "batch": 4,
        "images_per_second": spread,
        "files_per_second": spread,
        "latency_ms": (1.0, 2.0),
        "file_latency_ms": (3.0, 4.0),
        "share_of_peak": 0.5,
        "peak_gflops": 100.0,
        "steady_mib": 10.0,
        "peak_mib": 20.0,
        "turns": {"rate": rates, "files": rates},
    }


def test_ratios_are_of_the_same_turn() -> None:
    rows = [row("ours, openvino int8", [10, 20, 60]), row("plain OpenVINO int8", [5, 10, 20])]
    assert ratio(rows, "tiny", "ours, openvino int8", "plain OpenVINO int8", "rate") == "2.00 (2.00 to 2.50)"
    assert ratio(rows, "tiny", "ours, openvino int8", "transformers fp32", "rate") is None
    result = {"date": "today", "hardware": "an abacus", "software": "beads", "repeats": 3, "rows": rows}
    text = table(result)
    assert "| model alone, int8, to plain OpenVINO int8 | 2.00 (2.00 to 2.50) |" in text
    assert "transformers fp32" not in text
    assert "int8 100" in text
