"""Benchmark of a model: what is measured and what is saved for the runtime selection."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import pytest
from PIL import Image

from deit.errors import UserError
from deit.export.export import ExportResult
from deit.inference.benchmark import (
    Quartiles,
    benchmark,
    latency_percentiles,
    measure_matmul_peak,
    resident_memory,
    time_calls,
    write_synthetic_photos,
)
from deit.inference.bundle import Precision
from deit.inference.runtime_selection import select_runtime


def test_each_runtime_of_a_bundle_is_measured_and_saved(
    onnx_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    results = benchmark(onnx_bundle.bundle.path, seconds=0.05)
    assert [result.runtime for result in results] == ["openvino", "onnxruntime"]
    for result in results:
        assert (result.precision, result.device) == ("fp32", "cpu")
        assert 0 < result.latency_ms[0] <= result.latency_ms[1]
        assert 0 < result.file_latency_ms[0] <= result.file_latency_ms[1]
        assert result.files_per_second.median > 0 and result.load_seconds > 0
        assert result.share_of_peak is not None and 0 < result.share_of_peak < 1
        assert 20 < result.steady_mib <= result.peak_mib
        assert result.best[1].median == max(rate.median for rate in result.images_per_second.values())
        assert set(result.to_dict()) >= {"runtime", "latency_ms", "images_per_second"}
    fastest = max(results, key=lambda result: result.best[1].median)
    choice = select_runtime(onnx_bundle.bundle)
    assert choice.name == fastest.runtime and "measured here" in choice.reason


def test_model_is_measured_in_torch(model: Path, photos: Path) -> None:
    files = sorted(photos.iterdir())[:3]
    results = benchmark(model, "cpu", images=files, seconds=0.02)
    assert [(result.runtime, result.precision) for result in results] == [("torch", "fp32"), ("torch", "bf16")]


def test_no_runtime_for_the_device_is_an_error(openvino_bundle: ExportResult) -> None:
    with pytest.raises(UserError, match=r"No installed runtime runs .* on cuda: see `deit info`"):
        benchmark(openvino_bundle.bundle.path, "cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_peak_leaves_out_matrices_that_would_take_too_long(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit.inference.benchmark.MATRIX_SIZES", (32, 64, 2**16))
    assert measure_matmul_peak(precision) > 0


def test_calls_are_timed_for_a_duration_and_at_least_a_number_of_times() -> None:
    calls = []
    assert len(time_calls(lambda: calls.append(1), 0, 7)) == 7
    assert len(calls) == 8  # one warm-up call
    assert len(time_calls(lambda: calls.append(1), 0.01, 1)) > 1


def test_quartiles_and_percentiles() -> None:
    values = list(range(1, 102))
    assert Quartiles.of(values) == Quartiles(26, 51, 76)
    assert latency_percentiles([value / 1e3 for value in values]) == pytest.approx((51, 100))


def test_resident_memory_grows_with_an_allocation() -> None:
    before = resident_memory()
    with mmap.mmap(-1, 64 * 2**20) as block:  # new pages, where an array may be in memory that was freed before
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        after = resident_memory()
    assert after[0] - before[0] > 40
    assert after[1] >= after[0]


def test_synthetic_photos_are_reproducible(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    paths, again = (write_synthetic_photos(folder, 2) for folder in (first, second))
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    with Image.open(paths[0]) as photo:
        assert photo.size == (500, 375)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0])
def test_duration_is_a_positive_number(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(UserError, match=r"A measurement cannot take .* seconds: pass a positive number"):
        benchmark(tmp_path, seconds=seconds)
