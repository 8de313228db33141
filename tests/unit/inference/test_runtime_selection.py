"""Runtime selection: the fastest measured runtime, or a default before any measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deit.errors import MissingExtraError
from deit.export.export import ExportResult
from deit.inference import optional_libraries, runtime_selection
from deit.inference.loading import load_runtime
from deit.inference.runtime_selection import describe_machine, measure_speed, save_speeds, select_runtime, speeds_file


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the measurements in a new cache."""
    monkeypatch.setenv("DEIT_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache" / "runtimes.json"


def test_default_before_any_measurement(onnx_bundle: ExportResult) -> None:
    choice = select_runtime(onnx_bundle.bundle)
    assert choice.name == "openvino"
    assert "deit benchmark" in choice.reason


def test_fastest_measured_runtime_is_selected(onnx_bundle: ExportResult) -> None:
    save_speeds(onnx_bundle.bundle, "cpu", {"openvino": 100.0, "onnxruntime": 250.4})
    choice = select_runtime(onnx_bundle.bundle)
    assert choice.name == "onnxruntime"
    assert choice.reason == "the fastest measured here, in images/s: onnxruntime 250, openvino 100"
    save_speeds(onnx_bundle.bundle, "cpu", {"openvino": 300.0})
    assert select_runtime(onnx_bundle.bundle).name == "openvino"
    assert select_runtime(onnx_bundle.bundle, "cuda").name == "onnxruntime"  # the only one for this device


def test_measurements_of_another_graph_or_cpu_do_not_count(
    onnx_bundle: ExportResult, int8_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_speeds(onnx_bundle.bundle, "cpu", {"openvino": 100.0, "onnxruntime": 250.0})
    assert select_runtime(int8_bundle.bundle).name == "openvino"
    monkeypatch.setattr(runtime_selection, "cpu_name", lambda: "Abacus 3000")
    assert select_runtime(onnx_bundle.bundle).name == "openvino"


def test_runtimes_are_measured_once(onnx_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([10.0, 20.0])  # a third measurement would raise StopIteration
    monkeypatch.setattr(runtime_selection, "measure_speed", lambda *_: next(speeds))
    assert select_runtime(onnx_bundle.bundle, measure=True).name == "onnxruntime"
    assert select_runtime(onnx_bundle.bundle, measure=True).name == "onnxruntime"
    assert select_runtime(onnx_bundle.bundle).name == "onnxruntime"


def test_corrupt_cache_is_ignored(onnx_bundle: ExportResult, empty_cache: Path) -> None:
    empty_cache.parent.mkdir()
    for content in ("", "[]", '{"speeds": 3}', '{"speeds": {"a": 1}}', "\x00"):
        empty_cache.write_text(content)
        assert select_runtime(onnx_bundle.bundle).name == "openvino"


def test_cache_that_is_not_writable_is_ignored(onnx_bundle: ExportResult, empty_cache: Path) -> None:
    empty_cache.parent.write_text("a file in place of the folder")
    save_speeds(onnx_bundle.bundle, "cpu", {"onnxruntime": 1.0})
    assert select_runtime(onnx_bundle.bundle).name == "openvino"


def test_cache_size_is_limited(onnx_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_selection, "MAX_ENTRIES", 3)
    for number in range(5):
        save_speeds(onnx_bundle.bundle, f"device {number}", {"onnxruntime": 1.0})
    assert len(runtime_selection._read_speeds()) == 3


def test_measurements_are_in_the_cache_directory(empty_cache: Path) -> None:
    assert speeds_file() == empty_cache


def test_no_installed_runtime_is_an_error(openvino_bundle: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_libraries, "version", lambda _name: None)
    with pytest.raises(MissingExtraError, match="A bundle in the format openvino needs an optional library"):
        select_runtime(openvino_bundle.bundle)


def test_speed_is_measured_at_full_concurrency(openvino_bundle: ExportResult) -> None:
    runtime = load_runtime(openvino_bundle.bundle, "openvino", performance_hint="throughput")
    batch_sizes = []

    class CountingRuntime:
        concurrency, batch_size = runtime.concurrency, runtime.batch_size

        def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
            batch_sizes.append(len(pixels))
            return runtime(pixels)

    assert measure_speed(CountingRuntime(), openvino_bundle.bundle, repeats=2) > 0  # type: ignore[arg-type]
    assert batch_sizes == [runtime.batch_size] * 3 * 2 * runtime.concurrency


def test_description_of_the_machine(onnx_bundle: ExportResult) -> None:
    description = describe_machine()
    assert {row["name"] for row in description["runtimes"]} == {"openvino", "onnxruntime", "torch", "torch-compiled"}
    assert len(description["choices"]) == 4
    [row] = describe_machine(str(onnx_bundle.bundle.path))["choices"]
    assert row["runtime"] == "openvino" and row["what"] == str(onnx_bundle.bundle.path)
