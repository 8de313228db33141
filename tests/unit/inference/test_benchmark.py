"""What `deit benchmark` says was measured, and where it is remembered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit.errors import UserError
from deit.export.export import ExportResult
from deit.inference.benchmark import Spread, benchmark, made_photos, memory, percentiles, timed
from deit.inference.runtime_selection import choose_runtime


def test_every_runtime_of_a_bundle_is_measured_and_remembered(
    onnx_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path))
    measured = benchmark(onnx_bundle.bundle.path, seconds=0.05)
    assert [figures.runtime for figures in measured] == ["openvino", "onnxruntime"]
    for figures in measured:
        assert (figures.precision, figures.device) == ("fp32", "cpu")
        assert 0 < figures.latency_ms[0] <= figures.latency_ms[1]
        assert 0 < figures.file_latency_ms[0] <= figures.file_latency_ms[1]
        assert figures.files_per_second.median > 0 and figures.load_seconds > 0
        assert figures.share_of_peak is not None and 0 < figures.share_of_peak < 1
        assert 20 < figures.steady_mib <= figures.peak_mib
        assert figures.best[1].median == max(rate.median for rate in figures.images_per_second.values())
        assert set(figures.to_dict()) >= {"runtime", "latency_ms", "images_per_second"}
    fastest = max(measured, key=lambda figures: figures.best[1].median)
    chosen = choose_runtime(onnx_bundle.bundle)
    assert chosen.name == fastest.runtime and "measured here" in chosen.reason


def test_a_model_is_measured_in_torch(model: Path, photos: Path) -> None:
    files = sorted(photos.iterdir())[:3]
    measured = benchmark(model, "cpu", images=files, seconds=0.02)
    assert [(figures.runtime, figures.precision) for figures in measured] == [("torch", "fp32"), ("torch", "bf16")]


def test_nothing_that_runs_it_is_one_sentence(openvino_bundle: ExportResult) -> None:
    with pytest.raises(UserError, match="see `deit info`"):
        benchmark(openvino_bundle.bundle.path, "cuda")


def test_calls_are_timed_until_the_time_is_over_and_the_least_is_reached() -> None:
    calls = []
    assert len(timed(lambda: calls.append(1), 0, 7)) == 7
    assert len(calls) == 8  # the first is not counted
    assert len(timed(lambda: calls.append(1), 0.01, 1)) > 1


def test_spread_and_percentiles() -> None:
    values = list(range(1, 102))
    assert Spread.of(values) == Spread(26, 51, 76)
    assert percentiles([value / 1e3 for value in values]) == pytest.approx((51, 100))


def test_memory_is_this_processes() -> None:
    before = memory()
    block = np.ones(64 * 2**20, np.uint8)
    after = memory()
    assert block.sum() and after[0] - before[0] > 40
    assert after[1] >= after[0]


def test_the_photos_are_the_same_each_time(tmp_path: Path) -> None:
    one, other = (made_photos(tmp_path, 2) for _ in range(2))
    assert one == other
    with Image.open(one[0]) as photo:
        assert photo.size == (500, 375)
    assert one[0].read_bytes() != one[1].read_bytes()
