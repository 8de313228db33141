"""The inference benchmark: all contenders classify arrays and files, and ratios are those within a turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from benchmarks.inference import RATIOS, ratio, table
from benchmarks.inference_contenders import CPU_CONTENDERS, GPU_CONTENDERS, Job, jobs, load_classifier

from deit.inference.benchmark import write_synthetic_photos


@pytest.fixture(scope="module")
def cpu_jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    folder = tmp_path_factory.mktemp("photos")
    return jobs("tiny", "cpu", str(folder), tuple(map(str, write_synthetic_photos(folder, 3))))


def test_flops_are_counted_in_each_graph(cpu_jobs: dict[str, Job]) -> None:
    theirs, ours = cpu_jobs["transformers fp32"].flops, cpu_jobs["ours, torch bf16"].flops
    assert theirs == pytest.approx(2 * 1.26e9, rel=0.02)
    assert 0.90 * theirs < ours < 0.95 * theirs  # the last of twelve blocks computes two tokens only


def test_each_device_has_its_contenders(cpu_jobs: dict[str, Job]) -> None:
    assert tuple(cpu_jobs) == CPU_CONTENDERS
    assert tuple(jobs("tiny", "cuda", "", ())) == GPU_CONTENDERS
    assert {job.precision for name, job in cpu_jobs.items() if "int8" in name} == {"int8"}
    assert {side for _, ours, theirs, _ in RATIOS for side in (ours, theirs)} <= set(CPU_CONTENDERS)


@pytest.mark.parametrize("name", ["ours, torch bf16", "timm bf16", "transformers bf16"])
def test_a_contender_classifies_arrays_and_files(cpu_jobs: dict[str, Job], name: str) -> None:
    classifier = load_classifier(cpu_jobs[name])
    batches = classifier.make_batches(2)
    assert all(len(batch) == 2 for batch in batches)
    classifier.run_batches(batches)
    classifier.run_batch(classifier.make_batches(1)[0])
    classifier.classify_file(cpu_jobs[name].files[0])
    classifier.classify_files(cpu_jobs[name].files)


def row(contender: str, rates: list[float]) -> dict[str, Any]:
    quartiles = {"low": 1.0, "median": float(np.median(rates)), "high": 9.0}
    return {
        "size": "tiny",
        "contender": contender,
        "precision": "int8",
        "batch": 4,
        "images_per_second": quartiles,
        "files_per_second": quartiles,
        "latency_ms": (1.0, 2.0),
        "file_latency_ms": (3.0, 4.0),
        "share_of_peak": 0.5,
        "peak_gflops": 100.0,
        "steady_mib": 10.0,
        "peak_mib": 20.0,
        "device": "cpu",
        "turns": {"images_per_second": rates, "files_per_second": rates},
    }


def test_ratios_are_those_within_a_turn() -> None:
    rows = [row("ours, openvino int8", [10, 20, 60]), row("plain OpenVINO int8", [5, 10, 20])]
    assert ratio(rows, "tiny", "ours, openvino int8", "plain OpenVINO int8", "images_per_second") == "2.00 (2.00 to 2.50)"
    assert ratio(rows, "tiny", "ours, openvino int8", "transformers fp32", "images_per_second") is None
    result = {"date": "today", "hardware": "an abacus", "software": "beads", "repeats": 3, "rows": rows}
    text = table(result)
    assert "| model only, int8 / plain OpenVINO int8 | 2.00 (2.00 to 2.50) |" in text
    assert "transformers fp32" not in text
    assert "int8 100" in text
